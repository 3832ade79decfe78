"""The gate: does a measurement keep to its budgets? Device side: no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from edgeprune.budget import Budget
from edgeprune.compared import Compared, Earlier
from edgeprune.errors import RunError
from edgeprune.measurement import Measurement
from edgeprune.metrics import GATED, Estimate
from edgeprune.statistics import MINIMAL_CLAIM
from edgeprune.units import Quantity, format_interval, format_quantity

State = Literal["passed", "failed", "unmeasured", "cannot tell", "skipped"]
VERDICTS_FORMAT = 2

# A drop is the difference of two floats, so 0.92 - 0.91 comes out as 0.010000000000000009. All else is exact.
_ROUNDING = 1e-12


class Measured(Protocol):
    """What the gate asks of a measurement."""

    def value(self, metric: str, /) -> float | Estimate | None:
        """The measured value in SI units, None if it was not measured."""

    def why_unmeasured(self, metric: str, /) -> str | None:
        """Why the value is None, as one sentence."""

    def is_out_of_reach(self, metric: str, /) -> bool:
        """Whether the value is None because no measurement on this device could have it."""


@dataclass(frozen=True)
class Verdict:
    """One budget, held against what was measured.

    Attributes:
        budget: The limit.
        measured: In SI units; None if it was not measured or is not a number.
        state: ``"passed"`` if the interval's bad end keeps to the limit, ``"failed"`` if not even its good
            end does, ``"cannot tell"`` in between, ``"unmeasured"`` without a value, but ``"cannot tell"`` if
            no measurement on this device could have one, e.g. latency on a simulator; ``"skipped"``
            without a value if the budget is optional.
        margin: Room left between the point estimate and the limit, in the unit of the metric; negative if the
            limit is missed, None if nothing was measured.
        text: The margin, or the reason, for people.
    """

    budget: Budget
    measured: float | Estimate | None
    state: State
    margin: float | None
    text: str

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.budget.metric

    @property
    def limit(self) -> float:
        """The limit in SI units."""
        return self.budget.limit

    @property
    def measured_text(self) -> str:
        """The measured value for people, with its interval if it has one."""
        return format_measured(self.measured, GATED[self.metric].quantity)


def gate(
    budgets: Iterable[Budget], measurement: Measured, *, release: Earlier | None = None
) -> tuple[Verdict, ...]:
    """Hold a measurement against its budgets.

    A value that is uncertain passes only if all of its interval does, and fails only if none of it does.
    Exactly at the limit passes. What was not measured, or is not a number, never passes.

    Args:
        budgets: Of the target.
        measurement: Of the slim network.
        release: An earlier release, for the budgets against it (``load_release``).

    Returns:
        One verdict for each budget, in their order.
    """
    measured = Compared(measurement, release) if isinstance(measurement, Measurement) else measurement
    return tuple(_judge(budget, measured) for budget in budgets)


def exit_code(verdicts: Iterable[Verdict]) -> Literal[0, 1, 3]:
    """The exit code of the gate: 1 if a budget failed or is unmeasured, else 3 if one cannot be told, else 0.

    One that is skipped counts for nothing.
    Without any budget nothing can fail: 0, and it is for the caller to say that there were none.
    """
    states = {verdict.state for verdict in verdicts}
    if states & {"failed", "unmeasured"}:
        return 1
    return 3 if "cannot tell" in states else 0


def format_measured(measured: float | Estimate | None, quantity: Quantity) -> str:
    """Write a measured value for people: ``"3.07 ms [3.01, 3.12]"``, or ``"not measured"``."""
    if measured is None:
        return "not measured"
    if isinstance(measured, Estimate):
        return format_interval(measured.value, measured.low, measured.high, quantity)
    return format_quantity(measured, quantity)


def _judge(budget: Budget, measurement: Measured) -> Verdict:
    measured = measurement.value(budget.metric)
    if measured is None:
        why = (measurement.why_unmeasured(budget.metric) or "no reason known").rstrip(".")
        if budget.optional:
            return Verdict(budget, None, "skipped", None, f"optional, and not measured: {why}")
        if measurement.is_out_of_reach(budget.metric):
            return Verdict(budget, None, "cannot tell", None, f"could not measure: {why}")
        return Verdict(budget, None, "unmeasured", None, f"not measured: {why}")
    state = _state(budget, measured)
    if state == "unmeasured":
        return Verdict(budget, None, state, None, "the measured value is not a number")
    value = measured.value if isinstance(measured, Estimate) else measured
    margin = budget.limit - value if budget.is_max else value - budget.limit
    return Verdict(budget, measured, state, margin, _text(budget, measured, state, margin))


def _state(budget: Budget, measured: float | Estimate | None) -> State:
    if measured is None:
        return "unmeasured"
    ends: tuple[float, ...] = (measured,) if not isinstance(measured, Estimate) else _ends(measured)
    if not math.isfinite(ends[0]) or any(map(math.isnan, ends)):
        return "unmeasured"
    sign = 1.0 if budget.is_max else -1.0  # so that smaller is better
    limit = sign * budget.limit + (_ROUNDING if GATED[budget.metric].quantity == "drop" else 0.0)
    keeps = [sign * end <= limit for end in ends]
    return "passed" if all(keeps) else "cannot tell" if any(keeps) else "failed"


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    """Value and both ends: an interval that leaves its own value out is widened by it, to be safe."""
    return estimate.value, estimate.low, estimate.high


def _text(budget: Budget, measured: float | Estimate, state: State, margin: float) -> str:
    if state == "cannot tell":
        return _what_would_tell(budget, measured) if isinstance(measured, Estimate) else ""
    room = format_margin(margin, budget)
    if not any(digit in room for digit in "123456789"):
        return "at the limit" if state == "passed" else f"missed by less than {room.replace('0.00', '0.01')}"
    return f"missed by {room}" if state == "failed" else f"{room} to spare"


def _what_would_tell(budget: Budget, measured: Estimate) -> str:
    if measured.more_runs is None:
        return "the limit lies inside the interval, which is as narrow as is ever claimed: too close to tell"
    runs = f"about {measured.more_runs} processes in all"
    if abs(measured.value - budget.limit) <= MINIMAL_CLAIM * abs(measured.value):  # inside even the narrowest
        return f"the limit lies inside the interval, and {runs} may still be too few: it is very close"
    return f"the limit lies inside the interval; {runs} would tell"


def format_margin(margin: float, budget: Budget, *, signed: bool = False) -> str:
    """Write a margin for people: ``"0.31 ms (2.6 %)"``, the percentage being of the limit.

    Args:
        margin: As in ``Verdict.margin``.
        budget: Its budget.
        signed: Write the sign and no percentage; else the size of the margin.
    """
    quantity = GATED[budget.metric].quantity
    share = abs(margin / budget.limit) if budget.limit else 0.0
    room = format_quantity(
        margin if signed else abs(margin),
        "drop" if quantity == "fraction" else quantity,
        signed=signed,
        digits=2,
        like=budget.limit if share >= 0.005 else None,
    )
    if signed or share < 0.0005 or quantity in ("fraction", "drop"):
        return room  # a percentage of percentage points would only confuse
    return f"{room} ({share * 100:.1f} %)"


def verdicts_to_json(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts as a JSON value (numbers in SI units); an open end of an interval is null."""
    rows = []
    for verdict in verdicts:
        row = asdict(verdict)
        if isinstance(verdict.measured, Estimate):
            for end in ("low", "high"):
                row["measured"][end] = row["measured"][end] if math.isfinite(row["measured"][end]) else None
        rows.append(row)
    return {"format": VERDICTS_FORMAT, "exit_code": exit_code(verdicts), "verdicts": rows}


