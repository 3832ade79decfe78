"""What the gate found for each target, and together. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeprune.verdict import Verdict, exit_code, verdicts_to_json


@dataclass(frozen=True)
class Outcome:
    """What the gate found for one target.

    Attributes:
        target: Short name, which no other target of the same gate has, e.g. ``"raspberry-pi-5"``.
        name: Of the target, for people.
        verdicts: One for each budget, in their order.
        network: The file that was measured; empty if none was.
        error: Why nothing could be decided; empty if it could.
    """

    target: str
    name: str
    verdicts: tuple[Verdict, ...] = ()
    network: str = ""
    error: str = ""

    @property
    def exit_code(self) -> Literal[0, 1, 3]:
        """As of its verdicts; 3 if the target could not be measured."""
        return 3 if self.error else exit_code(self.verdicts)

    @property
    def sentence(self) -> str:
        """What it comes to."""
        count, skipped = len(self.verdicts), self._count("skipped")
        if self.error:
            return "not measured: nothing is decided"
        if not count:
            return "nothing was gated: the target has no budgets"
        of = f"of {count} budget{'s' if count > 1 else ''}"
        if self.exit_code == 1:
            missed, unmeasured = self._count("failed"), self._count("unmeasured")
            parts = [f"{missed} {of} missed"] if missed else []
            parts += [f"{unmeasured} {'' if missed else of + ' '}not measured"] if unmeasured else []
            return f"failed: {', '.join(parts)}"
        if self.exit_code == 3:
            return f"cannot tell: {self._count('cannot tell')} {of} undecided"
        met = "all budgets are met" if not skipped else f"{count - skipped} {of} met"
        return f"passed: {met}" + (f", {skipped} optional skipped" if skipped else "")

    def _count(self, state: str) -> int:
        return sum(verdict.state == state for verdict in self.verdicts)


def worst(outcomes: Sequence[Outcome]) -> Literal[0, 1, 3]:
    """The exit code of several targets: 1 comes before 3, and 3 before 0."""
    codes = {outcome.exit_code for outcome in outcomes}
    return 1 if 1 in codes else 3 if 3 in codes else 0


def outcomes_to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All verdicts as one JSON value, as ``schemas/verdicts.schema.json`` describes it.

    Each verdict names its target; of one target ``verdicts_from_json`` reads it.
    """
    rows, targets = [], []
    for one in outcomes:
        told = verdicts_to_json(one.verdicts)
        rows += [{"target": one.target, **row} for row in told["verdicts"]]
        facts = {"target": one.target, "name": one.name, "network": one.network}
        targets.append({**facts, "exit_code": one.exit_code, "error": one.error or None})
    form = verdicts_to_json(())["format"]
    return {"format": form, "exit_code": worst(outcomes), "targets": targets, "verdicts": rows}
