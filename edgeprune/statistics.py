"""Estimates from timings of several processes, with intervals that may be believed. Device side: no scipy.

Runs of one process are not independent: where the allocator put the weights, or what else the processor did,
shifts all of them together. An interval from resampling runs is therefore far too narrow (it covers the truth
in 50 to 70 % of repeats where 95 % is claimed). Here the process is the unit: one figure per process, and a
t interval over the logs of those figures (a ratio and a time are positive, and their errors multiply).

    half width = t(0.975, h - 1) * sqrt(pi / 2) * s_w * sqrt(P - 1) / sqrt(h * (h - 1)) * d,   h = P - 2 g

It is Yuen's interval for a trimmed mean: the g = P // 5 lowest and highest of P processes count as their
neighbours (s_w is the standard deviation after that), so that one process beside somebody else's work does
not decide. The centre is a median, whose standard error is up to sqrt(pi / 2) times that of a mean.

Processes follow one another, and a machine that drifts makes neighbours alike, so that they tell less than as
many strangers. d = sqrt((1 + r) / (1 - r)) makes up for that, with r in 0..0.9 the correlation of neighbours,
corrected for the few processes that it comes from.

Measuring until an interval is narrow stops by preference where chance has made it narrow, and what it then
says would cover too seldom. Two things keep that harmless: it is looked at from the 10th process on only, and
"narrow" is the smallest difference that is ever claimed, below which no interval is reported anyway. The
tests hold the coverage against simulated machines, drift included, with this rule and without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeprune.metrics import Estimate

CONFIDENCE = 0.95
# Fewer processes say too little about their own spread.
MIN_PROCESSES = 10
# No measurement stops by itself before so many: a machine drifts, and twice the time repeats better (ten
# repeats of ResNet-18 spread by 2.35 %, cut to their first or last ten processes by 2.55 and 2.89 %).
ENOUGH_PROCESSES = 20
# The smallest difference that is claimed. It stands for what more processes cannot average out: the choice of
# how many runs to throw away after a switch of models alone moves a ratio by 3 %.
MINIMAL_CLAIM = 0.03
# Percentile -> samples below which it is not reported, since single runs would decide it.
MIN_SAMPLES = {50: 11, 90: 64, 95: 130, 99: 662}

FLOOR = math.log1p(MINIMAL_CLAIM)
_MEDIAN_FACTOR = math.sqrt(math.pi / 2)
# Quantile 0.975 of Student's t for 1, 2, 3 ... 10 degrees of freedom; above that the series is exact enough.
_T_TABLE = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

Pairs = Sequence[Sequence[tuple[float, float]]]


def ratio_estimate(pairs_by_process: Pairs, *, floor: float = FLOOR) -> Estimate:
    """Estimate slim / dense from interleaved pairs.

    The value is the median of all pair ratios: both runs of a pair met the same state of the machine, and a
    disturbed pair does not move a median. The interval is clustered by process and never narrower than
    ``MINIMAL_CLAIM`` to either side, so that a ratio nearer to 1 than that is never called a difference.

    Args:
        pairs_by_process: For each process its pairs (slim, dense) in seconds.
        floor: In logs the interval reaches at least so far to either side; 0 for who applies the claim later.

    Returns:
        The ratio with its 95 % interval; ``more_runs`` counts processes.

    Raises:
        ValueError: Fewer than two processes, or a process without pairs.

    Example:
        >>> round(ratio_estimate([[(1.0, 2.0), (1.1, 2.0)], [(1.0, 2.0), (0.9, 2.0)]]).value, 3)
        0.5
    """
    ratios = [[slim / dense for slim, dense in pairs] for pairs in pairs_by_process]
    _check(ratios)
    value = float(np.median(np.concatenate(ratios)))
    return clustered(value, [float(np.median(process)) for process in ratios], floor=floor)


def percentile_estimate(samples_by_process: Sequence[Sequence[float]], q: float) -> Estimate | None:
    """Estimate a percentile of latency over all runs of all processes.

    Args:
        samples_by_process: For each process its samples, in seconds.
        q: Percentile in 0..100.

    Returns:
        The percentile with its 95 % interval over processes; None if there are fewer samples in all than
        ``min_samples(q)``.

    Raises:
        ValueError: Fewer than two processes, or a process without samples.
    """
    _check(samples_by_process)
    if sum(len(samples) for samples in samples_by_process) < min_samples(q):
        return None
    value = float(np.percentile(np.concatenate(samples_by_process), q))
    return clustered(value, [float(np.percentile(samples, q)) for samples in samples_by_process])


def percentile_ratio_estimate(
    slim_by_process: Sequence[Sequence[float]],
    dense_by_process: Sequence[Sequence[float]],
    q: float,
    *,
    floor: float = FLOOR,
) -> Estimate | None:
    """Estimate slim / dense of a percentile of latency.

    A high percentile has no pairs: the slow runs of the two networks are not neighbours. Its ratio is taken
    in each process, where both met the same state of the machine, and the value is the median over processes:
    over all runs together a single disturbed process would decide it, and no interval from ten would cover
    that. It is never narrower than ``MINIMAL_CLAIM`` to either side.

    Args:
        slim_by_process: For each process the slim network's samples, in seconds.
        dense_by_process: The dense network's in the same processes.
        q: Percentile in 0..100.
        floor: As of ``ratio_estimate``.

    Returns:
        The ratio with its 95 % interval; None if a network has fewer samples than ``min_samples(q)``.

    Raises:
        ValueError: Fewer than two processes, or a process without samples.
    """
    sides = (slim_by_process, dense_by_process)
    for side in sides:
        _check(side)
        if sum(map(len, side)) < min_samples(q):
            return None
    both = zip(*([float(np.percentile(one, q)) for one in side] for side in sides), strict=True)
    ratios = [slim / dense for slim, dense in both]
    return clustered(float(np.median(ratios)), ratios, floor=floor)


def median_estimate(figures: Sequence[float]) -> Estimate:
    """Estimate the median of a figure of which each process gives one, e.g. the time to load.

    Raises:
        ValueError: Fewer than two processes.
    """
    _check([[figure] for figure in figures])
    return clustered(float(np.median(figures)), figures)


def is_narrow(estimate: Estimate, processes: int) -> bool:
    """Whether more processes would add nothing: there are enough, and nothing narrower is ever claimed."""
    return processes >= ENOUGH_PROCESSES and estimate.more_runs is None


def min_samples(q: float) -> int:
    """How many samples a percentile needs.

    Raises:
        ValueError: ``q`` is above the highest percentile that has a rule.
    """
    for row, count in MIN_SAMPLES.items():
        if q <= row:
            return count
    raise ValueError(f"percentile {q} is not reported; the highest is {max(MIN_SAMPLES)}")


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t with ``freedom`` degrees of freedom, to 1e-4."""
    if freedom <= len(_T_TABLE):
        return _T_TABLE[freedom - 1]
    z = 1.959964  # Cornish-Fisher series around the normal quantile (Abramowitz and Stegun 26.7.5)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _check(by_process: Sequence[Sequence[float]]) -> None:
    if len(by_process) < 2 or not all(len(samples) for samples in by_process):
        raise ValueError("an interval over processes needs at least two processes with samples")


