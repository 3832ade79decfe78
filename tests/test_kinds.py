"""Which groups a forward pass treats alike."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.groups import assemble, find_groups
from edgeprune.kinds import kinds_of
from edgeprune.tracing import Trace
from tests.networks import Net


class Halves(nn.Module):
    """Adds the halves of what a layer makes; one of its settings fixes where they meet."""

    def __init__(self, middle: int | None = None, width: int = 8) -> None:
        super().__init__()
        self.middle = middle
        self.first, self.second = nn.Linear(8, width), nn.Linear(width // 2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        middle = self.middle or x.shape[1] // 2
        return self.second(x[:, :middle] + x[:, middle:])


def kinds(net: nn.Module) -> dict[str, Hashable]:
    trace = Trace(net, (torch.zeros(1, 8),))
    ledger = trace.run({})
    groups, nodes = assemble(ledger)
    return kinds_of(net, groups, {name: [ledger.choices[n] for n in found] for name, found in nodes.items()})


def test_what_the_same_code_does_to_the_same_shapes_is_of_one_kind() -> None:
    found = kinds(nn.Sequential(Halves(), Halves(), Halves(middle=4), Halves(width=16), nn.Linear(8, 8)))
    assert found.keys() == {"0.first", "1.first", "2.first", "3.first"}  # what no node touches has no kind
    assert found["0.first"] == found["1.first"]
    assert len({found[f"{number}.first"] for number in range(4)}) == 3


def test_other_lines_of_code_make_another_kind() -> None:
    """Nothing else tells a size that is computed from one that is written down."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x = m.b(x[:, : x.shape[1] // 2])
        return m.c(x[:, :4])

    net = Net(forward, a=nn.Linear(8, 8), b=nn.Linear(4, 8), c=nn.Linear(4, 8))
    found = kinds(net)
    assert found["a"] != found["b"]


@pytest.mark.parametrize("order", [(None, 4, None), (4, None, 4), (4, 4, None), (None, None, 4)])
def test_a_group_that_fails_takes_only_its_kind_with_it(order: tuple[int | None, ...]) -> None:
    groups = find_groups(nn.Sequential(*map(Halves, order), nn.Linear(8, 2)), torch.zeros(1, 8))
    first = {g.name: g for g in groups if g.name.endswith("first")}
    for number, middle in enumerate(order):
        assert (first[f"{number}.first"].frozen_because is None) == (middle is None)
    assert [g.frozen_because for g in groups if g.name.endswith("second")] == [None] * len(order)
