"""Cutting tensors in place, copies, and comparing outputs."""

from __future__ import annotations

import copy
import threading
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from edgeprune.cutting import (
    assign,
    cut,
    disagreement,
    doubled,
    duplicate,
    first_line,
    outputs_of,
    places,
    random_inputs,
    shared,
    tensors_of,
    zeroed,
)
from edgeprune.errors import ModelError, SlimError
from tests.networks import Net, built


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


# ---- copies


def test_copies() -> None:
    net = tied()
    net.constant = torch.ones(3)
    net[0].weight.requires_grad_(False)
    net.train()
    copies = {"duplicate": duplicate(net), "shared": shared(net), "doubled": doubled(net)}
    for kind, other in copies.items():
        assert other[0].weight is other[2].weight
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in net.parameters()]
        same = [
            a.data_ptr() == b.data_ptr() for a, b in zip(net.parameters(), other.parameters(), strict=True)
        ]
        assert all(same) if kind == "shared" else not any(same)
        assert other.constant.dtype == (torch.float64 if kind == "doubled" else torch.float32)
    assert copies["doubled"][1].num_batches_tracked.dtype == torch.int64
    assert not copies["doubled"].training
    assert copies["duplicate"].training
    already = nn.Linear(2, 2).double()
    assert doubled(already).weight.data_ptr() != already.weight.data_ptr()


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


# ---- zeroed


def test_zeroed_puts_back_whatever_happens() -> None:
    net = tied()
    before = copy.deepcopy(net.state_dict())

    def broken() -> None:
        assert net[2].weight[:, 1].abs().sum() == 0
        assert net[2].weight[1].abs().sum() == 0
        assert net[2].weight[0, 0] == before["0.weight"][0, 0]
        raise RuntimeError("inside")

    columns = {("0.weight", 1): kept(1), ("0.weight", 0): kept(1)}
    with pytest.raises(RuntimeError, match="inside"), zeroed(net, columns):
        broken()
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    with (
        pytest.raises(KeyError, match="nothing"),
        zeroed(net, {("0.weight", 1): kept(1), ("nothing", 0): kept(1)}),
    ):
        pass
    assert torch.equal(net[0].weight, before["0.weight"])


# ---- inputs, outputs


def test_random_inputs() -> None:
    shapes = [((1, 3, 4, 4), torch.float16), ((1, 5), torch.int64), ((1, 2), torch.bool)]
    image, index, mask = random_inputs(shapes, torch.device("cpu"), seed=1)
    assert image.dtype == torch.float64
    assert image.std() > 0.5
    assert torch.equal(index, torch.zeros(1, 5, dtype=torch.int64))
    assert mask.dtype == torch.bool
    assert torch.equal(random_inputs(shapes, torch.device("cpu"), seed=1)[0], image)
    assert not torch.equal(random_inputs(shapes, torch.device("cpu"), seed=2)[0], image)


def test_outputs_of_whatever_holds_them() -> None:
    pair = namedtuple("pair", "a b")
    net = Net(lambda _, x: {"a": x, "b": [x + 1, (x + 2, None, 3)], "c": pair(x + 3, x.argmax())})
    found = outputs_of(net, (torch.zeros(1, 2),))
    assert [float(tensor.flatten()[0]) for tensor in found] == [0, 1, 2, 3, 0]
    assert not any(tensor.requires_grad for tensor in found)


def test_what_a_forward_pass_makes_follows_the_input() -> None:
    made = Net(lambda _, x: x.shape[0] * torch.ones(2))
    assert outputs_of(made, (torch.zeros(1, dtype=torch.float64),))[0].dtype == torch.float64
    assert outputs_of(made, (torch.zeros(1, dtype=torch.int64),))[0].dtype == torch.float32
    with pytest.raises(ZeroDivisionError):
        outputs_of(Net(lambda _, x: 1 / 0), (torch.zeros(1, dtype=torch.float64),))  # noqa: ARG005
    assert torch.get_default_dtype() == torch.float32


# ---- disagreement


def test_disagreement_is_relative_to_the_largest_value() -> None:
    a = torch.tensor([1.0, -200.0], dtype=torch.float64)
    assert disagreement([a], [a]) == 0
    assert disagreement([a + 1], [a]) == pytest.approx(1 / 200)
    assert disagreement([a, a + 2], [a, a]) == pytest.approx(2 / 200)
    assert disagreement([a * 1j], [a * 1j]) == 0
    assert disagreement([a + 1j], [a + 0j]) == pytest.approx(1 / 200)
    assert disagreement([torch.tensor([3])], [torch.tensor([4])]) == 0.25
    assert disagreement([torch.tensor([True])], [torch.tensor([False])]) == float("inf")
    assert disagreement([torch.zeros(0)], [torch.zeros(0)]) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_disagrees(bad: float) -> None:
    good, broken = torch.ones(2), torch.tensor([1.0, bad])
    assert disagreement([broken], [good]) == float("inf")
    assert not disagreement([good], [broken]) <= 1e-10
    assert not disagreement([broken], [broken]) <= 1e-10


def test_something_where_nothing_was_disagrees() -> None:
    assert disagreement([torch.full((2,), 1e-300)], [torch.zeros(2)]) == 0  # float32: it is 0
    assert disagreement([torch.full((2,), 1e-300, dtype=torch.float64)], [torch.zeros(2)]) == float("inf")


@pytest.mark.parametrize(
    "ours", [[], [torch.zeros(2)], [torch.zeros(3), torch.zeros(3)], [torch.zeros(1, 3)]]
)
def test_outputs_of_another_shape(ours: list[Tensor]) -> None:
    with pytest.raises(
        SlimError, match=r"could not slim the network: the output shape is \[.*\], expected \[\(3,\)\]"
    ):
        disagreement(ours, [torch.zeros(3)])


def test_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_every_tensor_has_its_key() -> None:
    for name in ("residual", "tied_weights", "parametrized", "layer_scale"):
        model, _ = built(name)
        assert tensors_of(model).keys() == model.state_dict().keys()
