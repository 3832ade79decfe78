"""Which channel groups would have to shrink for a missed budget. Device side: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.parts import Basis, Part, total

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Change:
    """A group that would shrink.

    Attributes:
        group: Its name.
        before: Units that it has in the slim network.
        after: Units that would stay.
        saves: What that saves alone, in the unit of the basis.
    """

    group: str
    before: int
    after: int
    saves: float


@dataclass(frozen=True)
class Shrinking:
    """Changes that together save about what is needed.

    Attributes:
        changes: By what they save, the largest first.
        saves: All together, in the unit of the basis; what two groups share is counted once.
        enough: Whether that is what is needed. If not, no more can go.
    """

    changes: tuple[Change, ...]
    saves: float
    enough: bool


def shrink(
    parts: Sequence[Part],
    basis: Basis,
    needed: float,
    groups: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[float]],
    step: int = 1,
) -> Shrinking:
    """Take units away, each time where the least score is lost for what it saves, until enough is saved.

    An estimate: scores are those that the plan was made with, and costs are taken to follow the entries of
    the weights.

    Args:
        parts: Of the slim file.
        basis: What is to be saved.
        needed: How much of it.
        groups: Facts of ``edgeprune.group_facts``.
        scores: Of the units that the slim network has, by group; a group without scores keeps all of them.
        step: Widths are multiples of this; at least so many units of a group stay.
    """
    at = {
        group["name"]: [part for part in parts if group["name"] in part.groups()]
        for group in groups
        if not group["frozen_because"] and len(scores.get(group["name"], ())) == group["kept"]
    }
    kept = {group["name"]: group["kept"] for group in groups}
    order = {name: sorted(scores[name]) for name in at}
    removed: Counter[str] = Counter()
    whole = total(parts, basis)
    saved = 0.0

    def gain(name: str, more: int) -> float:
        with_more = removed + Counter({name: more})
        return sum(part.left(basis, removed) - part.left(basis, with_more) for part in at[name])

    while saved < needed * (1 - _ROUNDING):
        best: tuple[float, float, str, int] | None = None
        for name in at:
            left = kept[name] - removed[name]
            more = left % step or step
            if left - more < max(step, 1) or not (saves := gain(name, more)) > 0:
                continue
            lost = sum(order[name][removed[name] : removed[name] + more])
            useful = min(saves, needed - saved)  # what goes beyond the need is worth nothing
            if best is None or (lost / useful, saves) < best[:2]:
                best = (lost / useful, saves, name, more)
        if best is None:
            break
        removed[best[2]] += best[3]
        saved = whole - sum(part.left(basis, removed) for part in parts)
    changes = [
        Change(name, kept[name], kept[name] - gone, _alone(at[name], basis, {name: gone}))
        for name, gone in removed.items()
    ]
    changes.sort(key=lambda change: -change.saves)
    return Shrinking(tuple(changes), saved, saved >= needed * (1 - _ROUNDING))


def _alone(parts: Sequence[Part], basis: Basis, removed: Mapping[str, float]) -> float:
    return sum(part.left(basis, {}) - part.left(basis, removed) for part in parts)


def most_cut(
    groups: Sequence[Mapping[str, Any]], scores: Mapping[str, Sequence[float]], totals: Mapping[str, float]
) -> list[tuple[str, float]]:
    """Groups that lost units, by the share of their score that they kept, the least first.

    Args:
        groups: Facts of ``edgeprune.group_facts``.
        scores: Of the units that stay.
        totals: Sum of the scores of all units of the dense network, by group.
    """
    found = [
        (group["name"], sum(scores[group["name"]]) / totals[group["name"]])
        for group in groups
        if group["kept"] < group["size"] and totals.get(group["name"], 0) > 0 and group["name"] in scores
    ]
    return sorted(found, key=lambda entry: entry[1])
