"""Inner products of maps: right whatever the memory, in as many passes as that takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune.slabs
from edgeprune.slabs import Request, inner_products, shapes_of

ROWS = ((0,), (2, 1), (3,), (1, 4))


class Net(nn.Module):
    """A convolution that is used twice, on maps of two sizes, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 3, 3, padding=1)
        self.idle = nn.Conv2d(5, 3, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        return self.conv(x).sum() + self.conv(x[..., ::2]).sum()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_shapes_count_the_uses_and_leave_out_what_is_never_called(net):
    shapes = shapes_of(net, torch.randn(1, 5, 4, 6), ["conv", "idle"])
    assert set(shapes) == {"conv"}
    assert shapes["conv"].places == {"receives": (24, 12), "returns": (24, 12)}
    assert shapes["conv"].channels == 3


@pytest.mark.parametrize("memory", [1, 500, 3_000, 10**8])
def test_are_the_same_whatever_the_memory(net, monkeypatch, memory):
    monkeypatch.setattr(edgeprune.slabs, "BATCH", 4)
    monkeypatch.setattr(edgeprune.slabs, "_BLOCK", 8 * 7 * 5)
    images = torch.randn(7, 5, 4, 6)
    shapes = shapes_of(net, images[:1], ["conv"])
    net.seen.clear()
    everything = Request("conv", "returns", ((0, 1, 2),))
    ours = list(inner_products(net, images, shapes, [everything, Request("conv", "receives", ROWS)], memory))
    passes = len(net.seen) // 2
    assert (passes == 1) is (memory == 10**8)
    x = images.double().numpy()
    for number, row in enumerate(ROWS):
        maps = np.concatenate([x[:, list(row)].reshape(7, -1), x[:, list(row), :, ::2].reshape(7, -1)], 1)
        np.testing.assert_allclose(ours[1][number].numpy(), maps @ maps.T, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        parts = [net.conv(images).flatten(1), net.conv(images[..., ::2]).flatten(1)]
    maps = torch.cat(parts, 1).double().numpy()
    np.testing.assert_allclose(ours[0][0].numpy(), maps @ maps.T, rtol=1e-5, atol=1e-5)


def test_a_pass_takes_no_more_memory_than_it_may(net, monkeypatch):
    """Slabs of one pass stay within the memory; without the cut (negative control) they would not."""
    images = torch.randn(7, 5, 4, 6)
    shapes = shapes_of(net, images[:1], ["conv"])
    taken = []
    fill = edgeprune.slabs._fill

    def spy(model, images, shapes, slabs):
        fill(model, images, shapes, slabs)
        taken.append(sum(slab.maps.numel() * slab.maps.element_size() for slab in slabs))
        assert taken[-1] == sum(slab.size for slab in slabs)

    monkeypatch.setattr(edgeprune.slabs, "_fill", spy)
    for memory, fits in ((1_500, True), (10**6, False)):
        taken.clear()
        list(inner_products(net, images, shapes, [Request("conv", "receives", ROWS)], memory))
        assert (max(taken) <= 1_500) is fits
