"""Running in float64 without float64 copies, inputs, and comparing outputs."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.errors import SlimError
from edgeprune.oracle import Double, Filled, disagreement, hollow, outputs_of, random_inputs, smallest
from tests.networks import NETWORKS, Net, built, conv, pooled


def kept(*positions: int) -> Tensor:
    return torch.tensor(positions)


def doubles(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model, inputs = built(name)
    return model, tuple(x.double() for x in inputs)


# ---- float64 without float64 copies


@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_network_computes_in_float64(name: str) -> None:
    model, inputs = doubles(name)
    before = copy.deepcopy(model.state_dict())
    ours = Double(model).outputs(inputs)
    theirs = outputs_of(copy.deepcopy(model).double(), inputs)
    assert all(a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert disagreement(ours, theirs) < 1e-14
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_hollow_network_takes_no_memory_and_can_not_pass_for_a_full_one() -> None:
    model, inputs = doubles("residual")
    model.train()
    empty = hollow(model)
    assert not empty.training
    assert [p.shape for p in empty.parameters()] == [p.shape for p in model.parameters()]
    assert all(p.untyped_storage().size() == 8 for p in empty.parameters())
    assert not any(output.isfinite().any() for output in outputs_of(empty, inputs))
    # One that is forgotten shows as well.
    full = Double(model)
    sources = dict(full.filled().sources)
    sources.popitem()
    with Filled(sources):
        assert not all(output.isfinite().all() for output in outputs_of(full.module, inputs))


def test_zeros_count_in_every_place_of_a_shared_tensor() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    net[1].weight = net[0].weight
    x = torch.randn(2, 4, dtype=torch.float64)
    (found,) = Double(net, {("0.weight", 1): kept(1), ("1.weight", 0): kept(2)}).outputs((x,))
    weight = net[0].weight.detach().clone()
    weight[:, 1] = 0
    weight[2] = 0
    torch.testing.assert_close(found, x @ weight.T @ weight.T)
    with pytest.raises(KeyError, match="nothing"):
        Double(net, {("nothing", 0): kept(1)})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 3, 6)),
        (nn.Conv1d(6, 4, 3), (2, 6, 9)),
        (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 5)),
        (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
        (nn.Conv3d(6, 4, 1), (2, 6, 3, 3, 3)),
        (nn.ConvTranspose2d(6, 4, 3), (2, 6, 5, 5)),
    ],
)
@pytest.mark.parametrize("positions", [(1,), (0, 2), tuple(range(6))])
def test_columns_of_zeros_need_not_be_multiplied_with(
    layer: nn.Module, shape: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    """In every way in which a forward pass reads the weight, and however many columns are left."""
    width = layer.weight.shape[1]  # type: ignore[union-attr]
    zeros = kept(*(position for position in positions if position < width))
    net = Net(lambda m, x: m.a(x).sum() + m.a.weight.sum() + m.a(x), a=layer)
    x = torch.randn(shape, dtype=torch.float64)
    twin = copy.deepcopy(net).double()
    with torch.no_grad():
        twin.a.weight.index_fill_(1, zeros, 0)
    double = Double(net, {("a.weight", 1): zeros})
    assert disagreement(double.outputs((x,)), outputs_of(twin, (x,))) < 1e-14
    own = double.own("a.weight").fill_(1)
    twin.a.weight.data.copy_(own)
    assert disagreement(double.outputs((x,)), outputs_of(twin, (x,))) < 1e-14


def test_columns_that_are_left_out_by_mistake_show() -> None:
    """Negative control: the skipped columns are those that are zero, and no others."""
    double = Double(nn.Linear(4, 2), {("weight", 1): kept(1)})
    x = torch.randn(1, 4, dtype=torch.float64)
    right = double.outputs((x,))
    filled = double.filled()
    ((number, _),) = filled.columns.items()
    weight = double.value("weight")[:, :2]
    with Filled(filled.sources, {number: (kept(0, 1), lambda: weight)}):
        assert disagreement(outputs_of(double.module, (x,)), right) > 1e-3


def test_own_tensors_take_the_place_of_the_networks() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.append(net[0])
    double = Double(net)
    assert double.value("0.bias") is not double.value("0.bias")
    assert double.own("2.bias") is double.own("0.bias") is double.value("0.bias")
    assert double.owned["0.bias"].dtype == torch.float64
    assert "2.bias" in double
    assert "1.bias" not in double
    double.own("0.bias").fill_(7)
    double.own("0.weight").zero_()
    assert double.outputs((torch.zeros(1, 2).double(),))[0].tolist() == [[7.0, 7.0]]
    assert float(net[0].bias.detach().abs().max()) < 7


def test_what_a_forward_pass_asks_its_weights() -> None:
    """Form is answered without numbers; numbers, views and lists are filled."""

    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.a.weight
        assert weight.dtype == torch.float64
        assert weight.shape[0] == weight.size(0) == len(weight) == 4
        assert weight.numel() == 12
        assert weight.dim() == 2
        assert weight.is_floating_point()
        x = x @ weight.T + weight.t()[0] + weight.data.sum()
        x = torch.cat([x, weight[:1]], 1) * m.a.bias.mean().item()
        return x + max(float(v) for v in m.a.bias.tolist())

    net = Net(forward, a=nn.Linear(3, 4))
    x = torch.randn(1, 3).double()
    twin = copy.deepcopy(net).double()
    assert disagreement(Double(net).outputs((x,)), outputs_of(twin, (x,))) < 1e-14


def test_half_precision_and_whole_numbers() -> None:
    net = Net(lambda m, x: F.embedding(m.places, m.a.weight) + x, a=nn.Embedding(3, 2)).half()
    net.register_buffer("places", torch.tensor([2, 0]))
    net.scale = torch.ones(1).half()
    double = Double(net)
    (found,) = double.outputs((torch.zeros(2, 2).double(),))
    assert torch.equal(found, net.a.weight.detach().double()[[2, 0]])
    assert double.module.scale.dtype == torch.float64


# ---- inputs, outputs


def test_smallest_inputs() -> None:
    image = torch.randn(1, 3, 224, 192)
    plain = Net(lambda m, x: m.b(pooled(m.a(x))), a=conv(3, 4), b=nn.Linear(4, 2))
    (small,) = smallest(plain, (image,))
    assert small.shape == (1, 3, 64, 64)
    assert torch.equal(small, image[..., :64, :64])
    fixed = Net(lambda m, x: m.b(m.a(x).flatten(1)), a=conv(3, 1), b=nn.Linear(224 * 192, 2))
    assert smallest(fixed, (image,))[0] is image
    # A view that would fold pixels into the batch does not count.
    folded = Net(lambda m, x: m.a(x).reshape(-1, 4 * 7 * 6, 8, 8).mean(1), a=conv(3, 4))
    assert smallest(folded, (torch.randn(1, 3, 56 * 2, 48 * 2),))[0].shape[2:] == (112, 96)
    deep = Net(lambda m, x: F.conv2d(x, m.a.weight, dilation=40), a=nn.Conv2d(3, 2, 3))
    assert smallest(deep, (image,))[0].shape[2:] == (96, 96)
    assert smallest(plain, (image[..., :64, :32],))[0].shape == (1, 3, 64, 32)
    numbers = torch.zeros(1, 400, dtype=torch.int64)
    assert smallest(plain, (image, numbers)) == (image, numbers)
    sound = Net(lambda m, x: m.a(x).mean(2), a=nn.Conv1d(2, 3, 5))
    assert smallest(sound, (torch.randn(1, 2, 16000),))[0].shape == (1, 2, 64)


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
