"""The adb runner: on written sessions, on a stand-in for a phone, and with the real adb client and server.

No phone took part: what a device says here is written from the documented formats of adb, dumpsys and
onnxruntime_perf_test, not recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.benchmark import bench
from edgeprune.errors import ArtifactError, MeasurementError, TargetError
from edgeprune.runners import AdbRunner, runner_for
from edgeprune.runners.elf import read_program
from edgeprune.runners.local import LocalRunner
from edgeprune.runners.perf_test import WARM_UP, arguments, option_fault, read_profile, read_timing
from edgeprune.runners.thermal import read_thermal, thermal_notes
from edgeprune.target import Runtime, Target
from tests.fake_adbd import FakeAdbd

RUNTIME = Runtime(runner="adb", provider="XnnpackExecutionProvider")

THERMAL = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=OLD, mStatus=0}}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{{mValue={cpu}, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=30.5, mType=0, mName=CPU1, mStatus=0}}
\tTemperature{{mValue=0.0, mType=3, mName=SKIN, mStatus=0}}
\tTemperature{{mValue=24.0, mType=4, mName=USB, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=cpu0}}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Max charging current: 500000
  status: 2
  level: {level}
  scale: 100
  voltage: 4063
  temperature: 291
  technology: Li-ion
"""
SAID = """Setting intra_op_num_threads to 1
Session creation time cost: 0.0102016 s
First inference time cost: 2 ms
Total inference time cost: {total} s
Total inference requests: {runs}
Average inference time cost: 1.85739 ms
Total inference run time: 0.18581 s
Number of inferences per second: 538.184
Avg CPU usage: 96 %
Peak working set size: 36696064 bytes
"""
PROFILE = [
    {"cat": "Session", "name": "model_loading_uri", "ts": 1, "dur": 5, "args": {}},
    *(
        {"cat": "Node", "name": f"{name}_kernel_time", "ts": start + 1, "dur": 2,
         "args": {"op_name": name, "provider": provider}}
        for start in (100, 200)
        for name, provider in (("Conv", "XnnpackExecutionProvider"), ("Relu", "CPUExecutionProvider"))
    ),
    {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50, "args": {}},
    {"cat": "Session", "name": "model_run", "ts": 200, "dur": 50, "args": {}},
]  # fmt: skip
INPUTS = [{"name": "x", "type": "tensor(float)", "shape": [1, 3]}]


def _relu(path: Path, shape: tuple[int | str, ...] = (1, 3)) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _elf(machine: int = 183, api: int | None = 24, *, wide: bool = True) -> bytes:
    """A native program without code: header, and a note that tells the API level as the NDK writes it."""
    notes = struct.pack("<III", 4, 4, 3) + b"GNU\0" + b"\1\2\3\4"  # another note comes first
    if api is not None:
        notes += struct.pack("<III", 8, 4, 1) + b"Android\0" + struct.pack("<I", api)
    head = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9) + struct.pack("<HHI", 3, machine, 1)
    if wide:
        head += struct.pack("<QQQIHHHHHH", 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        return head + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), 0, 4) + notes
    head += struct.pack("<IIIIHHHHHH", 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return head + struct.pack("<IIIIIIII", 4, 84, 0, 0, len(notes), 0, 4, 4) + notes


# --- what the parts read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "abi", "api"),
    [
        (_elf(), "arm64-v8a", 24),
        (_elf(40, 21, wide=False), "armeabi-v7a", 21),
        (_elf(62, None), "x86_64", None),
        (_elf(8), "machine 8", 24),
    ],
)
def test_header_of_a_program(tmp_path: Path, content: bytes, abi: str, api: int | None) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    program = read_program(path)
    assert program is not None
    assert (program.abi, program.api_level) == (abi, api)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh", b"\x7fELF", _elf()[:40], b"\x7fELF\2\2" + bytes(80)])
