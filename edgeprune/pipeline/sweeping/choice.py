"""What comes out of a sweep: the fronts, and the smallest artifact that passes all budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import RunError
from edgeprune.files import read_json
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.metrics import GATED, Estimate
from edgeprune.pipeline.sweeping.folder import Failure, SweepFolder
from edgeprune.pipeline.sweeping.points import Point
from edgeprune.report.front import DENSE, FrontPoint, front_of
from edgeprune.verdict import Verdict, exit_code, verdicts_from_json

SHOWN = ("size", "macs", "params", "accuracy", "latency_p50", "latency_ratio")
"""Metrics that a sweep tells of each point."""
COSTS = ("size", "macs", "latency_ratio")
"""Metrics that a front is drawn over."""
SMALLEST = "bytes of the ONNX file, then median latency, then multiply-adds"
"""Which of several is the smallest."""
STATES = {0: "passed", 1: "failed", 3: "cannot tell"}
ERROR = "error"
ONE_POINT = 0.01
"""What a miss of a budget of 0 is held against: one percentage point, or a hundredth."""


@dataclass(frozen=True)
class Measured:
    """A point with what was measured of it.

    Attributes:
        point: Of the plan.
        failure: Why there is nothing, or None.
        measurement: Beside the dense network; None if it failed.
        verdicts: One for each budget.
    """

    point: Point
    failure: Failure | None
    measurement: Measurement | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def state(self) -> str:
        """``"passed"``, ``"failed"``, ``"cannot tell"`` or ``"error"``."""
        return ERROR if self.measurement is None else STATES[exit_code(self.verdicts)]

    @property
    def missed_by(self) -> float:
        """The largest miss of a budget, as a share of its limit; infinite where something is unmeasured."""
        return max((miss_of(verdict) for verdict in self.verdicts), default=0.0)


@dataclass(frozen=True)
class Outcome:
    """What came out.

    Attributes:
        points: All of the plan.
        best: The smallest that passes; None: none does.
        closest: If none does, the one that misses by least.
    """

    points: tuple[Measured, ...]
    best: Measured | None
    closest: Measured | None

    @property
    def dense(self) -> Measurement | None:
        """The dense network, as measured beside the first point."""
        return next((one.measurement.baseline for one in self.points if one.measurement), None)

    @property
    def exit_code(self) -> int:
        """That of a point's error if there is one, else 0 if one passes, 3 if one might, 1 if none does."""
        failures = [one.failure.exit_code for one in self.points if one.failure]
        if failures:
            return min(failures)
        if self.best:
            return 0
        return 3 if any(one.state == STATES[3] for one in self.points) else 1


def miss_of(verdict: Verdict) -> float:
    """By how much a budget is missed, as a share of its limit; 0 if it is met."""
    if exit_code([verdict]) == 0:
        return 0.0
    if verdict.margin is None:
        return math.inf
    return abs(min(verdict.margin, 0.0)) / (abs(verdict.limit) or ONE_POINT)


def outcome_of(folder: SweepFolder) -> Outcome:
    """Read what the runs of a sweep have written, and choose.

    Raises:
        EdgepruneError: A file of a run is broken.
    """
    points = tuple(_measured(folder, point) for point in folder.plan.points())
    passed = [one for one in points if one.state == STATES[0]]
    missed = [one for one in points if one.measurement]
    best = min(passed, key=_size, default=None)
    closest = min(missed, key=lambda one: (one.missed_by, _size(one)), default=None)
    return Outcome(points, best, None if best else closest)


def _measured(folder: SweepFolder, point: Point) -> Measured:
    failure = folder.failures.get(point.name)
    if failure:
        return Measured(point, failure)
    run = folder.run_path(point.name)
    verdicts = verdicts_from_json(read_json(run / "verdicts.json", RunError, "verdicts"))
    return Measured(point, None, load_measurement(run / "measurement.json"), verdicts)


def _size(one: Measured) -> tuple[float, ...]:
    """Less is smaller; what was not measured comes last."""
    assert one.measurement is not None
    values = (one.measurement.value(metric) for metric in ("size", "latency_p50", "macs"))
    return tuple(
        math.inf if value is None else value.value if isinstance(value, Estimate) else value
        for value in values
    )


def front_points(outcome: Outcome) -> tuple[FrontPoint, ...]:
    """The points, and the dense network, as they are drawn."""
    found = []
    if outcome.dense:
        values = {name: outcome.dense.value(name) for name in SHOWN}
        values["latency_ratio"] = None if values["latency_p50"] is None else 1.0
        found.append(FrontPoint(DENSE, DENSE, DENSE, values))
    for one in outcome.points:
        if one.measurement:
            values = {name: one.measurement.value(name) for name in SHOWN}
            chosen = outcome.best is one
            found.append(
                FrontPoint(
                    one.point.name, one.point.scheme, f"{one.point.ratio:g}", values, one.state, chosen
                )
            )
    return tuple(found)


def fronts(outcome: Outcome) -> dict[str, list[str]]:
    """Names on the front over each cost, the cheapest first; the dense network stands for "no pruning"."""
    points = front_points(outcome)
    return {cost: [point.name for point in front_of(points, cost)] for cost in COSTS}


def misses(one: Measured) -> tuple[str, ...]:
    """Each budget that a point does not pass, and by how much."""
    return tuple(
        f"{GATED[verdict.metric].text} {verdict.measured_text}, limit {verdict.budget.text}: {verdict.text}"
        for verdict in one.verdicts
        if exit_code([verdict]) != 0
    )


def outcome_to_json(outcome: Outcome, runs: Sequence[str]) -> dict[str, Any]:
    """What came out, as JSON values (numbers in SI units).

    Args:
        outcome: Of a sweep.
        runs: Run folder of each point, as seen from the sweep folder.
    """
    on_front = fronts(outcome)
    dense = outcome.dense
    return {
        "points": [
            {
                "name": one.point.name,
                "scheme": one.point.scheme,
                "ratio": one.point.ratio,
                "run": run,
                "state": one.state,
                "error": one.failure.text if one.failure else None,
                "measured": _values(one.measurement),
                "misses": list(misses(one)),
                "front": [cost for cost, names in on_front.items() if one.point.name in names],
            }
            for one, run in zip(outcome.points, runs, strict=True)
        ],
        "dense": _values(dense),
        "fronts": on_front,
        "smallest_is": SMALLEST,
        "best": outcome.best.point.name if outcome.best else None,
        "closest": outcome.closest.point.name if outcome.closest else None,
        "exit_code": outcome.exit_code,
    }


def _values(measurement: Measurement | None) -> dict[str, Any] | None:
    if measurement is None:
        return None
    values = {name: measurement.value(name) for name in SHOWN}
    return {
        name: {end: _finite(getattr(value, end)) for end in ("value", "low", "high")}
        if isinstance(value, Estimate)
        else value
        for name, value in values.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
