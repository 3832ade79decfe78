"""Labels, and the ledger of what is known about units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeprune.labels import ALWAYS, FIXED, FREE, VARIES, Ledger, compact, narrowed, units_in, varies


def components(ledger: Ledger) -> set[frozenset[int]]:
    root = ledger.roots()[0].tolist()
    return {frozenset(unit for unit in range(1, ledger.units) if root[unit] == r) for r in root[1:]}


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


def test_fresh_units_are_numbered_from_one() -> None:
    ledger = Ledger()
    assert ledger.fresh(3).tolist() == [1, 2, 3]
    assert ledger.fresh(2).tolist() == [4, 5]
    assert components(ledger) == {frozenset({unit}) for unit in range(1, 6)}


def test_a_tensor_that_is_used_twice_has_one_site() -> None:
    ledger = Ledger()
    first = ledger.site("w", 0, 3, "out", produces=True)
    again = ledger.site("w", 0, 3, "out", padded=True)
    assert again is first
    assert first.produces
    assert first.padded
    assert ledger.site("w", 1, 3, "in").unit.tolist() == [4, 5, 6]


def test_ties_are_transitive_and_free_places_tie_nothing() -> None:
    ledger = Ledger()
    ledger.fresh(6)
    ledger.tie(labels(1, 2, FREE), labels(3, FREE, 4), "because")
    ledger.tie(labels(3), labels(5), "because")
    assert components(ledger) == {frozenset({1, 3, 5}), frozenset({2}), frozenset({4}), frozenset({6})}
    assert ledger.roots()[1] == {}


def test_what_is_tied_to_a_fixed_place_stays() -> None:
    ledger = Ledger()
    ledger.fresh(4)
    ledger.tie(labels(1, 2), labels(FIXED, 3), "it is fixed")
    ledger.tie(labels(1), labels(4), "another")
    root, reasons, _ = ledger.roots()
    assert reasons == {root[1]: "it is fixed"}
    assert root[4] == root[1]
    assert root[2] == root[3] != root[1]


def test_the_first_reason_counts() -> None:
    ledger = Ledger()
    ledger.fresh(2)
    ledger.freeze(labels(1, FIXED, FREE, 1), "first")
    ledger.freeze(labels(1, 2), "second")
    ledger.freeze(labels(FIXED, FREE), "of nothing")
    root, reasons, _ = ledger.roots()
    assert reasons == {root[1]: "first", root[2]: "second"}
    assert len(ledger.notes) == 2


@pytest.mark.parametrize("first", [1, FREE])
def test_tie_along_an_axis(first: int) -> None:
    """Padding may come first: what follows is tied all the same."""
    ledger = Ledger()
    ledger.fresh(6)
    ledger.tie_along(torch.tensor([[first, 2, 3], [4, 5, 6]]), 1, "because")
    assert frozenset({4, 5, 6}) in components(ledger)
    assert (frozenset({1, 2, 3}) if first == 1 else frozenset({2, 3})) in components(ledger)
    assert [(found.tolist(), reason) for found, reason in ledger.merges] == [
        ([1, 2, 3, 4, 5, 6][first != 1 :], "because")
    ]


def test_tie_along_an_axis_of_one_or_of_copies_ties_nothing() -> None:
    ledger = Ledger()
    ledger.fresh(3)
    ledger.tie_along(labels(1, 2, 3)[:, None], 1, "because")
    ledger.tie_along(labels(1, 2, 3)[:, None].expand(3, 1000), 1, "because")
    assert len(components(ledger)) == 3
    assert ledger.merges == []


def test_ties_broadcast_without_storage() -> None:
    ledger = Ledger()
    ledger.fresh(4)
    shape = (1, 2, 30_000, 30_000)  # 14 GB if it were written out
    ledger.tie(labels(1, 2).view(1, 2, 1, 1).expand(shape), labels(3, 4).view(2, 1, 1), "because")
    assert components(ledger) == {frozenset({1, 3}), frozenset({2, 4})}


def test_constants_join() -> None:
    ledger = Ledger()
    a, b = ledger.constant_number(frozenset({("g", 0)})), ledger.constant_number(frozenset({("g", 1)}))
    assert ledger.constant_number(frozenset({("g", 0)})) == a
    assert ledger.constant_number(frozenset()) == ALWAYS
    joined = ledger.join_constants(labels(a, a, a, VARIES, ALWAYS), labels(a, b, ALWAYS, a, ALWAYS))
    assert [ledger.constant_sets[number] for number in joined.tolist()] == [
        frozenset({("g", 0)}),
        frozenset({("g", 0), ("g", 1)}),
        frozenset({("g", 0)}),
        None,
        frozenset(),
    ]
    wide = ledger.join_constants(labels(a, b)[:, None].expand(2, 50_000), labels(ALWAYS))
    assert wide.shape == (2, 50_000)
    assert wide.stride(1) == 0


def test_narrowed_and_units_in() -> None:
    wide = labels(3, 1, 0, -1, 3).view(5, 1, 1).expand(5, 100, 7)
    assert narrowed(wide)[0].shape == (5, 1, 1)
    assert narrowed(wide, torch.zeros(5, 100, 7))[0].shape == (5, 100, 7)
    assert narrowed(torch.tensor(5))[0].shape == ()
    assert units_in(wide).tolist() == [1, 3]
    assert units_in(labels(FIXED, FREE)).tolist() == []


def test_labels_that_repeat_are_stored_once() -> None:
    table = torch.arange(6).view(1, 2, 3)
    repeated = table.repeat(4, 1, 1)
    assert compact(repeated).stride() == (0, 3, 1)
    assert torch.equal(compact(repeated), repeated)
    repeated[1, 0, 0] = 7  # the first and the last agree
    assert compact(repeated).stride()[0] > 0
    assert torch.equal(compact(repeated), repeated)
    assert compact(torch.full((2, 3), 5)).stride() == (0, 0)
    assert compact(torch.zeros(0, 3)).shape == (0, 3)


def test_varies() -> None:
    assert varies(labels(1, 2), 0)
    assert varies(labels(FIXED, 2), 0)
    assert not varies(labels(2, 2, FREE), 0)  # padding aside
    assert not varies(labels(2), 0)
    assert not varies(labels(1, 2)[:, None].expand(2, 9), 1)
    assert varies(labels(1, 2)[:, None].expand(2, 9), 0)