def test_what_is_no_program(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    assert read_program(path) is None


def test_header_of_a_real_program() -> None:
    program = read_program(Path(sys.executable).resolve())
    assert program is not None
    assert program.api_level is None


def test_heat() -> None:
    cool = read_thermal(THERMAL.format(status=0, cpu=31.5), BATTERY.format(level=84), "0\n")
    assert cool.status == 0
    assert cool.celsius == {"CPU": 31.5, "battery": 29.1}, "hottest of a kind, as read now, no empty sensors"
    assert cool.text() == "throttling: none, CPU 31.5 °C, battery 29.1 °C"
    assert not thermal_notes(cool, cool)
    hot = read_thermal(THERMAL.format(status=2, cpu=71.5), BATTERY.format(level=15), "1\n")
    notes = " ".join(thermal_notes(cool, hot))
    for words in ("throttling after the measurement (status 2 of 6, moderate)", "CPU went from 31.5 to 71.5",
                  "battery saver is on", "battery is at 15 %"):  # fmt: skip
        assert words in notes
    assert "before" not in notes
    old = read_thermal("Can't find service: thermalservice", "", "null")
    assert (old.status, old.celsius, old.battery_percent, old.saves_power) == (None, {}, None, False)
    assert old.text() == "not told"
    assert "does not say whether it throttles" in thermal_notes(old, old)[0]


def _result(times_s: list[float]) -> str:
    return "".join(f"model,{time},36696064,96,{k}\n" for k, time in enumerate(times_s))


def test_times_of_a_process() -> None:
    times = [0.002 + k * 1e-4 for k in range(WARM_UP + 3)]
    timing = read_timing(SAID.format(total=sum(times), runs=len(times)), _result(times), len(times))
    assert timing.samples_ns == [round(one * 1e9) for one in times[WARM_UP:]]
    assert timing.load_ns == 10_201_600
    assert timing.first_ns == 3_000_000, "2 ms, rounded down by the program"
    assert timing.peak_bytes == 36_696_064


@pytest.mark.parametrize(
    ("said", "times", "message"),
    [
        (SAID.format(total=0.006, runs=6), [0.001] * 5, "5 times for 6 runs"),
        (SAID.format(total=0.006, runs=6), [0.001] * 5 + [0.0], "not positive"),
        (SAID.format(total=0.006, runs=6), [1e6] * 6, "add up to 6e\\+06 s, while it says 0.006 s"),
        ("Total time cost:1", [0.001] * 6, "no line like 'Session creation time cost"),
    ],
)
def test_times_that_are_not_believed(said: str, times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_timing(said, _result(times), 6)


def test_profile() -> None:
    assert read_profile(json.dumps(PROFILE), "XnnpackExecutionProvider") == {
        "source": "profile",
        "nodes": {"XnnpackExecutionProvider": 1, "CPUExecutionProvider": 1},
        "left_to_cpu": [{"name": "Relu", "op_type": "Relu"}],
        "assigned": {
            "XnnpackExecutionProvider": [["Conv", "Conv"]],
            "CPUExecutionProvider": [["Relu", "Relu"]],
        },
        "partitions": 1,
    }
    assert read_profile(json.dumps(PROFILE), "CPUExecutionProvider")["left_to_cpu"] == []


@pytest.mark.parametrize(
    "profile",
    ["", "[]", "{", "[1]", json.dumps(PROFILE[:3]), json.dumps([PROFILE[0], *PROFILE[-2:]])],
)
def test_profile_that_proves_nothing(profile: str) -> None:
    with pytest.raises(ValueError, match="a profile that"):
        read_profile(profile, "XnnpackExecutionProvider")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"strict": True}, "runtime.strict is true, expected false .*max_cpu_nodes"),
        ({"dims": {"a:b": 2}}, "runtime.dims is 'a:b', with a blank or a colon"),
    ],
)
def test_what_the_program_cannot_be_told(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(TargetError, match=text):
        AdbRunner(replace(RUNTIME, **changed))


def test_sizes_of_open_dimensions() -> None:
    words = arguments(replace(RUNTIME, dims={"height": 32, "N": 4}), 40)
    assert " ".join(words).endswith("-f height:32 -f N:4")


def test_arguments() -> None:
    words = " ".join(arguments(RUNTIME, 40))
    assert words == "-e xnnpack -I -S 1 -m times -r 40 -x 1"
    nnapi = replace(
        RUNTIME,
        provider="NnapiExecutionProvider",
        provider_options={"NNAPI_FLAG_USE_FP16": "1", "NNAPI_FLAG_CPU_ONLY": "0"},
    )
    assert arguments(nnapi, 1)[-2:] == ["-i", "NNAPI_FLAG_USE_FP16"]
    qnn = replace(
        RUNTIME, provider="QNNExecutionProvider", provider_options={"backend_type": "htp", "a": "b"}
    )
    assert arguments(qnn, 1)[-2:] == ["-i", "backend_type|htp a|b"]
    cpu = replace(RUNTIME, provider="CPUExecutionProvider", threads=4)
    assert arguments(cpu, 1)[-4:] == ["-x", "4", "-C", "session.dynamic_block_base|4"]


def test_options_that_it_cannot_be_given() -> None:
    assert option_fault(replace(RUNTIME, provider_options={"intra_op_num_threads": "1"})) is None
    assert "runtime.threads (2)" in str(
        option_fault(replace(RUNTIME, threads=2, provider_options={"intra_op_num_threads": "1"}))
    )
    with pytest.raises(TargetError, match=r"runtime.provider_options is a = 'b c', with a blank"):
        runner_for(replace(RUNTIME, provider="QNNExecutionProvider", provider_options={"a": "b c"}))


# --- written sessions ---------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts an adb in place that answers a command in which some words occur with the given text.

    Written from documentation, not recorded on a phone. Returns the log of what it was asked.
    """

    def play(*exchanges: tuple[str, str, int]) -> Path:
        folder = tmp_path / "adb-session"
        folder.mkdir(exist_ok=True)
        lines = ["#!/bin/sh", f'printf "%s\\n" "$*" >> {folder}/log']
        for number, (words, answer, status) in enumerate(exchanges):
            (folder / f"{number}").write_text(answer)
            wait = "; cat > /dev/null; echo edgeprune-gone" if "edgeprune-folder" in answer else ""
            lines.append(f'case " $* " in *"{words}"*) cat {folder}/{number}{wait}; exit {status};; esac')
        program = folder / "adb"
        program.write_text("\n".join([*lines, 'echo "not in this session: $*" >&2', "exit 99"]))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return folder / "log"

    return play


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A runtime whose program is for arm64."""
    program = tmp_path / "ort" / "onnxruntime_perf_test"
    program.parent.mkdir()
    program.write_bytes(_elf())
    (program.parent / "libonnxruntime.so").write_bytes(_elf() + b"\0VERS_1.31.1\0")
    return replace(RUNTIME, perf_test=str(program))


def _answers(*parts: str) -> str:
    return "\nedgeprune-next\n".join(parts) + "\nedgeprune-status:0\n"


DEVICES = (" devices ", "List of devices attached\nPHONE1\tdevice\n\n", 0)
FACTS = [
    "Maker",
    "Phone 9",
    "SOC1",
    "14",
    "34",
    "arm64-v8a,armeabi-v7a",
    "8",
    "walt",
    "1.2 1.0 1.1 1/900 1",
    "Linux",
]
TELL = ("getprop ro.product", _answers(*FACTS), 0)
HEAT = (
    "dumpsys thermalservice",
    _answers(THERMAL.format(status=0, cpu=31.5), BATTERY.format(level=84), "0"),
    0,
)
GUARD = ("mktemp -d /data/local/tmp", "edgeprune-folder:/data/local/tmp/edgeprune.abc\n", 0)
PUSH = (" push ", "1 file pushed.\n", 0)
DONE = (" shell ", "edgeprune-status:0\n", 0)
CONNECT = (DEVICES, TELL, HEAT, GUARD, PUSH)


def _ran(said: str, written: str, status: int = 0) -> str:
    return f"{said}\nedgeprune-result\n{written}\nedgeprune-status:{status}\n"


def _timed(runs: int, time_s: float) -> tuple[str, str, int]:
    said = SAID.format(total=time_s * runs, runs=runs)
    return (f" -r {runs} ", _ran(said, _result([time_s] * runs)), 0)


PROFILED = ("/profile/p", _ran("", json.dumps(PROFILE)), 0)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are not loaded on this machine first."""
    monkeypatch.setattr(LocalRunner, "run", lambda *_: {"inputs": INPUTS})


@pytest.mark.usefixtures("checked")
def test_bench_on_a_written_session(session: Callable[..., Path], runtime: Runtime, tmp_path: Path) -> None:
    log = session(*CONNECT, PROFILED, _timed(WARM_UP + 1, 0.002), _timed(WARM_UP + 7, 0.002), DONE)
    target = Target("phone", 8, runtime, (), Path("t.toml"), "ab" * 32)
    slim, dense = _relu(tmp_path / "slim.onnx"), _relu(tmp_path / "dense.onnx", (1, 4))
    measurement = bench(slim, target, baseline=dense, processes=2, runs=14)
    assert measurement.environment["device"] == "Maker Phone 9"
    assert measurement.environment["onnxruntime"] == "1.31.1"
    assert measurement.environment["platform"] == "Android 14 (API 34)"
    assert measurement.placement["source"] == "profile"
    assert measurement.value("cpu_nodes") == 1
    assert measurement.latency_samples_s == ((0.002,) * 14,) * 2
    assert measurement.latency_ratio is not None
    assert measurement.latency_ratio.value == 1
    assert measurement.value("peak_memory") is None
    assert "onnxruntime_perf_test tells the peak of its whole process" in str(
        measurement.why_unmeasured("peak_memory")
    )
    assert any("slim, dense, dense, slim" in note for note in measurement.notes)
    assert any("Before the measurement: throttling: none, CPU 31.5" in note for note in measurement.notes)
    assert measurement.to_json() == type(measurement).from_json(measurement.to_json()).to_json()
    asked = log.read_text().splitlines()
    assert all(line.startswith("-s PHONE1 ") for line in asked[1:])
    pushed = [line.split("/")[-1] for line in asked if " push " in line]
    assert pushed == ["onnxruntime_perf_test", "libonnxruntime.so", "model.onnx", "model.onnx"]
    names = {line.split("/")[-2][:4] for line in asked if line.endswith("model.onnx")}
    assert len(names) == 2
    timed = [
        next(n for n in names if n in line.split("./onnxruntime_perf_test")[1])
        for line in asked
        if f"-r {WARM_UP + 7} " in line
    ]
    assert timed[:4] == [timed[0], timed[1], timed[1], timed[0]], "slim, dense, dense, slim"
    assert timed[4:] == [timed[1], timed[0], timed[0], timed[1]]
    assert len(timed) == 8


@pytest.mark.parametrize(
    ("listed", "serial", "message"),
    [
        ("", None, "list of `adb devices` is empty, expected a device. Connect it with USB debugging"),
        ("A\tdevice\nB\tdevice\n", None, r'is A \(device\), B \(device\), expected one device. .*host = "A"'),
        ("A\tdevice\n", "B", r"device B is not connected: `adb devices` lists A \(device\)"),
        ("A\tunauthorized\n", None, "device A is in the state 'unauthorized'.*accept this computer's key"),
        ("A\toffline\nB\tdevice\n", "A", "device A is in the state 'offline'.*plug it in again"),
        ("A\tno permissions (verify udev rules); see [x]\n", None, "'no permissions .*udev rule"),
        ("A\trecovery\n", None, "in the state 'recovery'.*See `adb devices`"),
    ],
)
def test_which_device(
    session: Callable[..., Path], runtime: Runtime, listed: str, serial: str | None, message: str
) -> None:
    session((" devices ", f"* daemon started successfully\nList of devices attached\n{listed}\n", 0))
    with pytest.raises(MeasurementError, match=f"could not start measuring: .*{message}") as caught:
        AdbRunner(replace(runtime, host=serial)).run("environment")
    assert caught.value.exit_code == 3


def test_the_one_that_is_ready_is_taken(session: Callable[..., Path], runtime: Runtime) -> None:
    listed = (" devices ", "List of devices attached\nA\tunauthorized\nB\tdevice\n\n", 0)
    log = session(listed, *CONNECT[1:], DONE)
    with AdbRunner(runtime) as runner:
        runner.run("environment")
    assert "-s B shell" in log.read_text()
    assert "-s A" not in log.read_text()


def test_no_adb(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasurementError, match=r"adb is not on this machine. Install adb"):
        AdbRunner(runtime).run("environment")


def test_server_that_does_not_start(session: Callable[..., Path], runtime: Runtime) -> None:
    session((" devices ", "", 1))
    with pytest.raises(MeasurementError, match="adb is unable to start its server"):
        AdbRunner(runtime).run("environment")


@pytest.mark.parametrize("serial", ["-d", "a b", "$(x)", "a;b"])
def test_serial_that_is_none(serial: str) -> None:
    with pytest.raises(TargetError, match=r"runtime.host is .*expected a serial"):
        runner_for(replace(RUNTIME, host=serial))


def test_provider_that_is_not_for_android() -> None:
    with pytest.raises(
        MeasurementError, match=r"runtime.provider is CUDAExecutionProvider, expected one of CPU"
    ):
        runner_for(replace(RUNTIME, provider="CUDAExecutionProvider"))


def test_job_that_takes_the_worker() -> None:
    with pytest.raises(
        MeasurementError, match=r"could not do the job 'other': runtime.runner is 'adb', which brings"
    ):
        runner_for(RUNTIME).run("other")


@pytest.mark.parametrize("named", [None, "/no/such/program"])
def test_no_program(named: str | None) -> None:
    with pytest.raises(MeasurementError, match=r"runtime.perf_test is .*build of onnxruntime for Android"):
        AdbRunner(replace(RUNTIME, perf_test=named)).run("environment")


@pytest.mark.parametrize(
    ("content", "facts", "provider", "message"),
    [
        (_elf(62), {}, "", "built for x86_64, expected the device's arm64-v8a or armeabi-v7a"),
        (b"#!/bin/sh", {}, "", "no program for Android"),
        (_elf(api=35), {}, "", "built for API level 35, expected at most the device's 34"),
        (_elf(), {4: "23"}, "", "device is at Android API level 23, expected 24 or higher"),
        (
            _elf(),
            {4: "26"},
            "NnapiExecutionProvider",
            "level 26, expected 27 or higher for NnapiExecutionProvider",
        ),
        (_elf(), {4: ""}, "", "Android API level 0"),
    ],
)
def test_program_that_does_not_fit(
    session: Callable[..., Path],
    runtime: Runtime,
    content: bytes,
    facts: dict[int, str],
    provider: str,
    message: str,
) -> None:
    told = [facts.get(k, fact) for k, fact in enumerate(FACTS)]
    log = session(DEVICES, ("getprop ro.product", _answers(*told), 0))
    Path(str(runtime.perf_test)).write_bytes(content)
    with pytest.raises(MeasurementError, match=message):
        AdbRunner(replace(runtime, provider=provider or runtime.provider)).run("environment")
    assert " push " not in log.read_text()


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        (
            "Xnnpack is not supported in this build",
            255,
            "built without XnnpackExecutionProvider.*--use_xnnpack",
        ),
        (
            'CANNOT LINK EXECUTABLE "./x": library "libc++_shared.so" not found',
            1,
            "without a library.*libc.._shared",
        ),
        ("Killed", 137, "killed by signal 9. The device most likely ran out of memory"),
        ("Segmentation fault", 139, r"killed by signal 11 \(Segmentation fault\)"),
        ("Load model failed", 255, r"exit status 255 \(Load model failed\)"),
    ],
)
def test_program_that_fails(
    session: Callable[..., Path], runtime: Runtime, tmp_path: Path, said: str, status: int, message: str
) -> None:
    session(*CONNECT, ("/profile/p", _ran(said, "", status), 0), DONE)
    with AdbRunner(runtime) as runner, pytest.raises(MeasurementError, match=message) as caught:
        runner.run("placement", [_relu(tmp_path / "a.onnx")])
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("", "so it is not proven where a.onnx runs"),
        (json.dumps(PROFILE).replace("Xnnpack", "CPU"), "in the program, but took none of the 2 nodes of"),
    ],
)
def test_placement_that_is_not_proven_is_no_measurement(
    session: Callable[..., Path], runtime: Runtime, tmp_path: Path, profile: str, message: str
) -> None:
    session(*CONNECT, ("/profile/p", _ran("", profile), 0), DONE)
    with AdbRunner(runtime) as runner, pytest.raises(MeasurementError, match=message) as caught:
        runner.run("placement", [_relu(tmp_path / "a.onnx")])
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        ((" push ", "adb: error: failed to copy 'a' to 'b': remote No space left on device", 1),
         "/data/local/tmp on the device is full. Free space there"),
        ((" push ", "adb: error: failed to copy 'a' to 'b': remote Permission denied", 1),
         "not to be written"),
        ((" push ", "error: device 'PHONE1' not found", 1), "connection to the device is lost .*not found"),
    ],
)  # fmt: skip
def test_push_that_fails(
    session: Callable[..., Path], runtime: Runtime, exchange: tuple[str, str, int], message: str
) -> None:
    session(DEVICES, TELL, HEAT, GUARD, exchange, DONE)
    with AdbRunner(runtime) as runner, pytest.raises(MeasurementError, match=message):
        runner.run("environment")


def test_folder_that_cannot_be_made(session: Callable[..., Path], runtime: Runtime) -> None:
    log = session(DEVICES, TELL, HEAT, ("mktemp", "", 93))
    program = log.parent / "adb"
    program.write_text(program.read_text().replace("exit 93", "echo 'mktemp: No space left' >&2; exit 93"))
    with (
        AdbRunner(runtime) as runner,
        pytest.raises(MeasurementError, match=r"tmp on the device is not to be written \(mktemp: No space"),
    ):
        runner.run("environment")
    program.write_text(program.read_text().replace("mktemp: No space left", "error: device offline"))
    with (
        AdbRunner(runtime) as runner,
        pytest.raises(MeasurementError, match=r"is lost \(error: device offline"),
    ):
        runner.run("environment")


def test_partitions_of_a_provider_that_compiles() -> None:
    kinds = ["NNAPI_1_1", "NNAPI_1_2", "Relu", "NNAPI_1_3"]
    events = [
        {"cat": "Node", "name": f"{kind}_kernel_time", "ts": 1 + k, "dur": 1,
         "args": {"op_name": kind, "provider": ("NnapiE" if "_" in kind else "CPUE") + "xecutionProvider"}}
        for k, kind in enumerate(kinds)
    ]  # fmt: skip
    run = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 9}
    assert read_profile(json.dumps([*events, run]), "NnapiExecutionProvider")["partitions"] == 3


@pytest.mark.usefixtures("checked")
def test_device_that_goes_away(session: Callable[..., Path], runtime: Runtime, tmp_path: Path) -> None:
    session(*CONNECT, (" -r ", "error: device offline", 1), DONE)
    with AdbRunner(runtime) as runner, pytest.raises(MeasurementError, match=r"lost .*device offline"):
        runner.run("latency", [_relu(tmp_path / "a.onnx")], runs=10)


@pytest.mark.usefixtures("checked")
def test_times_that_are_not_there_are_no_measurement(
    session: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    session(*CONNECT, (" -r ", _ran(SAID.format(total=1, runs=1), ""), 0), DONE)
    with (
        AdbRunner(runtime) as runner,
        pytest.raises(MeasurementError, match=r"else than expected .0 times for"),
    ):
        runner.run("latency", [_relu(tmp_path / "a.onnx")], runs=10)


@pytest.mark.usefixtures("checked")
def test_shape_that_it_cannot_be_given(
    session: Callable[..., Path], runtime: Runtime, tmp_path: Path
) -> None:
    session(*CONNECT, DONE)
    with (
        AdbRunner(replace(runtime, input=(4, 3))) as runner,
        pytest.raises(
            ArtifactError, match=r"expected \[4, 3\] as the target asks. .*runs open dimensions as 1"
        ),
    ):
        runner.run("placement", [_relu(tmp_path / "a.onnx")])


# --- a stand-in for a phone: this machine, with onnxruntime's Python package in the place of the program ----

PROGRAM = f"""#!{sys.executable}
import argparse, os, sys, time
import numpy as np, onnxruntime as ort
parser = argparse.ArgumentParser()
for name in "e S m r x p i C".split():
    parser.add_argument("-" + name)
parser.add_argument("-I", action="store_true")
parser.add_argument("files", nargs="+")
given = parser.parse_args()
if given.e != "cpu":
    sys.exit(given.e + " is not supported in this build")
options = ort.SessionOptions()
options.intra_op_num_threads = int(given.x)
if given.p:
    options.enable_profiling, options.profile_file_prefix = True, given.p
clock = time.perf_counter
start = clock()
session = ort.InferenceSession(given.files[0], options, providers=["CPUExecutionProvider"])
load = clock() - start
feed = {{i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}}
def once():
    start = clock()
    session.run(None, feed)
    return clock() - start
first, times = once(), [once() for _ in range(int(given.r))]
print(f"Session creation time cost: {{load:.6g}} s")
print(f"First inference time cost: {{int(first * 1000)}} ms")
print(f"Total inference time cost: {{sum(times):.6g}} s")
print(f"Peak working set size: 1000 bytes")
if given.p:
    session.end_profiling()
if len(given.files) > 1:
    with open(given.files[1], "a") as file:
        for k, one in enumerate(times):
            file.write(f"x,{{one:.6g}},1000,90,{{k}}\\n")
"""
ADB = """#!/bin/sh
[ "$1" = -s ] && shift 2
here() { printf %s "$1" | sed "s#/data/local/tmp#@TMP@#g"; }
case "$1" in
devices) printf 'List of devices attached\\nPHONE1\\tdevice\\n\\n';;
push) cp "$2" "$(here "$3")";;
shell) PATH="@BIN@:$PATH" exec sh -c "$(here "$2")";;
esac
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This machine behind a stand-in for adb; its folder must be empty in the end."""
    folder, binaries = tmp_path / "phone", tmp_path / "phone-bin"
    folder.mkdir()
    binaries.mkdir()
    props = dict(zip(("ro.build.version.sdk", "ro.product.cpu.abilist"), ("34", "arm64-v8a"), strict=True))
    cases = " ".join(f"{name}) echo {value};;" for name, value in props.items())
    scripts = {
        "adb": ADB.replace("@TMP@", str(folder)).replace("@BIN@", str(binaries)),
        "getprop": f'#!/bin/sh\ncase "$1" in {cases} *) echo "a b";; esac\n',
        "dumpsys": "#!/bin/sh\necho 'Thermal Status: 0'\n",
        "settings": "#!/bin/sh\necho 0\n",
    }
    for name, text in scripts.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    program = tmp_path / "ort" / "onnxruntime_perf_test"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    arm = read_program(_written(tmp_path / "arm", _elf()))
    monkeypatch.setattr("edgeprune.runners.adb.read_program", lambda _: arm)
    yield program
    deadline = time.monotonic() + 20
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(folder.rglob("*"))


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_bench_on_the_stand_in(phone: Path, tmp_path: Path) -> None:
    runtime = Runtime(runner="adb", provider="CPUExecutionProvider", perf_test=str(phone))
    target = Target("phone", 8, runtime, (), Path("t.toml"), "ab" * 32)
    slim, dense = _relu(tmp_path / "slim's.onnx"), _relu(tmp_path / "dense.onnx", (1, 3))
    measurement = bench(slim, target, baseline=dense, processes=2, runs=20)
    assert [len(samples) for samples in measurement.latency_samples_s] == [20, 20]
    assert measurement.placement["nodes"] == {"CPUExecutionProvider": 1}
    assert measurement.environment["cores"] >= 1


@pytest.mark.slow
def test_faults_on_the_stand_in(phone: Path, tmp_path: Path) -> None:
    broken = _written(tmp_path / "broken.onnx", b"no model")
    with AdbRunner(Runtime(runner="adb", perf_test=str(phone))) as runner:
        with pytest.raises(ArtifactError, match=r"broken.onnx is not a model") as caught:
            runner.run("placement", [broken])
        assert caught.value.exit_code == 2
        with pytest.raises(ArtifactError, match="open in dimension 'H'"):
            runner.run("placement", [_relu(tmp_path / "open.onnx", ("N", "H"))])
    with (
        AdbRunner(replace(RUNTIME, perf_test=str(phone))) as runner,
        pytest.raises(MeasurementError, match="built without XnnpackExecutionProvider"),
    ):
        runner.run("placement", [_relu(tmp_path / "a.onnx")])


@pytest.mark.slow
def test_program_that_hangs_is_ended(phone: Path, tmp_path: Path) -> None:
    phone.write_text("#!/bin/sh\nsleep 61\n")
    runtime = Runtime(runner="adb", perf_test=str(phone))
    with AdbRunner(runtime, timeout_s=2.0) as runner, pytest.raises(MeasurementError, match="busy after 2 s"):
        runner.run("latency", [_relu(tmp_path / "a.onnx")], runs=10)
    assert not _processes("sleep 61")


# --- the real adb -------------------------------------------------------------------------------------------


@pytest.fixture
def real_adb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The real client, with a server of its own."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb (Debian: adb)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("HOME", str(tmp_path))  # where it makes its key
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    yield
    subprocess.run(["adb", "kill-server"], capture_output=True, timeout=30, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("real_adb")
def test_real_adb_without_a_device(runtime: Runtime) -> None:
    with pytest.raises(MeasurementError, match=r"list of `adb devices` is empty.*USB debugging") as caught:
        AdbRunner(runtime).run("environment")
    assert caught.value.exit_code == 3
    with pytest.raises(MeasurementError, match=r"device R5CT1234567 is not connected|is empty"):
        AdbRunner(replace(runtime, host="R5CT1234567")).run("environment")


@pytest.fixture
def device(real_adb: None, phone: Path, tmp_path: Path) -> Iterator[FakeAdbd]:  # noqa: ARG001
    """This machine as a device of the real adb server, by its protocol."""
    (tmp_path / "phone-bin" / "adb").unlink()  # the stand-in
    daemon = FakeAdbd(tmp_path / "phone", tmp_path / "phone-bin")
    said = subprocess.run(
        ["adb", "connect", f"127.0.0.1:{daemon.port}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "connected to" in said.stdout, said
    yield daemon
    daemon.close()


@pytest.mark.slow
def test_bench_over_the_real_adb(device: FakeAdbd, phone: Path, tmp_path: Path) -> None:
    serial = f"127.0.0.1:{device.port}"
    runtime = Runtime(runner="adb", host=serial, perf_test=str(phone))
    target = Target("phone", 8, runtime, (), Path("t.toml"), "ab" * 32)
    slim, dense = _relu(tmp_path / "slim's.onnx"), _relu(tmp_path / "dense.onnx", (1, 3))
    measurement = bench(slim, target, baseline=dense, processes=2, runs=20)
    assert [len(samples) for samples in measurement.latency_samples_s] == [20, 20]
    assert measurement.placement["nodes"] == {"CPUExecutionProvider": 1}


@pytest.mark.slow
def test_real_adb_when_the_cable_is_pulled(device: FakeAdbd, phone: Path, tmp_path: Path) -> None:
    phone.write_text("#!/bin/sh\ntouch ../started\nsleep 62\n")
    model = _relu(tmp_path / "a.onnx")
    cut = threading.Thread(target=_cut_when, args=(device, tmp_path / "phone" / "started"))
    cut.start()
    with (
        AdbRunner(Runtime(runner="adb", perf_test=str(phone))) as runner,
        pytest.raises(MeasurementError, match="connection to the device is lost") as caught,
    ):
        runner.run("latency", [model], runs=10)
    cut.join()
    assert caught.value.exit_code == 3
    (tmp_path / "phone" / "started").unlink()
    deadline = time.monotonic() + 20
    while (processes := _processes("sleep 62")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes


def _processes(words: str) -> bool:
    return words in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout


def _cut_when(device: FakeAdbd, there: Path) -> None:
    deadline = time.monotonic() + 60
    while not there.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    device.cut()
