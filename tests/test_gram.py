"""Class-wise quadratics of Gram matrices, beside numpy written from the equations."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.calibration import Calibration
from edgeprune.channels import ChannelGroup, Member
from edgeprune.errors import SchemeError
from edgeprune.gram import columns_of, grams, quadratics, relatedness_of

N, CLASSES = 12, 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


@pytest.fixture
def calibration():
    images = torch.randn(N, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return Calibration(images, torch.arange(N) % CLASSES, ("a", "b", "c"))


def found_in(net, calibration, **options):
    groups = ep.find_groups(net, calibration.images[:1])
    columns = columns_of(net, groups)
    return {q.columns.layer: q for q in quadratics(net, columns, calibration, **options)}


def gram(maps, kernel, centre):
    """(n, d) -> (n, n)."""
    maps = maps.reshape(len(maps), -1).astype(np.float64)
    distances = ((maps[:, None] - maps[None]) ** 2).sum(-1)
    d = maps.shape[1]
    found = {
        "gaussian": np.exp(-distances / d),
        "laplace": np.exp(-np.sqrt(0.5 / d) * np.sqrt(distances)),
        "linear": maps @ maps.T,
    }[kernel]
    h = np.eye(len(maps)) - 1 / len(maps)
    return h @ found @ h if centre else found


def theirs(x, y, labels, kernel, centre, scale):
    left = np.stack([gram(unit, kernel, centre) for unit in x])
    right = gram(y, kernel, centre)
    if scale == "layer":
        left, right = left / np.linalg.norm(left.mean(0)), right / np.linalg.norm(right)
    elif scale == "units":
        left = left / np.linalg.norm(left.mean(0))
    elif scale == "channel":
        left = left / np.linalg.norm(left, axis=(1, 2))[:, None, None]
        right = right / np.linalg.norm(right)
    g, h, t = [], [], []
    for c in range(CLASSES):
        a = left[:, labels == c].reshape(len(left), -1).T
        b = right[labels == c].ravel()
        g.append(a.T @ a)
        h.append(a.T @ b)
        t.append(b @ b)
    return np.array(g) / N**2, np.array(h) / N**2, np.array(t) / N**2


@pytest.mark.parametrize("scale", ["layer", "units", "channel", "none"])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "linear"])
def test_are_what_the_equations_say(net, calibration, kernel, centre, scale):
    ours = found_in(net, calibration, kernel=kernel, centre=centre, scale=scale)
    assert set(ours) == {"2", "5"}
    with torch.no_grad():
        x = net[:2](calibration.images)
        y = net[2](x)
        z = net[3](y)
        out = net[5](z.flatten(1))
    labels = calibration.labels.numpy()
    pairs = {
        "2": ([x[:, k].numpy() for k in range(6)], y.numpy()),
        "5": ([z[:, k].numpy() for k in range(4)], out.numpy()),  # a unit of the linear layer has 4 inputs
    }
    for layer, (units, output) in pairs.items():
        expected = theirs(units, output, labels, kernel, centre, scale)
        for name, value in zip(("gram", "target", "energy"), expected, strict=True):
            found = getattr(ours[layer], name).numpy()
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7 * np.abs(value).max())


def test_blocks_and_slabs_change_nothing(net, calibration):
    """With memory for two units' Grams at a time, and with memory for no whole map."""
    whole = found_in(net, calibration)
    for memory in (4 * 8 * N**2, 100):
        parts = found_in(net, calibration, memory=memory)
        for layer, expected in whole.items():
            for name in ("gram", "target", "energy", "relatedness"):
                torch.testing.assert_close(getattr(parts[layer], name), getattr(expected, name))


def test_relatedness_is_the_cosine_of_the_centred_class_means(net, calibration):
    ours = found_in(net, calibration)["2"].relatedness.numpy()
    with torch.no_grad():
        maps = net[:3](calibration.images).flatten(1).double().numpy()
    means = np.stack([maps[calibration.labels.numpy() == c].mean(0) for c in range(CLASSES)])
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, means @ means.T, atol=1e-6)


def test_classes_that_cannot_be_told_apart_are_not_related():
    members = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    assert torch.equal(relatedness_of(torch.ones(4, 4).double(), members), torch.eye(2).double())


def test_large_maps_that_differ_little_keep_their_distances():
    """In float64; negative control: float32 inner products lose them."""
    maps = 1000 + 1e-3 * torch.randn(5, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gram(maps.numpy(), "gaussian", True)
    length = torch.tensor([50])
    ours, _, _ = grams((maps @ maps.T)[None].clone(), length, "gaussian", True)
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-9)
    single = maps.float()
    rough, _, _ = grams((single @ single.T)[None].double(), length, "gaussian", True)
    assert np.abs(rough[0].numpy() - expected).max() > 1e-7


def test_a_dead_and_a_constant_unit_tell_nothing(net, calibration):
    with torch.no_grad():
        for unit, bias in ((1, -1.0), (4, 2.0)):
            net[0].weight[unit] = 0
            net[0].bias[unit] = bias
    for kernel in ("gaussian", "laplace", "linear"):
        found = found_in(net, calibration, kernel=kernel, scale="channel")["2"]
        assert found.zero.tolist() == [False, True, False, False, False, False]
        assert found.constant.tolist() == [False, True, False, False, True, False]
        assert not bool(found.gram[:, [1, 4]].any())
        assert not bool(found.target[:, [1, 4]].any())
        assert bool(found.target[:, [0, 2, 3, 5]].any(0).all())


def test_refuses_a_layer_whose_output_is_constant(net, calibration):
    nn.init.zeros_(net[2].weight)
    with pytest.raises(
        SchemeError, match="what 2 returns is the same for every calibration image, expected maps"
    ):
        found_in(net, calibration)


def test_all_that_a_layer_reads_are_columns_also_what_stays():
    """Of a concatenation of the image and two groups, one of them frozen."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(9, 5, 1)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), x, self.b(x)], 1))

    def member(first, size):
        return (Member("c.weight", 1, "in", tuple((first + unit,) for unit in range(size))),)

    net = Net()
    groups = (ChannelGroup("b", 2, member(7, 2), "why not"), ChannelGroup("a", 4, member(0, 4)))
    (found,) = columns_of(net, groups)
    assert found.layer == "c"
    expected = {**{("a", unit): (unit,) for unit in range(4)}, ("b", 0): (7,), ("b", 1): (8,)}
    expected |= {("", channel): (channel,) for channel in (4, 5, 6)}
    assert dict(zip(found.units, found.channels, strict=True)) == expected
    assert columns_of(net, groups[::-1]) == (found,)
    assert columns_of(net, (groups[0],)) == ()
    twin = replace(groups[1], name="twin", frozen_because="the same channels once more")
    assert columns_of(net, (*groups, twin)) == (found,)


def test_one_pass_over_the_images_does_for_layers_that_fit(net, calibration):
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    groups = ep.find_groups(net, calibration.images[:1])
    columns = columns_of(net, groups)
    counts = []
    for memory in (10**9, 3000):
        calls.clear()
        list(quadratics(net, columns, calibration, memory=memory))
        counts.append(len(calls))
    assert counts[0] == 2  # shapes, then maps
    assert all(first < second for first, second in pairwise(counts))
