from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.calibration import calibration_of
from edgeprune.channels import ChannelGroup, Member
from edgeprune.schemes import ActivationWeight
from edgeprune.schemes.activation_weight import column_norms
from tests.schemes.conftest import one_each


@pytest.mark.parametrize("activation", ["rms", "mean"])
@pytest.mark.parametrize("normalize", ["mean", "total", "none"])
def test_is_activation_times_the_norm_of_the_columns(net, groups, data, activation, normalize):
    model = net().eval()
    ours = ActivationWeight(images=15, activation=activation, normalize=normalize).fit(model, groups, data)
    images = calibration_of(data, 5, seed=0).images
    for name, start in (("0", 3), ("3", 6), ("6", 10)):
        with torch.no_grad():
            maps = model[:start](images).double().numpy()
        maps = np.swapaxes(maps, 0, 1).reshape(maps.shape[1], -1)
        size = np.sqrt((maps**2).mean(1)) if activation == "rms" else np.abs(maps).mean(1)
        weight = model[start].weight.detach().double().numpy()
        theirs = size * np.sqrt((np.swapaxes(weight, 0, 1).reshape(len(maps), -1) ** 2).sum(1))
        theirs /= {"mean": theirs.mean(), "total": theirs.sum(), "none": 1}[normalize]
        np.testing.assert_allclose(ours[name].numpy(), theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 6, 3, padding=1),
        nn.Conv2d(8, 6, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ConvTranspose2d(8, 6, 2),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
        nn.Linear(8, 5),
    ],
    ids=["plain", "grouped", "depthwise", "transposed", "grouped-transposed", "linear"],
)
def test_column_norms_are_those_of_the_weights_that_a_channel_meets(layer):
    """A unit impulse in one channel comes out as those weights."""
    norms = column_norms(layer)
    for channel in range(8):
        maps = torch.zeros(1, 8) if isinstance(layer, nn.Linear) else torch.zeros(1, 8, 9, 9)
        maps[0, channel, ...] = 0
        maps[(0, channel) if maps.ndim == 2 else (0, channel, 4, 4)] = 1
        with torch.no_grad():
            answer = layer(maps) - layer(torch.zeros_like(maps))
        assert float(norms[channel]) == pytest.approx(float(answer.norm()), rel=1e-5)


def test_readers_are_joined_by_their_largest_or_their_sum(data):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x).mean((2, 3)), self.c(x)

    def scored(layers, **options):
        members = tuple(Member(f"{name}.weight", 1, "in", one_each(4)) for name in layers)
        return ActivationWeight(images=9, **options).fit(Net(), (ChannelGroup("a", 4, members),), data)["a"]

    b, c = scored("b"), scored("c")
    assert not torch.allclose(b, c)
    torch.testing.assert_close(scored("bc"), torch.maximum(b, c))
    torch.testing.assert_close(scored("bc", readers="sum"), b + c)


def test_a_unit_of_several_channels_is_their_sum(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    groups = ep.find_groups(model, data.example)
    score = ActivationWeight(images=9, normalize="none").fit(model, groups, data)["0"]
    with torch.no_grad():
        maps = model[:2](calibration_of(data, 3, seed=0).images).double()
    each = maps.square().mean(0).sqrt() * model[2].weight.detach().double().norm(dim=0)
    torch.testing.assert_close(score, each.view(4, 36).sum(1).float())


def test_what_nothing_reads_is_left_out(net, groups, data):
    orphan = ChannelGroup("0", 6, groups[0].members[:1])
    assert set(ActivationWeight(images=9).fit(net(), (orphan, groups[1]), data)) == {"3"}
