from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.calibration import calibration_of
from edgeprune.channels import ChannelGroup, Member
from edgeprune.errors import SchemeError
from edgeprune.schemes import Taylor
from tests.schemes.conftest import one_each


def loss_with(model, images, labels, group, unit, factor):
    """Per image, with the channel that layer ``group + 3`` reads scaled."""

    def scale(_, args):
        maps = args[0].clone()
        maps[:, unit] *= factor
        return (maps,)

    handle = model[group + 3].register_forward_pre_hook(scale)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
    handle.remove()
    return losses.numpy()


def test_is_the_slope_of_the_loss_by_a_factor_at_the_unit(net, groups, data):
    """Beside central differences in float64."""
    model = net().double().eval()
    calibration = calibration_of(data, 5, seed=0)
    data = as_double(data)
    ours = Taylor(images=15, normalize="none").fit(model, groups, data)
    images, labels = calibration.images.double(), calibration.labels
    assert set(ours) == {"0", "3", "6"}
    for unit in range(6):
        up, down = (loss_with(model, images, labels, 0, unit, 1 + step) for step in (1e-5, -1e-5))
        theirs = np.abs((up - down) / 2e-5).mean()
        assert float(ours["0"][unit]) == pytest.approx(theirs, rel=1e-5, abs=1e-8)
    scaled = Taylor(images=15).fit(model, groups, data)
    for name, score in scaled.items():
        assert float(score.norm()) == pytest.approx(1)
        torch.testing.assert_close(score, ours[name] / ours[name].norm())


def as_double(data):
    from dataclasses import replace

    class Loader:
        def __iter__(self):
            return ((images.double(), labels) for images, labels in data.calib)

    return replace(data, calib=Loader())


class Shared(nn.Module):
    """A stream that two layers read, one of them twice and one after the places became features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        tokens = self.c(x.flatten(2).transpose(1, 2)).mean(1)
        return tokens + self.b(x).amax((2, 3)) + self.b(x[..., ::2]).mean((2, 3))


def test_all_reads_of_a_unit_count_as_one_factor(data):
    model = Shared()
    members = tuple(Member(f"{name}.weight", 1, "in", one_each(4)) for name in "bc")
    group = ChannelGroup("a", 4, (Member("a.weight", 0, "out", one_each(4)), *members))
    ours = Taylor(images=9, normalize="none").fit(model, (group,), data)["a"]
    calibration = calibration_of(data, 3, seed=0)
    factor = torch.ones(9, 4, 1, 1, requires_grad=True)
    handle = model.a.register_forward_hook(lambda *args: args[2] * factor)  # ReLU and a factor > 0 commute
    nn.functional.cross_entropy(model(calibration.images), calibration.labels, reduction="sum").backward()
    handle.remove()
    torch.testing.assert_close(ours, factor.grad[:, :, 0, 0].abs().mean(0))


def test_parameters_need_no_gradient_and_get_none(net, groups, data):
    model = net().requires_grad_(False)
    score = Taylor(images=12).fit(model, groups, data)["0"]
    assert bool((score > 0).all())
    model = net()
    assert torch.equal(Taylor(images=12).fit(model, groups, data)["0"], score)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_refuses_a_gradient_that_is_not_finite(net, groups, data):
    model = net()
    with torch.no_grad():
        model[6].weight[0] = float("inf")
    with pytest.raises(SchemeError, match="the gradient at 0 is not finite, expected finite numbers"):
        Taylor(images=12).fit(model, groups, data)
