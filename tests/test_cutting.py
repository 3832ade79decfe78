"""Cutting tensors in place, copies, and comparing outputs."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from edgeprune.cutting import (
    assign,
    cut,
    duplicate,
    first_line,
    names_of,
    places,
    shared,
    tensors_of,
)
from edgeprune.errors import ModelError
from tests.networks import built


def kept(*positions: int) -> Tensor:
    return torch.tensor(positions)


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


def test_places_of_shared_tensors_and_shared_modules() -> None:
    net = tied()
    net.append(net[1])
    where = places(net)
    assert list(where) == [key for key in net.state_dict() if key in where]
    assert set(where) == set(net.state_dict())
    assert where["0.weight"] is where["2.weight"]
    assert [spot.module for spot in where["0.weight"]] == [net[0], net[2]]
    assert len(where["1.weight"]) == 1  # one module under two names
    assert not where["1.running_mean"][0].is_parameter


def test_each_tensor_has_one_name() -> None:
    names = names_of(tied())
    assert names["2.weight"] == names["0.weight"] == "0.weight"
    assert names["2.bias"] == "2.bias"
    assert names.keys() == tied().state_dict().keys()


def test_cut_keeps_ties_gradients_and_numbers() -> None:
    net = tied()
    net[1].weight.requires_grad_(False)
    weight, mean = net[0].weight.detach().clone(), net[1].running_mean.clone()
    cut(net, {("0.weight", 0): kept(0, 2, 3), ("0.weight", 1): kept(1, 2), ("1.running_mean", 0): kept(3)})
    assert net[0].weight is net[2].weight
    assert torch.equal(net[0].weight, weight[[0, 2, 3]][:, [1, 2]])
    assert (net[0].in_features, net[0].out_features, net[2].in_features) == (2, 3, 2)
    assert torch.equal(net[1].running_mean, mean[3:])
    assert isinstance(net[0].weight, nn.Parameter)
    assert not isinstance(net[1].running_mean, nn.Parameter)
    assert "running_mean" in dict(net[1].named_buffers())
    cut(net, {("1.weight", 0): kept(3)})
    assert not net[1].weight.requires_grad


@pytest.mark.parametrize(
    ("layer", "cuts", "expected"),
    [
        (nn.Conv2d(4, 6, 3), {0: kept(0, 1), 1: kept(0, 2, 3)}, (3, 2, 1)),
        (nn.Conv2d(4, 8, 3, groups=4), {0: kept(0, 1, 6, 7)}, (2, 4, 2)),
        (nn.Conv2d(4, 4, 3, groups=4), {0: kept(1)}, (1, 1, 1)),
        (nn.Conv2d(4, 8, 3, groups=2), {0: kept(0, 1, 4, 5), 1: kept(1)}, (2, 4, 2)),
        (nn.ConvTranspose2d(4, 6, 3), {0: kept(0, 1, 2), 1: kept(0, 2, 3, 5)}, (3, 4, 1)),
        (nn.ConvTranspose2d(4, 8, 3, groups=4), {0: kept(0, 3)}, (2, 4, 2)),
        (nn.ConvTranspose2d(4, 8, 3, groups=2), {0: kept(0, 2), 1: kept(0, 1, 3)}, (2, 6, 2)),
        (nn.Conv1d(4, 6, 3), {0: kept(5)}, (4, 1, 1)),
    ],
)
def test_layers_know_their_sizes(
    layer: nn.Module, cuts: dict[int, Tensor], expected: tuple[int, ...]
) -> None:
    net = nn.Sequential(copy.deepcopy(layer))
    cut(net, {("0.weight", axis): keep for axis, keep in cuts.items()})
    if net[0].bias.shape[0] != net[0].out_channels:
        net[0].bias = None
    assert (net[0].in_channels, net[0].out_channels, net[0].groups) == expected
    size = (1, expected[0], *[8] * (net[0].weight.dim() - 2))
    assert net(torch.zeros(size)).shape[1] == expected[1]


def test_cut_on_meta_and_unknown_keys() -> None:
    net = duplicate(nn.Sequential(nn.Conv2d(3, 8, 3)), lambda tensor: tensor.to("meta"))
    cut(net, {("0.weight", 0): kept(1, 2), ("0.bias", 0): kept(1, 2)})
    assert net[0].weight.shape == (2, 3, 3, 3)
    assert net[0].weight.is_meta
    with pytest.raises(KeyError, match=r"1.weight"):
        cut(net, {("1.weight", 0): kept(0)})


def test_cut_stores_nothing_where_nothing_is_stored() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False))
    net[0].weight = nn.Parameter(torch.zeros(()).expand(8, 3, 3, 3))
    cut(net, {("0.weight", 0): kept(1, 2), ("0.weight", 1): kept(0)})
    assert net[0].weight.shape == (2, 1, 3, 3)
    assert net[0].weight.untyped_storage().size() == 4
    assert net[0].in_channels == 1


# ---- copies


def test_copies() -> None:
    net = tied()
    net.constant = torch.ones(3)
    net[0].weight.requires_grad_(False)
    net.train()
    copies = {
        "duplicate": duplicate(net),
        "shared": shared(net),
        "plain": duplicate(net, plain=lambda tensor: tensor.double()),
    }
    for kind, other in copies.items():
        assert other[0].weight is other[2].weight
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in net.parameters()]
        same = [
            a.data_ptr() == b.data_ptr() for a, b in zip(net.parameters(), other.parameters(), strict=True)
        ]
        assert all(same) if kind == "shared" else not any(same)
        assert other.constant.dtype == (torch.float64 if kind == "plain" else torch.float32)
    assert all(other.training for other in copies.values())


def test_cutting_a_shared_copy_leaves_the_first() -> None:
    net = tied()
    other = shared(net)
    cut(other, {("0.weight", 0): kept(0), ("1.weight", 0): kept(0)})
    assign(places(other)["0.bias"], torch.zeros(1))
    assert net[0].weight.shape == (4, 4)
    assert net[1].num_features == 4
    assert len(net[0].bias) == 4


def test_a_network_that_cannot_be_copied() -> None:
    net = nn.Linear(2, 2)
    net.lock = threading.Lock()
    with pytest.raises(
        ModelError, match=r"could not copy the network: copy.deepcopy is refused .cannot pickle '_th"
    ):
        duplicate(net)


def test_a_tensor_with_a_history_is_copied() -> None:
    net = nn.Linear(2, 2)
    net.derived = net.weight * 2
    assert torch.equal(duplicate(net).derived, net.derived)
    assert duplicate(parametrizations.weight_norm(net))(torch.ones(1, 2)).shape == (1, 2)


# ---- texts and keys


def test_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_every_tensor_has_its_key() -> None:
    for name in ("residual", "tied_weights", "parametrized", "layer_scale"):
        model, _ = built(name)
        assert tensors_of(model).keys() == model.state_dict().keys()
