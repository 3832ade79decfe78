"""The largest network that is fast enough, found by measuring candidates on the target.

Candidates lie on one line, ordered by their MACs: a global threshold on the scores gives each. Latency along
that line is noisy and does not always fall with the MACs, so the search

1. measures the smallest candidate, which says at once whether the budget is within reach;
2. takes latency for a + b MACs between the two measured candidates around the aim, and measures the largest
   one that this line puts below it, until one is within ``SLACK`` of the aim (few processes each);
3. measures the one that it has found in full, and keeps it if the whole interval is within the budget: what
   ``edgeprune gate`` asks for. If it is not, the aim moves down by what the interval reached too far.

It is monotone: nothing above a candidate that was too slow is tried, and the largest confirmed one stays. If
that one lies far below the budget, what only few processes called too slow is looked at a second time. It
draws nothing at random, so the same measurements choose the same network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from edgeprune.errors import MeasurementError, PlanError
from edgeprune.metrics import Estimate
from edgeprune.statistics import MINIMAL_CLAIM

NAME = "max_latency_ratio"
SLACK = 0.05
"""A candidate this close below the aim is good enough."""
QUICK = 10
"""Most measurements with few processes."""
FULL = 4
"""Most measurements in full, the smallest network's apart."""
MARGIN = (1 + MINIMAL_CLAIM) * 1.01
"""Aim below the budget: an interval reaches at least ``MINIMAL_CLAIM`` up, and its centre scatters."""
INNER = 0.1
"""Share of the bracket at either end that the line may not choose, so that each step shortens it."""


@dataclass(frozen=True)
class Candidate:
    """A network that may be chosen.

    Attributes:
        threshold: On the scores.
        macs_ratio: Multiply-adds, slim / dense.
    """

    threshold: float
    macs_ratio: float


@dataclass(frozen=True)
class Trial:
    """A measured candidate.

    Attributes:
        candidate: The network.
        ratio: Its latency, slim / dense.
        full: Whether it was measured in full.
    """

    candidate: Candidate
    ratio: Estimate
    full: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return {
            **vars(self.candidate),
            "latency_ratio": self.ratio.value,
            "low": self.ratio.low,
            "high": self.ratio.high,
            "full": self.full,
        }


DENSE = Trial(Candidate(-1.0, 1.0), Estimate(1.0, 1.0, 1.0), True)
"""The network itself, by definition."""


