"""The exported graph, and running it on labels."""

from __future__ import annotations

import gc
import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.groups import find_groups
from edgeprune.labels import FIXED
from edgeprune.tracing import Trace
from tests.networks import IMAGE, Net, built, cbr, conv


def test_shared_tensors_have_one_name() -> None:
    model, inputs = built("tied_weights")
    ledger = Trace(model, inputs).run({})
    assert ("a.weight", 0) in ledger.sites
    assert ("b.weight", 0) not in ledger.sites
    assert ("b.bias", 0) in ledger.sites


def test_sites_and_units_of_a_chain() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    ledger = Trace(net.eval(), (torch.zeros(1, 3, 4, 4),)).run({})
    root, reasons, _ = ledger.roots()
    rows = root[ledger.sites["0.weight", 0].unit]
    assert len(set(rows)) == 4
    for key in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert (root[ledger.sites[key, 0].unit] == rows).all()
    assert (root[ledger.sites["4.weight", 1].unit].reshape(4, 4) == rows[:, None]).all()
    assert {reasons.get(unit) for unit in root[ledger.sites["4.weight", 0].unit]} == {"reaches the output"}
    assert {reasons.get(unit) for unit in root[ledger.sites["0.weight", 1].unit]} == {
        "conv2d in 0 reads a fixed channel"
    }
    assert ledger.sites["4.weight", 1].constant[0].tolist() == [n for n in range(2, 6) for _ in range(4)]
    assert [ledger.constant_sets[n] for n in (2, 5)] == [
        frozenset({("1.weight", 0)}),
        frozenset({("1.weight", 3)}),
    ]


def test_a_run_does_not_change_the_trace() -> None:
    model, inputs = built("shuffle_unit")
    trace = Trace(model, inputs)
    first = trace.run({})
    trace.run({node: 1 for node, choice in first.choices.items() if choice.policies > 1})
    again = trace.run({})
    assert again.units == first.units
    assert (again.roots()[0] == first.roots()[0]).all()


def test_every_policy_of_every_node_can_be_put_in_force() -> None:
    for name in ("shuffle_unit", "slice_hard_coded", "c2f", "view_hard_coded", "split_computed"):
        model, inputs = built(name)
        trace = Trace(model, inputs)
        free = trace.run({})
        assert free.choices
        for node, choice in free.choices.items():
            assert choice.text
            for number in range(1, choice.policies):
                ledger = trace.run({node: number})
                assert len(ledger.ties) + len(ledger.notes) > len(free.ties) + len(free.notes)


@pytest.mark.parametrize(
    ("name", "all_read"), [("residual", True), ("unused_branch", False), ("aside_in_training", False)]
)
def test_parameters_that_are_not_read(name: str, all_read: bool) -> None:
    assert Trace(*built(name)).reads_all_parameters is all_read


def test_whoever_reads_an_operand_after_it_was_written_reads_the_result() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        alias = y
        y += m.b(x)
        return m.c(alias)

    net = Net(forward, a=conv(3, 4), b=cbr(3, 4), c=conv(4, 2))
    ledger = Trace(net.eval(), (torch.zeros(IMAGE),)).run({})
    root = ledger.roots()[0]
    assert (root[ledger.sites["a.weight", 0].unit] == root[ledger.sites["c.weight", 1].unit]).all()
    assert (root[ledger.sites["b.0.weight", 0].unit] == root[ledger.sites["c.weight", 1].unit]).all()
    assert ledger.sites["c.weight", 1].constant[0].tolist() == [FIXED] * 4


def test_quiet_and_without_traces() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        warnings.warn("the user's own", stacklevel=1)
        return F.relu(m.a(x))

    net = Net(forward, a=conv(3, 4)).train()
    level = logging.getLogger("torch").level
    Trace(net, (torch.zeros(IMAGE),))
    assert net.training
    assert logging.getLogger("torch").level == level


def test_errors_leave_the_network_in_its_mode() -> None:
    net = conv(3, 4).train()
    with pytest.raises(ModelError, match="could not run the network: the example input is"):
        Trace(net, (torch.zeros(1, 5, 8, 8),))
    assert net.training


def test_the_garbage_collector_works_again_afterwards() -> None:
    net, inputs = built("residual")
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            find_groups(net, inputs)
            assert gc.isenabled() == enabled
            with pytest.raises(ModelError):
                find_groups(net, torch.zeros(1, 5, 8, 8))
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