def clustered(value: float, figures: Sequence[float], floor: float = 0.0) -> Estimate:
    """Put the module's interval around a value.

    Args:
        value: Above 0.
        figures: One of each process, in their order; at least two.
        floor: In logs the interval reaches at least so far to either side.
    """
    half = _half_width(np.log(figures))
    # Width goes as 1 / sqrt(processes).
    more = None if half <= FLOOR else _round_up(len(figures) * (half / FLOOR) ** 2)
    half = max(half, floor)
    return Estimate(value, value * math.exp(-half), value * math.exp(half), CONFIDENCE, more)


def _half_width(logs: NDArray[np.float64]) -> float:
    """Half of the interval of the module's docstring, from one figure per process."""
    processes = len(logs)
    trimmed = processes // 5
    kept = processes - 2 * trimmed
    ordered = np.sort(logs)
    held = np.clip(logs, ordered[trimmed], ordered[processes - 1 - trimmed])
    error = float(np.std(held, ddof=1)) * math.sqrt((processes - 1) / (kept * (kept - 1)))
    return t_quantile(kept - 1) * _MEDIAN_FACTOR * error * _drift_factor(held)


def _drift_factor(logs: NDArray[np.float64]) -> float:
    """By how much the likeness of neighbours widens the interval; ``logs`` in the order of the processes."""
    processes = len(logs)
    off = logs - np.mean(logs)
    square = float(off @ off)
    if processes < MIN_PROCESSES or square == 0.0:  # fewer cannot tell a drift from chance
        return 1.0
    likeness = float(off[1:] @ off[:-1]) / square
    likeness += (1 + 3 * likeness) / processes  # what so few underestimate it by, on average
    likeness = min(max(likeness, 0.0), 0.9)
    return math.sqrt((1 + likeness) / (1 - likeness))


def _round_up(count: float) -> int:
    """To two digits: it is no more exact than that."""
    step = int(10 ** max(0, len(str(math.ceil(count))) - 2))
    return math.ceil(count / step) * step
