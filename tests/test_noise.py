"""Each note appears when its fault is planted, and stays away just below the limit."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.metrics import Estimate
from edgeprune.noise import (
    disturbance_notes,
    latency_notes,
    machine_notes,
    memory_notes,
    placement_notes,
    width_notes,
)
from edgeprune.target import Runtime


def _machine(load: float | None, governor: str | None, threads: int) -> list[str]:
    environment = {"load_average": load, "cores": 4, "governor": governor}
    return machine_notes(environment, Runtime(threads=threads))


@pytest.mark.parametrize(
    ("machine", "note"),
    [
        ((2.1, None, 1), "The load average was 2.1 on 4 cores: end other work and measure again."),
        (
            (None, "powersave", 1),
            "The CPU governor is 'powersave': set it to 'performance' for steady clocks.",
        ),
        ((0.0, None, 5), "5 threads share 4 cores: set runtime.threads to 4 or less."),
    ],
)
def test_machine(machine: tuple[Any, ...], note: str) -> None:
    assert _machine(*machine) == [note]


def test_quiet_machine() -> None:
    assert _machine(1.9, "performance", 4) == []


@pytest.mark.parametrize(("quota", "threads", "notes"), [(None, 4, 0), (2.0, 2, 0), (1.5, 2, 1), (0.5, 1, 1)])
def test_quota_below_the_threads(quota: float | None, threads: int, notes: int) -> None:
    environment = {"load_average": 0.0, "cores": 4, "governor": None, "cpu_quota": quota}
    found = machine_notes(environment, Runtime(threads=threads))
    assert len(found) == notes
    if found:
        assert found[0].startswith(
            f"A control group allows {quota:g} CPUs, fewer than the threads ({threads}): "
        )


@pytest.mark.parametrize(
    ("name", "harmless", "harmful", "note"),
    [
        ("steal_share", 0.02, 0.031, "The hypervisor gave 3.1% of the processor's time to other machines: "),
        ("others_cpus", 2.0, 2.5, "Other processes kept 2.5 of 4 cores busy during the timed runs: end them"),
        ("throttled_share", 0.01, 0.2, "A control group's CPU quota held the timed runs up for 20.0% of the"),
        ("thermal_events", 0, 3, "The processor slowed itself down for heat 3 times during the timed runs: "),
    ],
)
def test_what_came_between(name: str, harmless: float, harmful: float, note: str) -> None:
    assert disturbance_notes({"cores": 4}) == []
    assert disturbance_notes({"cores": 4, name: None}) == []
    assert disturbance_notes({"cores": 4, name: harmless}) == []
    (found,) = disturbance_notes({"cores": 4, name: harmful})
    assert found.startswith(note)


NARROW, WIDE = Estimate(1.0, 0.97, 1.03), Estimate(1.0, 0.9, 1.1, more_runs=40)


@pytest.mark.parametrize(
    ("estimate", "processes", "stopped", "note"),
    [
        (NARROW, 10, "narrow", None),
        (NARROW, 10, "processes", None),
        (None, 30, "processes", None),
        (NARROW, 4, "processes", "Only 4 processes were timed, since no more were asked for: ask for more "
         "(at least 10 processes) or end other work."),
        (WIDE, 6, "budget", "Only 6 processes were timed, since the 20 s were spent, and the interval is "
         "wider than 3% to either side: allow more time (at least 10 processes) or end other work."),
        (WIDE, 30, "budget", "30 processes were timed, since the 20 s were spent, and the interval is wider "
         "than 3% to either side: allow more time (about 40 processes would do) or end other work."),
        (WIDE, 30, "processes", "30 processes were timed, since no more were asked for, and the interval"),
    ],
)  # fmt: skip
def test_interval_that_could_be_better(
    estimate: Estimate | None, processes: int, stopped: str, note: str | None
) -> None:
    found = width_notes(estimate, processes, stopped, 20.0)
    assert len(found) == (note is not None)
    assert not note or found[0].startswith(note)


def _processes(step: float) -> list[list[float]]:
    return [[1 + step * process] * 20 for process in range(10)]


@pytest.mark.parametrize(("step", "text"), [(0.01, "went up by 7%"), (-0.01, "went down by 7%")])
def test_drift(step: float, text: str) -> None:
    (note,) = latency_notes("a.onnx", _processes(step))
    assert note.startswith(
        f"a.onnx: latency {text} from the first to the last processes: let the device cool"
    )


@pytest.mark.parametrize("step", [0.0, 0.006, -0.006])
def test_little_drift_is_no_note(step: float) -> None:
    assert latency_notes("a.onnx", _processes(step)) == []


def test_drift_needs_three_processes() -> None:
    assert latency_notes("a.onnx", [[1.0], [2.0]]) == []


def test_disturbed_runs() -> None:
    steady = [[1.0] * 99 + [1.9]] * 2
    assert latency_notes("a.onnx", steady) == []
    assert latency_notes("a.onnx", [[1.0] * 99 + [2.1]] * 2) == [], "one in a hundred is no news"
    (note,) = latency_notes("a.onnx", [[1.0] * 98 + [2.1] * 2] * 2)
    assert note.startswith("a.onnx: 2.0% of the runs took over 2 times the median: something else used")


def test_memory_that_does_not_repeat() -> None:
    assert memory_notes("a.onnx", []) == []
    assert memory_notes("a.onnx", [5_000_000, 6_000_000, 5_500_000]) == []
    (note,) = memory_notes("a.onnx", [5_000_000, 6_200_000, 5_500_000])
    assert note.startswith("a.onnx: peak memory differs by 1.2 MB between processes: take it")


def test_nodes_left_to_the_cpu() -> None:
    left = [
        {"name": name, "op_type": op_type} for name, op_type in (("a", "Add"), ("b", "Relu"), ("c", "Relu"))
    ]
    assert placement_notes("a.onnx", "NewProvider", []) == []
    (note,) = placement_notes("a.onnx", "NewProvider", left)
    assert note.startswith("a.onnx: NewProvider left 3 nodes to the CPU (2 Relu, 1 Add): ")