def verdicts_from_json(value: Any) -> tuple[Verdict, ...]:
    """The verdicts that ``verdicts_to_json`` wrote, or, of one target, ``outcomes_to_json``.

    Raises:
        RunError: The value is something else, or from another format.
    """
    try:
        if value["format"] != VERDICTS_FORMAT:
            raise ValueError(f"format {value['format']}")
        verdicts = tuple(_verdict_from_json(row) for row in value["verdicts"])
        if value["exit_code"] != exit_code(verdicts):
            raise ValueError(f"exit code {value['exit_code']} with the verdicts of another")
    except (KeyError, TypeError, ValueError) as reason:
        raise RunError(
            "could not read the verdicts",
            where="the value",
            value=f"not what the gate writes ({type(reason).__name__}: {reason})",
            expected=f"format {VERDICTS_FORMAT}",
            hint="Run the gate again.",
        ) from None
    return verdicts


def _verdict_from_json(row: dict[str, Any]) -> Verdict:
    budget = Budget(**row["budget"])
    if budget.metric not in GATED:
        raise ValueError(f"unknown metric {budget.metric}")
    measured = row["measured"]
    if isinstance(measured, dict):
        low = -math.inf if measured["low"] is None else measured["low"]
        high = math.inf if measured["high"] is None else measured["high"]
        measured = Estimate(**{**measured, "low": low, "high": high})
    states: set[str] = {_state(budget, measured)}
    if measured is None:
        states |= {"cannot tell"} | ({"skipped"} if budget.optional else set())
    if row["state"] not in states:
        raise ValueError(f"state '{row['state']}' of {budget.key} does not follow from its figures")
    told = {key: value for key, value in row.items() if key != "target"}
    return Verdict(**{**told, "budget": budget, "measured": measured})
