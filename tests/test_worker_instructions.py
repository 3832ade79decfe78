"""Counting instructions in the worker: what is absent here, the real callgrind and the real emulators."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import edgeprune as ep
from edgeprune.errors import ArtifactError, MeasurementError
from edgeprune.runners import LocalRunner
from edgeprune.runners.worker import common, environment, instructions
from edgeprune.target import Runtime

ROOT = Path(__file__).resolve().parent.parent
JOB = {
    "job": "instructions", "models": ["a.onnx"], "provider": common.CPU, "provider_options": {}, "threads": 1,
    "input": None,
}  # fmt: skip
X86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")


def _relu(path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _fails(run: Callable[[], Any], kind: str, message: str) -> common.Fault:
    with pytest.raises(common.Fault, match=message) as caught:
        run()
    assert caught.value.kind == kind
    return caught.value


# --- what is absent -----------------------------------------------------------------------------------------


@X86_64
def test_absent_valgrind_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    runner = LocalRunner(Runtime())
    with pytest.raises(
        MeasurementError,
        match=r"could not count instructions: .* is on a machine without valgrind.*apt install",
    ) as caught:
        runner.run("instructions", [_relu(tmp_path / "a.onnx")])
    assert caught.value.exit_code == 3


def test_callgrind_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    fault = _fails(lambda: instructions.by_callgrind(JOB), "environment", "on a riscv64")
    assert "scripts/emulator aarch64 DIR" in fault.hint


def test_an_emulator_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = SimpleNamespace(syscall=lambda *_: -1)
    monkeypatch.setattr(instructions.ctypes, "CDLL", lambda _: silent)
    monkeypatch.setenv("EDGEPRUNE_EMULATOR", "qemu-x 7")
    fault = _fails(lambda: instructions.instructions(JOB), "environment", "qemu-x 7 without the plugin")
    assert "scripts/emulator" in fault.hint


def test_an_emulator_tells_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPRUNE_EMULATOR", raising=False)
    assert environment.emulator() is None
    monkeypatch.setattr(Path, "readlink", lambda _: Path("/usr/bin/qemu-aarch64"))
    assert environment.emulator() == "qemu-aarch64"
    monkeypatch.setenv("EDGEPRUNE_EMULATOR", "qemu-aarch64 7 -cpu max")
    assert environment.emulator() == "qemu-aarch64 7 -cpu max"
    told = environment.environment({})
    assert told["emulator"] == told["cpu"] == "qemu-aarch64 7 -cpu max"


@pytest.mark.parametrize(
    ("stdout", "kind", "message"),
    [
        ("", "environment", r"without an answer under valgrind, which ended with status 1: no memory"),
        ("hello\n", "environment", "without an answer under valgrind"),
        (
            json.dumps({"error": {"kind": "model", "message": "broken", "hint": "h", "model": "a.onnx"}}),
            "model",
            "broken",
        ),
    ],
)
def test_faults_under_callgrind(stdout: str, kind: str, message: str) -> None:
    done = subprocess.CompletedProcess([], 1, stdout, "x\nno memory\n")
    fault = _fails(lambda: instructions.last_answer(done), kind, message)
    assert fault.model == ("a.onnx" if kind == "model" else "")


def test_files_of_callgrind(tmp_path: Path) -> None:
    file = tmp_path / "counts.2-01"
    file.write_text("events: Ir\nfn=(1)\n3 44\ntotals: 123\n")
    assert instructions.total(file) == 123
    file.write_text("events: Ir\n")
    _fails(lambda: instructions.total(file), "environment", "callgrind wrote no totals")
    _fails(lambda: instructions.total(tmp_path / "counts.3-01"), "environment", "callgrind wrote no totals")


@X86_64
def test_a_request_on_a_bare_processor_is_answered_by_nothing() -> None:
    ask = instructions.ValgrindRequest()
    assert [ask(code) for code in (instructions.ON_VALGRIND, instructions.START)] == [0, 0]
    _fails(instructions.valgrind_marks, "worker", "not run by it")


def test_a_system_that_forbids_code_made_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(instructions.mmap, "mmap", refuse)
    _fails(instructions.valgrind_marks, "environment", r"runs no code made at run time \(Operation not")


def test_what_the_marks_themselves_cost_is_taken_off() -> None:
    answer = instructions.counted([20, 900, 820], "a tool", "AVX2")
    assert answer["count"] == 800
    assert answer["method"] == f"a tool, {platform.machine()} (AVX2), second warm inference, 1 thread"
    assert instructions.vector_units() != "vector units unknown"


def test_the_plugin_and_the_worker_use_the_same_number() -> None:
    source = (ROOT / "scripts" / "instruction_counter.c").read_text()
    found = re.search(r"MARK = (0x\w+)", source)
    assert found is not None
    assert int(found[1], 16) == instructions.QEMU_MARK


def _emulator(*words: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "emulator"), *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@X86_64
def test_the_script_says_what_is_wrong_or_absent(tmp_path: Path) -> None:
    assert _emulator()[0] == _emulator("riscv", "x")[0] == 2
    assert "scripts/emulator aarch64 DIR" in _emulator()[1]
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "uname", "dirname", "apt-get", "dpkg-deb", "sed"):
        (tools / tool).symlink_to(shutil.which(tool) or "/bin/true")
    folder = str(tmp_path / "env")
    assert _emulator("aarch64", folder, PATH=str(tools)) == (
        3,
        "scripts/emulator: there is no 'cc' on this machine. The package gcc, with libc6-dev brings it.\n",
    )
    (tools / "cc").symlink_to("/bin/true")
    code, text = _emulator("aarch64", folder, PATH=str(tools), KEYRING=str(tmp_path / "none"))
    assert (code, "debian-archive-keyring brings it" in text) == (3, True)
    assert not Path(folder).exists()


# --- the real tools -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """ResNet-20, slim at half of its MACs, and dense."""
    folder = tmp_path_factory.mktemp("networks")
    data = ep.load_data("digits", batch_size=64)
    dense = ep.load_model("resnet20", num_classes=10)
    groups = ep.find_groups(dense, data.example)
    scores = ep.schemes.Random(seed=0).fit(dense, groups, data)
    # Other widths take onnxruntime off its blocked kernels, and slim takes more instructions than dense.
    plan = ep.make_plan(dense, groups, scores, data.example, max_macs_ratio=0.5, channel_multiple=8)
    slim = ep.export(ep.slim(dense, plan), data.example, folder / "slim.onnx").path
    return slim, ep.export(dense, data.example, folder / "dense.onnx").path


@pytest.fixture(scope="module")
def hogs() -> Iterator[None]:
    """Four busy processes beside the launches, with those that are there anyway."""
    more = max(0, 4 - int(os.getloadavg()[0]))
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]) for _ in range(more)]
    yield
    for hog in hogs:
        hog.kill()
        hog.wait()


@pytest.fixture(scope="module", params=["callgrind", "x86-64", "aarch64"])
def interpreter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """What counts, and the interpreter to name in a target."""
    if request.param == "callgrind":
        if shutil.which("valgrind") is None:
            pytest.skip("valgrind is not installed")
        return request.param, None
    # EDGEPRUNE_EMULATORS: a folder where `scripts/emulator` has built FOLDER/x86-64 and FOLDER/aarch64.
    built = os.environ.get("EDGEPRUNE_EMULATORS")
    if built:
        return request.param, str(Path(built, request.param, "python"))
    folder = tmp_path_factory.mktemp("emulator")
    own = [sys.executable] if request.param == "x86-64" else []
    code, text = _emulator(request.param, str(folder), *own)
    if code == 3:
        pytest.skip(text.strip().splitlines()[-1])
    assert code == 0, text
    return request.param, str(folder / "python")


@X86_64
@pytest.mark.slow
@pytest.mark.usefixtures("hogs")
def test_counts_repeat_beside_busy_processes(
    networks: tuple[Path, Path], interpreter: tuple[str, Any]
) -> None:
    name, python = interpreter
    runner = LocalRunner(Runtime(python=python))
    found = []
    for path in networks:
        answers = [runner.run("instructions", [path]) for _ in range(5)]
        counts = [answer["count"] for answer in answers]
        print(name, path.stem, counts, answers[0]["method"], f"load average {os.getloadavg()[0]:.1f}")
        assert (max(counts) - min(counts)) / min(counts) <= 0.0025
        assert len({answer["method"] for answer in answers}) == 1
        found.append(counts[0])
    assert {"callgrind": "valgrind-", "x86-64": "qemu-x86_64 7", "aarch64": "qemu-aarch64 7"}[
        name
    ] in answers[0]["method"]
    # Of 20.1 M multiply-adds, 8 (AVX2) or 4 (ASIMD) at once, and what loads and stores them takes.
    low, high = (8e6, 16e6) if name == "aarch64" else (4e6, 8e6)
    assert low < found[0] < high
    assert 0.5 < found[0] / found[1] < 0.62


@X86_64
@pytest.mark.slow
def test_broken_models_are_named(interpreter: tuple[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"could not run the ONNX file: .*broken.onnx is not a model"):
        LocalRunner(Runtime(python=interpreter[1])).run("instructions", [tmp_path / "broken.onnx"])


@X86_64
@pytest.mark.slow
def test_an_emulated_interpreter_says_so(interpreter: tuple[str, Any]) -> None:
    told = LocalRunner(Runtime(python=interpreter[1])).run("environment")
    name = {"callgrind": None, "x86-64": "qemu-x86_64 7", "aarch64": "qemu-aarch64 7"}[interpreter[0]]
    assert (told["emulator"] or "").startswith(name or "")
    assert (told["emulator"] is None) == (name is None)
