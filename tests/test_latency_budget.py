"""The search for a latency, on devices that are made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from edgeprune.errors import MeasurementError, PlanError
from edgeprune.latency_budget import FULL, QUICK, Candidate, LatencySearch, Trial
from edgeprune.metrics import Estimate

COUNT = 60


def candidates(count: int = COUNT) -> list[Candidate]:
    """From nearly dense to 0.1 of the MACs; thresholds go up as MACs go down."""
    return [Candidate(k / 10, 1 - 0.9 * (k + 1) / count) for k in range(count)]


class Device:
    """Latency by MACs, with a relative error for each measurement and an interval of some width."""

    def __init__(
        self,
        latency: Callable[[float], float],
        *,
        error: float = 0.0,
        half_width: float = 0.03,
        seed: int = 0,
    ) -> None:
        self.latency, self.error, self.half_width = latency, error, half_width
        self.random = random.Random(seed)
        self.asked: list[tuple[float, bool]] = []

    def measure(self, candidate: Candidate, full: bool) -> Estimate:
        self.asked.append((candidate.macs_ratio, full))
        noise = self.error * (0.4 if full else 1.0)
        value = self.latency(candidate.macs_ratio) * math.exp(self.random.gauss(0, noise))
        half = self.half_width * (1 if full else 2)
        return Estimate(value, value * math.exp(-half), value * math.exp(half))


def search(
    device: Device, limit: float, *, largest: int = 0, line: list[Candidate] | None = None
) -> LatencySearch:
    line = line or candidates()

    def at_most(macs_ratio: float) -> Candidate:
        return next(one for one in line if one.macs_ratio <= macs_ratio)

    return LatencySearch(limit, line[largest], line[-1], at_most, device.measure)


def linear(macs: float) -> float:
    return 0.2 + 0.8 * macs


def steps(macs: float) -> float:
    """As a device that pads widths: flat, then a jump."""
    return 0.15 + 0.85 * math.ceil(macs * 6) / 6


@pytest.mark.parametrize("latency", [linear, lambda m: m, lambda m: 0.3 + 0.7 * m**2, lambda m: m**0.5])
@pytest.mark.parametrize("limit", [0.8, 0.6, 0.45])
def test_a_quiet_device_takes_few_measurements(latency: Callable[[float], float], limit: float) -> None:
    device = Device(latency)
    made = search(device, limit)
    found = made.run()
    assert found.full
    assert found.ratio.high <= limit
    assert found.ratio.value > limit * 0.9
    assert len(made.trials) <= 8
    # Among what was not chosen there is no much larger one that would do.
    fits = max(one.macs_ratio for one in candidates() if latency(one.macs_ratio) * math.exp(0.03) <= limit)
    assert latency(found.candidate.macs_ratio) >= 0.92 * latency(fits)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("latency", [linear, steps])
def test_a_noisy_device(latency: Callable[[float], float], seed: int) -> None:
    device = Device(latency, error=0.03, half_width=0.05, seed=seed)
    made = search(device, 0.6)
    found = made.run()
    assert found.ratio.high <= 0.6
    assert 0.4 < latency(found.candidate.macs_ratio) <= 0.6
    assert sum(trial.full for trial in made.trials) <= FULL
    assert sum(not trial.full for trial in made.trials) <= QUICK


def test_the_same_measurements_choose_the_same_network() -> None:
    first, second = (search(Device(linear, error=0.05, seed=3), 0.6) for _ in range(2))
    assert first.run() == second.run()
    assert first.trials == second.trials


def test_nothing_above_a_slow_network_is_tried_again() -> None:
    """Latency goes down again above 0.7 of the MACs: who looks there finds luck, not a rule."""
    device = Device(lambda macs: 0.9 if 0.3 < macs < 0.7 else linear(macs) * (0.5 if macs >= 0.7 else 1.0))
    made = search(device, 0.5)
    made.run()
    slow = math.inf
    for trial in made.trials:
        assert trial.candidate.macs_ratio < slow
        if trial.ratio.value > 0.5 and not trial.full:
            slow = trial.candidate.macs_ratio
    assert slow < math.inf


def test_a_full_measurement_that_fails_moves_the_aim() -> None:
    """Few processes flatter each network by 8 %; without the move each confirmation would fail."""

    class Flattering(Device):
        def measure(self, candidate: Candidate, full: bool) -> Estimate:
            found = super().measure(candidate, full)
            return found if full else Estimate(found.value * 0.92, found.low * 0.92, found.high)

    made = search(Flattering(linear), 0.6)
    found = made.run()
    assert found.ratio.high <= 0.6
    assert [trial.ratio.high <= 0.6 for trial in made.trials if trial.full] == [False, True]


def test_a_wide_interval_is_answered_with_a_smaller_network() -> None:
    narrow, wide = (search(Device(linear, half_width=half), 0.6).run() for half in (0.03, 0.1))
    assert wide.ratio.high <= 0.6
    assert wide.candidate.macs_ratio < narrow.candidate.macs_ratio


def test_one_that_is_far_below_makes_room_for_a_larger_one() -> None:
    """The first figure of each network is 15 % too high: in full it is far below the budget."""

    class Harsh(Device):
        def measure(self, candidate: Candidate, full: bool) -> Estimate:
            found = super().measure(candidate, full)
            many = len(self.asked) > 4
            return found if full or many else Estimate(found.value * 1.15, found.low, found.high * 1.15)

    made = search(Harsh(linear), 0.6)
    found = made.run()
    confirmed = [
        trial.candidate.macs_ratio for trial in made.trials if trial.full and trial.ratio.high <= 0.6
    ]
    assert found.candidate.macs_ratio == max(confirmed)


def test_other_budgets_bound_the_search() -> None:
    device = Device(linear)
    line = candidates()
    made = search(device, 0.9, largest=40)
    assert made.run().candidate == line[40]
    assert all(macs <= line[40].macs_ratio for macs, _ in device.asked)


def test_one_candidate_alone() -> None:
    line = [Candidate(0.0, 0.5)]
    assert search(Device(linear), 0.7, line=line).run().candidate == line[0]
    with pytest.raises(MeasurementError, match=r"0\.600 \[0\.582, 0\.618\] at 0\.500 of the MACs"):
        search(Device(linear), 0.61, line=line).run()


def test_a_budget_out_of_reach_says_what_was_reached() -> None:
    device = Device(linear)
    with pytest.raises(
        PlanError,
        match=r"could not reach the budget: max_latency_ratio is 0\.2, expected at least 0\.289: the "
        r"smallest network, 0\.100 of the MACs, takes 0\.280 \[0\.272, 0\.289\] of dense's time",
    ):
        search(device, 0.2).run()
    # Said only after a full measurement of that network.
    assert device.asked == [(pytest.approx(0.1), False), (pytest.approx(0.1), True)]


def test_a_budget_that_straddles_the_smallest_network_cannot_be_told() -> None:
    with pytest.raises(MeasurementError, match="could not tell which network keeps to the budget") as raised:
        search(Device(linear), 0.281).run()
    assert raised.value.exit_code == 3
    assert "at 0.100 of the MACs" in str(raised.value)


def test_a_disturbed_first_figure_does_not_refuse_the_smallest_network() -> None:
    class Disturbed(Device):
        def measure(self, candidate: Candidate, full: bool) -> Estimate:
            found = super().measure(candidate, full)
            return found if full else Estimate(found.value * 2, found.low * 2, found.high * 2)

    found = search(Disturbed(linear), 0.3).run()
    assert found.candidate == candidates()[-1]
    assert found.ratio.high <= 0.3


def test_trials_are_json() -> None:
    trial = Trial(Candidate(0.5, 0.25), Estimate(0.4, 0.39, 0.41), True)
    assert trial.to_json() == {
        "threshold": 0.5, "macs_ratio": 0.25, "latency_ratio": 0.4, "low": 0.39, "high": 0.41, "full": True,
    }  # fmt: skip
