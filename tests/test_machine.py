"""The processor, devices by a fake adb, and what to install for what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from edgeprune import availability, machine, steadiness
from edgeprune.machine import find_browsers, find_devices, find_missing, read_processor
from edgeprune.steadiness import judge
from tests.conftest import run

X86 = """processor\t: 0
flags\t\t: fpu sse4_2 avx2 fma avx512f avx512_vnni
physical id\t: 0
siblings\t: 4
core id\t\t: 0

processor\t: 1
flags\t\t: fpu sse4_2 avx2 fma avx512f avx512_vnni
physical id\t: 0
siblings\t: 4
core id\t\t: 0

processor\t: 2
flags\t\t: fpu sse4_2 avx2 fma avx512f avx512_vnni
physical id\t: 0
siblings\t: 4
core id\t\t: 1
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd crc32 fphp asimdhp\n"
ADB = """#!/bin/sh
echo "* daemon started successfully *"
echo "List of devices attached"
printf 'R58M        device usb:1-1 product:a model:SM_G991B device:o1s transport_id:1\\n'
printf '0123        unauthorized usb:1-2 transport_id:2\\n'
printf '9\\tno permissions (user in plugdev group); see [http://developer.android.com]\\n'
"""


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def test_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    path = tmp_path / "cpuinfo"
    path.write_text(X86)
    found = read_processor(path)
    assert found.features == ("sse4_2", "avx2", "fma", "avx512f", "avx512_vnni")
    assert (found.physical_cores, found.int8) == (2, True)
    assert found.thread_variables == {"OMP_NUM_THREADS": "3"}
    path.write_text(ARM)
    found = read_processor(path)
    assert (found.features, found.physical_cores, found.int8) == (("asimd", "fphp", "asimdhp"), None, False)
    found = read_processor(tmp_path / "absent")
    assert (found.features, found.physical_cores, found.int8) == ((), None, None)


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    none = find_devices()
    assert (none.adb, none.found, none.why_not) == (None, (), "adb is not installed")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    program(tmp_path, "adb", ADB)
    found = find_devices()
    assert found.found == (
        ("R58M", "device", "SM_G991B"), ("0123", "unauthorized", ""), ("9", "no permissions", "")
    )  # fmt: skip
    assert found.why_not == ""
    program(tmp_path, "adb", "#!/bin/sh\necho 'List of devices attached'\n")
    assert find_devices().why_not == "no device is connected"
    program(tmp_path, "adb", "#!/bin/sh\necho 'cannot bind' >&2; exit 1\n")
    assert find_devices().why_not == "adb devices failed: cannot bind"
    program(tmp_path, "adb", "#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(machine, "CONNECT_S", 0.2)
    why = "`adb devices` is still busy after 0.2 s. Restart it: `adb kill-server`."
    assert find_devices().why_not == why
    program(tmp_path, "adb", "#!/nowhere/sh\n")
    assert find_devices().why_not == f"{tmp_path}/adb does not start: No such file or directory"


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("adb", "ssh", "valgrind", "npm", "chromium"):
        program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    browsers = find_browsers()
    assert browsers == (str(tmp_path / "chromium"),)
    assert find_missing(browsers) == ()  # the control: all is there

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "segno") else 1)
    for name in ("adb", "valgrind", "chromium"):
        (tmp_path / name).unlink()
    commands = {one.what: one.command for one in find_missing(find_browsers())}
    assert commands == {
        "torch": 'pip install "edgeprune[train]"',
        "segno": 'pip install "edgeprune[browser]"',
        "adb": "sudo apt install adb",
        "valgrind": "sudo apt install valgrind",
        "a browser": "sudo apt install chromium",
    }
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    commands = {one.what: one.command for one in find_missing(find_browsers())}
    assert commands["adb"] == "brew install --cask android-platform-tools"
    assert "valgrind" not in commands


def test_doctor_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "adb", ADB)
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    monkeypatch.setattr(availability, "find_providers", lambda _: ())
    code, out, _ = run(capsys, "doctor", "--no-noise")
    assert code == 0
    flat = " ".join(out.split())
    assert "adb R58M (SM_G991B): ready" in flat
    assert "adb 0123: unauthorized. Unlock the device and accept this computer's key there." in flat
    assert "browsers none on the PATH" in flat
    assert "a browser, for measuring in one here:" in flat
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(run(capsys, "doctor", "--no-noise", "--json")[1])
    assert found["devices"]["found"][0] == ["R58M", "device", "SM_G991B"]
    assert found["noise"] is None
    assert {one["what"] for one in found["missing"]} >= {"ssh", "npm", "a browser"}


@pytest.mark.parametrize("others_cpus", [0.0, 3.9])
def test_doctor_tells_noise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others_cpus: float
) -> None:
    pairs = [[(1e-3, 1e-3)] * 20] * 5
    told = {"steal_share": 0.0, "others_cpus": others_cpus}
    quiet = {"load_average": 0.0, "cores": 4, "governor": None}
    found = judge(pairs, [told] * 5, quiet, 5.0)
    monkeypatch.setattr(steadiness, "measure_steadiness", lambda *_: found)
    monkeypatch.setattr(availability, "find_providers", lambda _: ())
    code, out, _ = run(capsys, "doctor")
    assert code == 0  # to be noisy is no fault
    assert ("quiet: a bench can be trusted" in out) is (not others_cpus)
    assert ("NOISY" in out) is bool(others_cpus)
    assert ("Other processes kept 3.9 of 4 cores busy" in " ".join(out.split())) is bool(others_cpus)
    assert max(map(len, out.splitlines())) <= 80
    noise = json.loads(run(capsys, "doctor", "--json")[1])["noise"]
    assert (noise["quiet"], noise["processes"]) == (not others_cpus, 5)


def test_a_device_commands_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "adb", ADB.replace("SM_G991B", r"x\033]0;y\007"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    monkeypatch.setattr(availability, "find_providers", lambda _: ())
    code, out, _ = run(capsys, "doctor", "--no-noise")
    assert code == 0
    assert "\x1b" not in out
    assert "R58M (x ]0;y )" in out
