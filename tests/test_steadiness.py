"""A busy machine is called noisy and a quiet one is not: samples are planted, and one run is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune import steadiness
from edgeprune.runners.local import LocalRunner
from edgeprune.steadiness import Pair, judge, measure_steadiness, small_network
from edgeprune.target import Runtime

QUIET_MACHINE = {"steal_share": 0.0, "others_cpus": 0.1, "throttled_share": None, "thermal_events": None}
ENVIRONMENT = {"load_average": 0.2, "cores": 4, "governor": "performance"}


def samples(
    *, between: float = 0.005, within: float = 0.01, apart: float = 0.0, off: float = 1.0, processes: int = 9
) -> list[list[Pair]]:
    """Pairs of times in seconds.

    Args:
        between: Deviation of a process's speed, which both copies share.
        within: Of single runs.
        apart: Of the ratio from process to process.
        off: What the ratio is on average.
        processes: How many.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(processes):
        speed, ratio = np.exp(random.normal(0, [between, apart]))
        noise = np.exp(random.normal(0, within, (60, 2)))
        found.append([(1e-3 * speed * ratio * off * a, 1e-3 * speed * b) for a, b in noise])
    return found


def test_a_quiet_machine_is_quiet() -> None:
    found = judge(samples(), [QUIET_MACHINE] * 9, ENVIRONMENT, 5.0)
    assert found.why_noisy == ()
    assert found.quiet
    assert found.wanted == 20
    assert found.spread < 0.05
    assert (found.processes, found.seconds) == (9, 5.0)
    assert found.ratio.low < 1 < found.ratio.high


@pytest.mark.parametrize(
    ("planted", "machine", "environment", "reason"),
    [
        ({"between": 0.2}, {}, {}, "The same network took"),
        ({"apart": 0.2}, {}, {}, "A ratio to 3% would take about"),
        ({"off": 1.2}, {}, {}, "Two copies of one network differ by a factor of 1."),
        ({}, {"steal_share": 0.1}, {}, "The hypervisor gave 10.0%"),
        ({}, {"others_cpus": 3.0}, {}, "Other processes kept 3.0 of 4 cores busy"),
        ({}, {"throttled_share": 0.2}, {}, "A control group's CPU quota held"),
        ({}, {"thermal_events": 1}, {}, "slowed itself down for heat 9 times"),
        ({}, {}, {"load_average": 6.0}, "The load average was 6.0"),
        ({}, {}, {"governor": "powersave"}, "The CPU governor is 'powersave'"),
    ],
)
def test_each_planted_fault_makes_it_noisy(
    planted: dict[str, float], machine: dict[str, float], environment: dict[str, Any], reason: str
) -> None:
    found = judge(samples(**planted), [QUIET_MACHINE | machine] * 9, ENVIRONMENT | environment, 5.0)  # type: ignore[arg-type]
    assert not found.quiet
    assert any(reason in why for why in found.why_noisy)


def test_one_bad_process_is_no_noisy_machine() -> None:
    machines = [QUIET_MACHINE] * 8 + [QUIET_MACHINE | {"others_cpus": 4.0}]
    assert judge(samples(), machines, ENVIRONMENT, 5.0).quiet


class FakeRunner:
    """Answers at once, or takes its time by a fake clock."""

    def __init__(self, clock: list[float], cost_s: float) -> None:
        self.clock, self.cost_s, self.jobs = clock, cost_s, 0

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        assert job == "latency"
        assert models[0].read_bytes() == models[1].read_bytes() == small_network()
        assert options["seconds"] < 1
        self.jobs += 1
        self.clock[0] += self.cost_s
        return {"models": [{"samples_ns": [1_000_000] * 20}] * 2, "machine": QUIET_MACHINE}


@pytest.mark.parametrize(("cost_s", "jobs"), [(0.5, 10), (1.0, 5), (4.0, 3)])
def test_it_ends_within_its_seconds(monkeypatch: pytest.MonkeyPatch, cost_s: float, jobs: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(steadiness.time, "monotonic", lambda: clock[0])
    runner: Any = FakeRunner(clock, cost_s)
    found = measure_steadiness(runner, ENVIRONMENT, 5.0)
    assert (runner.jobs, found.processes, found.seconds) == (jobs, jobs, jobs * cost_s)


def test_for_real() -> None:
    runner = LocalRunner(Runtime())
    found = measure_steadiness(runner, runner.run("environment"), 0.1)
    assert found.processes == 3
    assert 0.5 < found.ratio.value < 2
    assert found.spread >= 0