class LatencySearch:
    """See the module.

    Args:
        limit: Largest latency, slim / dense.
        largest: The largest candidate that the other budgets let through.
        smallest: The smallest candidate.
        at_most: The largest candidate with at most so many MACs, slim / dense.
        measure: Latency of a candidate, slim / dense; in full or with few processes.
    """

    def __init__(
        self,
        limit: float,
        largest: Candidate,
        smallest: Candidate,
        at_most: Callable[[float], Candidate],
        measure: Callable[[Candidate, bool], Estimate],
    ) -> None:
        self.limit, self.largest, self.smallest = limit, largest, smallest
        self.at_most, self._measure = at_most, measure
        self.trials: list[Trial] = []
        self.margin = MARGIN
        self.slow = DENSE
        self.confirmed: Trial | None = None

    @property
    def most(self) -> int:
        """Most measurements."""
        return QUICK + FULL

    @property
    def aim(self) -> float:
        """Where a candidate's measured latency should lie, or a little below."""
        return self.limit / self.margin

    def run(self) -> Trial:
        """Search.

        Raises:
            PlanError: Even the smallest network is too slow.
            MeasurementError: No network could be shown to be fast enough, though one may be.
        """
        least = self.measure(self.smallest, full=False)
        if least.ratio.low > self.limit:
            least = self.measure(self.smallest, full=True)
            if least.ratio.low > self.limit:
                raise self._unreached(least)
        if self.largest.macs_ratio <= self.smallest.macs_ratio:
            return self._confirm(least) or self._give_up()
        while self._count(full=True) < FULL:
            found = self._approach()
            self._confirm(found)
            if found.full:
                break  # it was known, and there is nothing new above it
            kept = self.confirmed
            if kept is None and found.candidate == self.smallest:
                break
            if kept is not None and (kept.ratio.value >= self.aim * (1 - SLACK) or not self._room()):
                break
        return self.confirmed or self._give_up()

    def measure(self, candidate: Candidate, *, full: bool) -> Trial:
        """Measure a candidate and note it."""
        trial = Trial(candidate, self._measure(candidate, full), full)
        self.trials.append(trial)
        return trial

    def best(self) -> Trial:
        """The largest measured candidate below the slow ones whose latest figure is within the aim."""
        latest = {trial.candidate: trial for trial in self.trials}
        within = [
            trial
            for trial in latest.values()
            if trial.candidate.macs_ratio < self.slow.candidate.macs_ratio
            and (trial.ratio.value <= self.aim or trial.candidate == self.smallest)
        ]
        return max(within, key=lambda trial: trial.candidate.macs_ratio)

    def _approach(self) -> Trial:
        """Measure candidates with few processes until one is close below the aim."""
        while self._count(full=False) < QUICK:
            best, candidate = self.best(), self._next()
            if candidate is None or best.ratio.value >= self.aim * (1 - SLACK):
                break
            trial = self.measure(candidate, full=False)
            if trial.ratio.value > self.aim:
                self.slow = trial
        return self.best()

    def _next(self) -> Candidate | None:
        """The candidate that the line between the best and the slowest of the fast ones points at.

        None if no candidate lies between the two.
        """
        below, above = self.best(), self.slow
        low, high = below.candidate.macs_ratio, above.candidate.macs_ratio
        rise = above.ratio.value - below.ratio.value
        # In the middle of what is close enough: at its edge half of the candidates would just miss it.
        middle = self.aim * (1 - SLACK / 2)
        share = (middle - below.ratio.value) / rise if rise > 0 else 0.5
        wanted = low + (high - low) * min(1 - INNER, max(INNER, share))
        tops = (wanted, high - 1e-12)  # if none lies that low, any that is in between
        for top in tops:
            found = self.at_most(min(top, self.largest.macs_ratio))
            if low < found.macs_ratio < high:
                return found
        return None

    def _confirm(self, trial: Trial) -> Trial | None:
        """Measure in full; the network counts only if the whole interval is within the budget."""
        quick = trial.ratio.value
        if not trial.full:
            trial = self.measure(trial.candidate, full=True)
        if trial.ratio.high <= self.limit:
            kept = self.confirmed
            if kept is None or trial.candidate.macs_ratio > kept.candidate.macs_ratio:
                self.confirmed = trial
        elif trial.candidate.macs_ratio < self.slow.candidate.macs_ratio:
            self.slow = trial
            # Where the figure of few processes would have to lie for such an interval to fit.
            self.margin = max(self.margin, trial.ratio.high / quick)
        return self.confirmed

    def _room(self) -> bool:
        """Whether there may be a larger network than one that was confirmed far below the budget.

        If none is left in between, the one that few processes called too slow gets a second look, in full.
        """
        if self._next() is not None:
            return True
        if self.slow.full or self.slow.ratio.low > self.limit or self._count(full=True) >= FULL:
            return False
        second, self.slow = self.slow, DENSE
        if self._confirm(second) is None or self.slow is not DENSE:
            return False
        above = [trial for trial in self.trials if trial.candidate.macs_ratio > second.candidate.macs_ratio]
        self.slow = min([*above, DENSE], key=lambda trial: trial.candidate.macs_ratio)
        return self._next() is not None

    def _count(self, *, full: bool) -> int:
        return sum(trial.full == full for trial in self.trials)

    def _unreached(self, least: Trial) -> PlanError:
        ratio = least.ratio
        return PlanError(
            "could not reach the budget",
            where=NAME,
            value=self.limit,
            expected=f"at least {ratio.high:.3f}: the smallest network, {least.candidate.macs_ratio:.3f} of "
            f"the MACs, takes {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of dense's time",
            hint="Lower min_channels or channel_multiple, keep fewer groups, or take a smaller network.",
        )

    def _give_up(self) -> NoReturn:
        tried = [trial for trial in self.trials if trial.full]
        texts = [
            f"{t.ratio.value:.3f} [{t.ratio.low:.3f}, {t.ratio.high:.3f}] at {t.candidate.macs_ratio:.3f} of "
            "the MACs"
            for t in tried
        ]
        raise MeasurementError(
            "could not tell which network keeps to the budget",
            where=NAME,
            value=f"{self.limit}, and in full measurements were found: {'; '.join(texts)}",
            expected="a network whose whole interval is below it",
            hint="End other work on the device and try again.",
        )
