"""Which groups would have to shrink: checked against all other choices on a small network."""

from __future__ import annotations

import itertools

import pytest

from edgeprune.advice import most_cut, shrink
from edgeprune.parts import Axis, Part


def group(name: str, kept: int, size: int = 16, frozen: str | None = None) -> dict[str, object]:
    return {"name": name, "kept": kept, "size": size, "frozen_because": frozen}


# in -> a -> b -> out: three layers, the middle one between both groups.
PARTS = (
    Part("1", "1", size_bytes=100.0, axes=(Axis(True, 4, {"a": 1}),)),
    Part("2", "2", size_bytes=400.0, axes=(Axis(True, 4, {"b": 1}), Axis(False, 4, {"a": 1}))),
    Part("3", "3", size_bytes=1000.0, axes=(Axis(False, 4, {"b": 1}),)),
    Part("graph", "", size_bytes=50.0),
)
GROUPS = (group("a", 4), group("b", 4))


def left(a: int, b: int) -> float:
    return 50 + 100 * (4 - a) / 4 + 400 * (4 - a) * (4 - b) / 16 + 1000 * (4 - b) / 4


def test_savings_are_those_of_the_product() -> None:
    found = shrink(PARTS, "size_bytes", 300.0, GROUPS, {"a": [1, 1, 1, 1], "b": [1, 1, 1, 1]})
    assert [(c.group, c.before, c.after) for c in found.changes] == [("b", 4, 3)]
    assert found.saves == left(0, 0) - left(0, 1) == 350
    assert found.enough


def test_low_scores_go_first_and_what_is_shared_counts_once() -> None:
    scores = {"a": [0.0, 0.0, 0.1, 9.0], "b": [5.0, 5.0, 5.0, 5.0]}
    found = shrink(PARTS, "size_bytes", 600.0, GROUPS, scores)
    after = {change.group: change.before - change.after for change in found.changes}
    assert after["a"] == 3
    assert found.saves == left(0, 0) - left(after["a"], after["b"])
    assert sum(change.saves for change in found.changes) > found.saves
    # No choice that saves enough loses less score.
    lost = sum(sum(sorted(scores[name])[:count]) for name, count in after.items())
    others = [
        sum(scores["a"][:a]) + sum(scores["b"][:b])
        for a, b in itertools.product(range(4), range(4))
        if left(0, 0) - left(a, b) >= 600
    ]
    assert lost == min(others)


@pytest.mark.parametrize(("step", "least"), [(1, 1), (2, 2)])
def test_widths_keep_to_the_step_and_a_step_stays(step: int, least: int) -> None:
    scores = {"a": [1.0] * 4, "b": [1.0] * 4}
    found = shrink(PARTS, "size_bytes", 1e9, GROUPS, scores, step)
    assert not found.enough
    assert {change.after for change in found.changes} == {least}


def test_a_width_off_the_step_comes_to_it() -> None:
    found = shrink(PARTS, "size_bytes", 1.0, (group("a", 4),), {"a": [1.0] * 4}, 3)
    assert [change.after for change in found.changes] == [3]


def test_frozen_and_unscored_groups_stay() -> None:
    groups = (group("a", 4, frozen="its channels leave the network"), group("b", 4))
    found = shrink(PARTS, "size_bytes", 300.0, groups, {"a": [0.0] * 4})
    assert (found.changes, found.saves, found.enough) == ((), 0.0, False)


def test_nothing_needed_changes_nothing() -> None:
    assert shrink(PARTS, "size_bytes", 0.0, GROUPS, {"a": [1.0] * 4}).changes == ()


def test_groups_that_lost_most_of_their_score_come_first() -> None:
    groups = (group("a", 4), group("b", 8), group("whole", 16), group("unscored", 3))
    scores = {"a": [1.0] * 4, "b": [1.0] * 8, "whole": [1.0] * 16}
    totals = {"a": 16.0, "b": 10.0, "whole": 16.0}
    assert most_cut(groups, scores, totals) == [("a", 0.25), ("b", 0.8)]
