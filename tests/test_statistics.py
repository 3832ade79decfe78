"""The intervals must cover as often as they say; a naive one must fail in the same simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgeprune.metrics import Estimate
from edgeprune.statistics import (
    MIN_PROCESSES,
    MINIMAL_CLAIM,
    is_narrow,
    median_estimate,
    min_samples,
    percentile_estimate,
    percentile_ratio_estimate,
    ratio_estimate,
    t_quantile,
)

PROCESSES, PAIRS = 10, 20


def _process_effects(kind: str, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """What shifts all runs of one process together, in logs."""
    if kind == "gauss":
        return rng.normal(0, 0.08, count)
    if kind == "two layouts":  # e.g. the weights are aligned well, or not
        return 0.2 * (rng.random(count) < 0.3) + rng.normal(0, 0.03, count)
    if kind == "disturbed":  # one process in ten ran beside somebody else's work
        return rng.normal(0, 0.05, count) + 0.5 * (rng.random(count) < 0.1)
    return 0.05 * rng.standard_t(3, count)  # heavy tails


def _pairs(kind: str, rng: np.random.Generator, processes: int) -> NDArray[np.float64]:
    """(process, pair, 2) in seconds; the true ratio is near 0.5."""
    ratio = _process_effects(kind, rng, processes)[:, None] + 0.05 * rng.standard_t(3, (processes, PAIRS))
    dense = 0.01 * np.exp(0.1 * rng.standard_normal((processes, PAIRS)))
    return np.stack([0.5 * dense * np.exp(ratio), dense], axis=-1)


def _naive_interval(pairs: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    """The bootstrap that takes all pairs for independent."""
    ratios = (pairs[..., 0] / pairs[..., 1]).ravel()
    medians = np.median(rng.choice(ratios, (200, ratios.size)), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("kind", ["gauss", "two layouts", "heavy tails", "disturbed"])
def test_ratio_interval_covers_where_the_naive_bootstrap_does_not(kind: str) -> None:
    rng = np.random.default_rng(7)
    many = _pairs(kind, rng, 50_000)
    truth = float(np.median(many[..., 0] / many[..., 1]))
    repeats = 200
    ours = naive = 0
    widths = []
    for _ in range(repeats):
        pairs = _pairs(kind, rng, PROCESSES)
        estimate = ratio_estimate([[(a, b) for a, b in process] for process in pairs.tolist()])
        widths.append(estimate.high / estimate.value - 1)
        ours += estimate.low <= truth <= estimate.high
        low, high = _naive_interval(pairs, rng)
        naive += low <= truth <= high
    assert ours / repeats >= 0.90
    assert np.median(widths) < 0.2, "covering by being useless does not count"
    assert naive / repeats <= 0.75


def _until_narrow(figures: NDArray[np.float64]) -> tuple[Estimate, int]:
    """What a measurement says that ends when its interval is narrow, and its number of processes."""
    count = MIN_PROCESSES
    # The median of one figure per process has the same width as the ratio, and is found faster.
    while count < len(figures) and not is_narrow(median_estimate(figures[:count].tolist()), count):
        count += 1
    return ratio_estimate([[(figure, 1.0)] for figure in figures[:count].tolist()]), count


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("likeness", "spread"),
    [
        (0.0, 0.04),
        (0.5, 0.06),
        *(pytest.param(0.0, spread, marks=_SLOW) for spread in (0.02, 0.06, 0.1)),
        *(pytest.param(0.3, spread, marks=_SLOW) for spread in (0.02, 0.04, 0.06, 0.1)),
        *(pytest.param(0.5, spread, marks=_SLOW) for spread in (0.02, 0.04, 0.1)),
    ],
)
def test_ratio_interval_covers_although_it_ends_when_it_is_narrow(likeness: float, spread: float) -> None:
    """Processes differ by ``spread`` and drift: neighbours are alike by ``likeness``. The truth is 1."""
    rng = np.random.default_rng(12)
    repeats, most = 300, 30
    noise = rng.normal(0, spread, (repeats, most))
    logs = noise.copy()
    for process in range(1, most):
        logs[:, process] = likeness * logs[:, process - 1] + math.sqrt(1 - likeness**2) * noise[:, process]
    ends = [_until_narrow(figures) for figures in np.exp(logs)]
    covered = np.mean([found.low <= 1 <= found.high for found, _ in ends])
    assert covered >= 0.90  # with a likeness of 0.6 it is 0.895 at worst, in 20,000 repeats
    if spread <= 0.04 and not likeness:
        assert np.mean([count < most for _, count in ends]) > 0.9, "never ending early would cover too"


def test_ending_at_a_narrow_interval_without_the_two_precautions_covers_too_seldom() -> None:
    # Looked at from the 3rd process on, with an interval of its own width: chance decides when it ends.
    rng = np.random.default_rng(13)
    covered = 0
    for _ in range(300):
        logs = rng.normal(0, 0.06, 30)
        for count in range(3, 31):
            half = 1.96 * float(np.std(logs[:count], ddof=1)) / math.sqrt(count)
            if half <= 0.03:
                break
        covered += abs(float(np.mean(logs[:count]))) <= half
    assert covered / 300 < 0.85


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    figures = np.exp(np.repeat([0.05, -0.05, 0.03, -0.03], 5) + 0.01 * np.sin(np.arange(20)))
    drifting = ratio_estimate([[(figure, 1.0)] for figure in figures])
    mixed = ratio_estimate([[(figure, 1.0)] for figure in np.random.default_rng(0).permutation(figures)])
    assert drifting.high / drifting.value - 1 > 1.5 * (mixed.high / mixed.value - 1)


@pytest.mark.parametrize(
    ("more", "processes", "narrow"), [(None, 20, True), (None, 19, False), (30, 20, False), (30, 50, False)]
)
def test_narrow_is_what_is_never_claimed_narrower(more: int | None, processes: int, narrow: bool) -> None:
    assert is_narrow(Estimate(1.0, 0.97, 1.03, more_runs=more), processes) == narrow


@pytest.mark.parametrize("processes", [2, 3, 5, 9])
def test_few_processes_have_wide_intervals_that_cover(processes: int) -> None:
    rng = np.random.default_rng(14)
    covered = 0
    for _ in range(300):
        found = ratio_estimate([[(math.exp(x), 1.0)] for x in rng.normal(0, 0.08, processes)])
        covered += found.low <= 1 <= found.high
    assert covered / 300 >= 0.90


def test_percentile_interval_covers() -> None:
    rng = np.random.default_rng(8)

    def samples(processes: int) -> NDArray[np.float64]:
        shift = _process_effects("gauss", rng, processes)[:, None]
        return np.asarray(0.01 * np.exp(shift + 0.1 * rng.exponential(1, (processes, PAIRS))))

    for q in (50, 95):
        truth = float(np.percentile(samples(50_000), q))
        covered = 0
        for _ in range(200):
            estimate = percentile_estimate(samples(PROCESSES).tolist(), q)
            assert estimate is not None
            covered += estimate.low <= truth <= estimate.high
        assert covered / 200 >= 0.90


@pytest.mark.parametrize("kind", ["gauss", "two layouts", "heavy tails", "disturbed"])
def test_interval_of_a_ratio_of_percentiles_covers(kind: str) -> None:
    rng = np.random.default_rng(21)

    def sides(processes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shared = rng.normal(0, 0.1, processes)[:, None]  # what slows both down cancels
        own = _process_effects(kind, rng, processes)[:, None]
        slim = 0.005 * np.exp(shared + own + 0.1 * rng.exponential(1, (processes, 70)))
        dense = 0.01 * np.exp(shared + 0.1 * rng.exponential(1, (processes, 70)))
        return slim, dense

    for q in (90, 95, 99):
        slim, dense = (np.percentile(side, q, axis=1) for side in sides(20_000))
        truth = float(np.median(slim / dense))
        covered, widths = 0, []
        for _ in range(200):
            found = percentile_ratio_estimate(*sides(PROCESSES), q)  # type: ignore[arg-type]
            assert found is not None
            covered += found.low <= truth <= found.high
            widths.append(found.high / found.value - 1)
        assert covered / 200 >= 0.90, (q, covered)
        assert np.median(widths) < 0.4, "covering by being useless does not count"


def test_a_ratio_of_percentiles_is_never_exact_and_not_decided_by_one_process() -> None:
    slim = [[float(run) for run in range(1, 101)]] * 7
    dense = [[2 * run for run in process] for process in slim]
    found = percentile_ratio_estimate(slim, dense, 99)
    assert found is not None
    assert found.value == 0.5
    assert found.high / found.value == pytest.approx(1 + MINIMAL_CLAIM)
    one_off = percentile_ratio_estimate([*slim[:6], [9.0 * run for run in slim[0]]], dense, 99)
    assert one_off is not None
    assert one_off.value == 0.5
    assert percentile_ratio_estimate(slim[:6], dense[:6], 99) is None
    assert percentile_ratio_estimate(slim, dense[:6], 99) is None
    with pytest.raises(ValueError, match="at least two processes"):
        percentile_ratio_estimate(slim[:1], dense[:1], 50)


def test_value_is_the_median_of_all_pair_ratios() -> None:
    estimate = ratio_estimate([[(1.0, 2.0), (3.0, 2.0)], [(2.0, 2.0)], [(8.0, 2.0), (0.2, 2.0)]])
    assert estimate.value == 1.0
    assert estimate.confidence == 0.95


@pytest.mark.parametrize(("ratio", "differs"), [(1.02, False), (0.98, False), (1.05, True), (0.95, True)])
def test_nothing_under_three_percent_is_claimed_however_quiet_the_machine(
    ratio: float, differs: bool
) -> None:
    estimate = ratio_estimate([[(ratio, 1.0)] * 5] * 10)
    assert (estimate.low <= 1 <= estimate.high) != differs
    assert estimate.high / estimate.value == pytest.approx(1 + MINIMAL_CLAIM)
    assert estimate.value / estimate.low == pytest.approx(1 + MINIMAL_CLAIM)
    assert estimate.more_runs is None


def test_one_disturbed_process_of_ten_does_not_decide() -> None:
    rng = np.random.default_rng(10)
    calm = [[(0.5 * math.exp(x), 1.0)] for x in rng.normal(0, 0.01, 10)]
    disturbed = [*calm[:9], [(2.0, 1.0)]]
    assert ratio_estimate(disturbed).high < 0.55
    assert ratio_estimate(disturbed[-4:]).high > 1, "of four processes one outlier may well be the truth"


def test_more_runs_is_about_what_it_takes() -> None:
    rng = np.random.default_rng(9)

    def estimate(processes: int) -> tuple[float, int | None]:
        found = ratio_estimate([[(math.exp(x), 1.0)] for x in rng.normal(0, 0.1, processes)])
        return found.high / found.value - 1, found.more_runs

    width, more = estimate(10)
    assert width > MINIMAL_CLAIM
    assert more is not None
    assert more > 10
    assert estimate(2 * more)[1] is None
    assert estimate(more // 4)[1] is not None


@pytest.mark.parametrize(("q", "needed"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_percentile_is_refused_below_its_sample_count(q: float, needed: int) -> None:
    assert min_samples(q) == needed
    few = [[1.0] * (needed // 2), [1.0] * (needed - needed // 2 - 1)]
    assert percentile_estimate(few, q) is None
    enough = [few[0], [*few[1], 1.0]]
    assert percentile_estimate(enough, q) is not None


def test_percentiles_above_the_highest_rule_are_an_error() -> None:
    with pytest.raises(ValueError, match="the highest is 99"):
        min_samples(99.9)


def test_percentile_pools_all_runs() -> None:
    estimate = percentile_estimate([[float(i) for i in range(1, 101)]] * 2, 90)
    assert estimate is not None
    assert estimate.value == pytest.approx(np.percentile([*range(1, 101)] * 2, 90))
    assert estimate.low == pytest.approx(estimate.value)  # processes agree, and times have no floor


def test_median_of_one_figure_per_process() -> None:
    estimate = median_estimate([1.0, 1.1, 1.2])
    assert estimate.value == 1.1
    assert estimate.low < 1.0
    assert estimate.high > 1.2


def test_t_quantiles_agree_with_scipy() -> None:
    for freedom in [*range(1, 60), 100, 1000, 100_000]:
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


@pytest.mark.parametrize("pairs", [[], [[(1.0, 1.0)]], [[(1.0, 1.0)], []]])
def test_one_process_is_no_cluster(pairs: list[list[tuple[float, float]]]) -> None:
    with pytest.raises(ValueError, match="at least two processes"):
        ratio_estimate(pairs)
