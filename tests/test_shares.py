"""Shares of params and MACs, as exact integers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.channels import ChannelGroup, Member
from edgeprune.cost import count_macs, count_params, macs_by_weight, shell_of
from edgeprune.errors import ModelError
from edgeprune.groups import find_groups
from edgeprune.models import load_model
from edgeprune.shares import Portion, Shares
from tests.networks import IMAGE, NETWORKS, Net, built, conv, free_groups, groups_of

CNNS = ["resnet20", "vgg16", "densenet40", "mobilenet-v2", "torchvision:shufflenet_v2_x0_5"]


def by_weight(model: nn.Module, *shapes: tuple[int, ...]) -> tuple[dict[str, int], int]:
    return macs_by_weight(shell_of(model), tuple(torch.zeros(shape) for shape in shapes))


def weighed(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> tuple[Shares, dict[str, tuple[int, int]]]:
    """Params and MACs of each group."""
    example = torch.zeros(shape)
    shares = Shares(model, example)
    portions = {group.name: shares.of([group]) for group in find_groups(model, example)}
    return shares, {name: (portion.params, portion.macs) for name, portion in portions.items()}


# ---- MACs of each weight


@pytest.mark.parametrize("name", CNNS)
def test_the_macs_of_all_weights_are_those_of_the_network(name: str) -> None:
    model = load_model(name)
    size = 64 if ":" in name else 32
    macs, rest = by_weight(model, (1, 3, size, size))
    assert rest == 0
    assert sum(macs.values()) == count_macs(model, torch.zeros(1, 3, size, size)) > 0
    layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert macs.keys() == layers


@pytest.mark.parametrize("name", NETWORKS)
def test_no_multiply_add_is_lost_or_booked_twice(name: str) -> None:
    model, inputs = built(name)
    macs, rest = macs_by_weight(shell_of(model), inputs)
    assert sum(macs.values()) + rest == count_macs(model, inputs)


def test_a_weight_that_is_read_twice_has_both() -> None:
    net = Net(lambda m, x: m.a(F.max_pool2d(m.a(x), 2)), a=conv(3, 3, bias=False))
    assert by_weight(net, IMAGE) == ({"a.weight": 81 * 64 + 81 * 16}, 0)


def test_a_shared_weight_is_booked_on_its_first_key() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5, bias=False))
    net[1].weight = net[0].weight
    assert by_weight(net, (1, 5)) == ({"0.weight": 50}, 0)


def test_a_bias_is_no_weight() -> None:
    net = Net(lambda m, x: torch.addmm(m.b, x, m.w), b=nn.Parameter(torch.ones(1, 4)),
              w=nn.Parameter(torch.ones(5, 4)))  # fmt: skip
    assert by_weight(net, (1, 5)) == ({"w": 20}, 0)
    plain = Net(lambda m, x: F.conv2d(x, x.new_ones(4, 3, 1, 1), m.b), b=nn.Parameter(torch.ones(4)))
    assert by_weight(plain, IMAGE) == ({}, 4 * 3 * 64)


def test_of_two_weights_the_second_has_the_product() -> None:
    net = Net(
        lambda m, x: x @ (m.a @ m.b), a=nn.Parameter(torch.ones(5, 6)), b=nn.Parameter(torch.ones(6, 4))
    )
    assert by_weight(net, (1, 5)) == ({"b": 5 * 6 * 4}, 20)


def test_products_without_a_weight_are_the_rest() -> None:
    attention = Net(
        lambda m, x: F.scaled_dot_product_attention(y := m.a(x), y, y), a=nn.Linear(4, 4, bias=False)
    )
    assert by_weight(attention, (1, 7, 4)) == ({"a.weight": 7 * 16}, 2 * 7 * 7 * 4)
    assert Shares(attention, torch.zeros(1, 7, 4)).unbooked_macs == 2 * 7 * 7 * 4
    computed = Net(lambda m, x: F.linear(x, m.w * 2), w=nn.Parameter(torch.ones(3, 5)))
    assert by_weight(computed, (1, 5)) == ({}, 15)


def test_a_view_of_a_weight_is_the_weight() -> None:
    net = Net(lambda m, x: F.linear(x, m.w[:2]), w=nn.Parameter(torch.ones(3, 5)))
    assert by_weight(net, (1, 5)) == ({"w": 10}, 0)


def test_numbers_decide() -> None:
    net = Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv(3, 3))
    with pytest.raises(
        ModelError, match="could not count multiply-adds: the forward pass on tensors without"
    ):
        Shares(net, torch.zeros(IMAGE))


# ---- what hangs on a group


def test_a_chain_by_hand() -> None:
    """Rows, biases and norms of the one, columns of the next; statistics are no params."""
    net = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    shares, found = weighed(net)
    first, second, head = 8 * 3 * 9, 6 * 8 * 9, 5 * 6
    assert found == {
        "0": (first + 8 + 16 + second, 64 * (first + second)),
        "3": (second + 6 + head, 64 * second + head),
        "7": (head + 5, head),
    }
    assert (shares.params, shares.macs) == (
        first + 8 + 16 + second + 6 + head + 5,
        64 * (first + second) + head,
    )
    free = free_groups(find_groups(net, torch.zeros(IMAGE)))
    # What lies between the two groups counts once; only the bias of the head stays.
    assert shares.of(free) == Portion(
        shares.params - 5, shares.macs, (shares.params - 5) / shares.params, 1.0
    )
    assert shares.of([]) == Portion(0, 0, 0.0, 0.0)


def test_rows_and_columns_of_one_weight_count_once_within_a_group() -> None:
    """A layer around which a skip leads reads and makes the same units."""
    net = Net(lambda m, x: m.out((s := m.stem(x)) + m.a(s)), stem=conv(3, 6), a=conv(6, 6), out=conv(6, 2))
    _, found = weighed(net)
    params = (6 * 3 * 9) + (6 * 6 * 9) + (2 * 6 * 9)
    assert found["stem"] == (params + 6 + 6, 64 * params)


def test_only_a_part_of_a_weight() -> None:
    """Of the columns that read a concat, a group has its own: 9 x 4 x 5 of 9 x 4 x 15."""
    shares = Shares(*built("concat"))
    a, b, out = groups_of("concat")
    assert (a.name, b.name, out.name) == ("a.0", "b.0", "out")
    assert shares.of([a]).params == 5 * 27 + 10 + 4 * 5 * 9
    assert shares.of([b]).params == 7 * 27 + 14 + 4 * 7 * 9
    assert shares.of([a, b]).params == 12 * 27 + 24 + 4 * 12 * 9
    assert shares.of([a, b]).macs == 64 * (12 * 27 + 4 * 12 * 9)
    assert shares.macs == 64 * (12 * 27 + 4 * 15 * 9)


def test_grouped_and_depthwise() -> None:
    net = nn.Sequential(
        conv(3, 8, bias=False), conv(8, 8, groups=8, bias=False), conv(8, 6, groups=2, bias=False),
        conv(6, 2, bias=False),
    )  # fmt: skip
    _, found = weighed(net)
    # A unit is one channel of each half: the grouped convolution has a column for both, (6, 4, 3, 3).
    stem, depthwise, grouped, out = 8 * 27, 8 * 9, 6 * 4 * 9, 2 * 6 * 9
    assert found == {
        "0": (stem + depthwise + grouped, 64 * (stem + depthwise + grouped)),
        "2": (grouped + out, 64 * (grouped + out)),
        "3": (out, 64 * out),
    }


def test_a_shared_layer() -> None:
    """The weight is there once and is read at 64 and at 16 places."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.b(m.a(x))
        return m.out(m.b(F.max_pool2d(y, 2)))

    shares, found = weighed(Net(forward, a=conv(3, 4, bias=False), b=conv(4, 4, bias=False), out=conv(4, 2)))
    a, b, out = 4 * 27, 4 * 4 * 9, 2 * 4 * 9
    assert shares.macs == 64 * a + (64 + 16) * b + 16 * out
    assert found["a"] == (a + b + out, shares.macs)


def test_two_keys_of_one_tensor_count_once() -> None:
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    net[1].weight = net[0].weight
    whole = (tuple((unit,) for unit in range(5)),)
    rows = Member("0.weight", 0, "out", *whole)
    columns = Member("1.weight", 1, "in", tuple((unit,) for unit in range(2)))
    shares = Shares(net, torch.zeros(1, 5))
    assert shares.of([ChannelGroup("x", 5, (rows,)), ChannelGroup("y", 2, (columns,))]).params == 25
    assert shares.of([ChannelGroup("y", 2, (columns,))]) == Portion(10, 20, 0.4, 0.4)
    assert shares.multiplies("1.weight")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_table(name: str) -> None:
    model, inputs = built(name)
    shares, groups = Shares(model, inputs), groups_of(name)
    assert (shares.params, shares.macs) == (count_params(model), count_macs(model, inputs))
    each = [shares.of([group]) for group in free_groups(groups)]
    reach = shares.of(free_groups(groups))
    assert max([0, *(portion.params for portion in each)]) <= reach.params <= sum(p.params for p in each)
    assert max([0, *(portion.macs for portion in each)]) <= reach.macs <= shares.macs
    assert 0 <= shares.of(groups).params_share <= 1
