"""Following a forward pass: layers, the norms that read them, and the sums that they end in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgeprune.flow import Follow, Steps
from edgeprune.models import load_model


def follow(net, *inputs):
    with torch.no_grad(), Follow(net.eval()) as found:
        net(*inputs)
    return {site.weight: site for site in found.sites()}, found.names


class Block(nn.Module):
    """A residual block with every way to end in a sum, or not."""

    def __init__(self, *, inplace=False, how="add", late=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=inplace)
        self.how, self.late = how, late
        self.side = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.act(self.stem(x))
        shortcut = self.side(x) if self.how == "side first" else x
        y = self.norm(self.conv(x))
        if self.late:
            shortcut = x * 2
        if self.how == "iadd":
            y += shortcut
        elif self.how == "function":
            y = torch.add(y, shortcut)
        elif self.how == "read twice":
            return y + shortcut + y.mean()
        elif self.how == "scaled":
            y = torch.add(y, shortcut, alpha=2)
        elif self.how == "broadcast":
            y = y + shortcut.mean((2, 3), keepdim=True)
        elif self.how == "none":
            return self.act(y)
        else:
            y = y + shortcut
        return self.act(y)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("how", ["add", "iadd", "function", "side first"])
def test_a_sum_with_what_came_before_is_found(how, inplace):
    sites, names = follow(Block(how=how, inplace=inplace), torch.randn(2, 3, 5, 5))
    site = sites["conv.weight"]
    assert site.mean == "norm.running_mean"
    assert site.bias is None
    assert "add" in names[site.sum.result]
    assert names[site.sum.other] == ("conv2d" if how == "side first" else "relu")
    assert site.sum.other < site.number < site.norm < site.sum.result


@pytest.mark.parametrize("how", ["none", "read twice", "scaled", "broadcast"])
def test_what_is_no_plain_sum_is_none(how):
    sites, _ = follow(Block(how=how), torch.randn(2, 3, 5, 5))
    assert sites["conv.weight"].sum is None
    assert sites["conv.weight"].mean == "norm.running_mean"


def test_a_sum_with_what_comes_later_is_none():
    sites, _ = follow(Block(late=True), torch.randn(2, 3, 5, 5))
    assert sites["conv.weight"].sum is None


def test_of_two_layers_that_are_added_the_later_one_makes_up_for_both():
    sites, _ = follow(Block(how="side first"), torch.randn(2, 3, 5, 5))
    assert sites["side.weight"].sum is None
    assert sites["side.weight"].bias == "side.bias"
    assert sites["conv.weight"].sum.other == sites["side.weight"].number


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.once = nn.Linear(3, 2)
        self.norm = nn.BatchNorm2d(3)
        self.back = nn.ConvTranspose2d(3, 3, 1)
        self.computed = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.twice(self.twice(x))
        x = self.norm(self.back(x))
        x = F.conv2d(x, self.computed.weight * 2)
        return self.once(x.mean((2, 3)))


def test_layers_used_twice_transposed_ones_and_computed_weights_are_no_sites():
    sites, _ = follow(Reused(), torch.randn(2, 3, 5, 5))
    assert list(sites) == ["once.weight"]


def test_a_norm_used_twice_is_nobodys_bias():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.a(x)).relu() * self.norm(self.b(x))

    sites, _ = follow(Net(), torch.randn(2, 3, 5, 5))
    assert sites["a.weight"].mean is None
    assert sites["b.weight"].norm is None


def test_the_steps_of_two_passes_have_the_same_numbers():
    class Names(Steps):
        def __init__(self):
            super().__init__()
            self.seen = []

        def step(self, number, func, args, kwargs):
            result = func(*args, **kwargs)
            self.seen.append((number, getattr(func, "__name__", "")))
            return result

    net, passes = load_model("resnet20").eval(), []
    for size in (1, 3):
        images = torch.randn(size, 3, 32, 32)
        with torch.no_grad(), Names() as names:
            net(images)
        passes.append(names.seen)
    assert passes[0] == passes[1]


def test_every_block_of_a_resnet_ends_in_a_sum_but_those_whose_shortcut_is_made_late():
    sites, _ = follow(load_model("torchvision:resnet18"), torch.randn(1, 3, 64, 64))
    sums = [key for key, site in sites.items() if site.sum]
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    # Where a block has a convolution on its shortcut, that one runs last and makes up for both.
    expected = [
        f"{block}.downsample.0.weight"
        if block.endswith(".0") and block != "layer1.0"
        else f"{block}.conv2.weight"
        for block in blocks
    ]
    assert sums == expected
    assert len(sites) == 21
