"""What the worker reads from the system besides time: disturbances, and memory of every kind."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgeprune.runners.worker import common, device_memory, disturbance, memory
from tests.test_worker import JOB, _gemm, _save, _value

# --- what else happened -------------------------------------------------------------------------------------


def _kernel(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000",
          "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/elsewhere", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/c", "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us":
          "250000", "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000"}, 2.5),
        ({"proc/self/cgroup": "1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)  # fmt: skip
def test_cpu_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    _kernel(tmp_path, files)
    monkeypatch.setattr(disturbance, "ROOT", tmp_path)
    assert disturbance.cpu_quota() == quota


def test_disturbance_counts_what_the_kernel_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    heat = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    times = iter([10.0, 14.0])
    own = iter([1.0, 4.0])
    monkeypatch.setattr(disturbance, "ROOT", tmp_path)
    monkeypatch.setattr(
        disturbance,
        "time",
        SimpleNamespace(monotonic=lambda: next(times), process_time=lambda: next(own)),
    )
    stat = "cpu  {} 0 0 500 0 0 0 {} 0 0\ncpu0 1 2 3\n"
    stats = "usage_usec 5\nthrottled_usec {}\n"
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.stat": stats.format(100), heat: "3"}
    _kernel(tmp_path, {"proc/stat": stat.format(7 * ticks, 0), **files})
    watch = disturbance.Disturbance()
    files |= {"sys/fs/cgroup/cpu.stat": stats.format(400_100), heat: "5"}
    # Nine seconds of work in four seconds, three of them ours; one more was stolen.
    _kernel(tmp_path, {"proc/stat": stat.format(16 * ticks, ticks), **files})
    assert watch.so_far() == pytest.approx(
        {"steal_share": 0.1, "others_cpus": 1.5, "throttled_share": 0.1, "thermal_events": 2}
    )


def test_a_system_that_tells_nothing_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbance, "ROOT", tmp_path)
    assert set(disturbance.Disturbance().so_far().values()) == {None}


# --- memory of other kinds ----------------------------------------------------------------------------------


def test_arena_memory_is_that_of_the_tensors(tmp_path: Path) -> None:
    x = np.zeros((1, 2**18), np.float32)
    nodes = [helper.make_node("Tanh", [a], [b]) for a, b in (("x", "a"), ("a", "b"), ("b", "y"))]
    path = _save(tmp_path / "m.onnx", nodes, [_value("x", list(x.shape))])
    found = memory.arena_memory(JOB, str(path))
    assert found["why"] is None
    assert "profile" in found["method"]
    # Two or three results at once, which may share a buffer.
    assert x.nbytes <= found["peak_bytes"] <= 3.5 * x.nbytes
    assert found["peak_bytes"] <= found["held_bytes"]
    assert list(tmp_path.iterdir()) == [path], "a profile was left behind"
    assert memory.arena_memory(JOB, str(path)) == found


def test_profiles_without_memory_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _gemm(tmp_path / "m.onnx", 8)
    monkeypatch.setattr(memory.json, "loads", lambda _: [{"cat": "Node", "args": {"provider": common.CPU}}])
    found = memory.arena_memory(JOB, str(path))
    assert found["peak_bytes"] is found["held_bytes"] is found["method"] is None
    assert (
        found["why"] == f"profiles of onnxruntime {common.ort.__version__} do not tell memory of {common.CPU}"
    )


class FakeDriver:
    """CUDA's driver on a GPU whose free memory is what the test says."""

    def __init__(self, free: list[int], fails: str = "") -> None:
        self.free, self.fails, self.device = free, fails, -1

    def _status(self, call: str) -> int:
        return 100 if call == self.fails else 0

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self._status("cuInit")

    def cuDeviceGet(self, _: Any, device: int) -> int:  # noqa: N802
        self.device = device
        return 0

    def cuDevicePrimaryCtxRetain(self, *_: Any) -> int:  # noqa: N802
        return 0

    def cuCtxSetCurrent(self, _: Any) -> int:  # noqa: N802
        return 0

    def cuMemGetInfo_v2(self, free: Any, _: Any) -> int:  # noqa: N802
        free._obj.value = self.free.pop(0)
        return self._status("cuMemGetInfo")


CUDA_JOB = JOB | {"provider": "CUDAExecutionProvider", "provider_options": {"device_id": "1"}}


def test_gpu_memory_is_what_the_driver_has_less_of(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver([9_000, 4_000, 5_000])
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda _: driver)
    found = device_memory.DeviceMemory(CUDA_JOB)
    assert driver.device == 1
    found.look()
    found.look()
    assert found.answer() == {"peak_bytes": 5_000, "method": device_memory.METHOD, "why": None}


def test_gpu_memory_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(device_memory.ctypes, "CDLL", absent)
    for job, why in ((CUDA_JOB, "libcuda.so.1: cannot open"), (JOB, "only CUDA is")):
        found = device_memory.DeviceMemory(job)
        found.look()
        answer = found.answer()
        assert answer["peak_bytes"] is answer["method"] is None
        assert why in answer["why"]
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda _: FakeDriver([], fails="cuInit"))
    assert "cuInit gave error 100" in device_memory.DeviceMemory(CUDA_JOB).answer()["why"]
