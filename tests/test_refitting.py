"""Refit: what is left makes up for what is gone, never for the worse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.data import Data, Normalization, TensorLoader
from edgeprune.errors import DataError, ModelError
from edgeprune.moments import Moments
from edgeprune.refitting import refit

IMAGES = 48


def data_of(images: torch.Tensor, classes: int = 2) -> Data:
    labels = torch.arange(len(images)) % classes
    loader = TensorLoader(images, labels, batch_size=16, normalization=Normalization((0.0,) * 3, (1.0,) * 3))
    names = tuple("ab"[:classes])
    return Data("made", loader, loader, loader, loader, images[:1], names, loader.normalization, "made")


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    return data_of(torch.rand(IMAGES, 3, 8, 8, generator=generator))


class Net(nn.Module):
    """A stem, two residual blocks, a grouped convolution and a classifier."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.inner_norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.outer_norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.grouped = nn.Conv2d(width, 8, 3, groups=2)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        for a, na, b, nb in zip(self.inner, self.inner_norm, self.outer, self.outer_norm, strict=True):
            x = (nb(b(na(a(x)).relu())) + x).relu()
        return self.last(self.grouped(x).relu().mean((2, 3)))


def made(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -0.2, 0.2)
        net.train()
        for _ in range(20):
            net(torch.rand(16, 3, 8, 8))
    return net.eval()


def cut(net, data, ratio=0.6):
    groups = ep.find_groups(net, data.example)
    scores = ep.schemes.Random(seed=1).fit(net, groups, data)
    plan = ep.make_plan(net, groups, scores, data.example, max_macs_ratio=ratio)
    return ep.slim(net, plan, example=data.example), plan


def distance(net, dense, data):
    with torch.no_grad():
        images = data.test.images
        return float((net(images) - dense(images)).square().mean())


def test_makes_the_slim_network_much_closer_and_says_so(data):
    dense = made()
    small, plan = cut(dense, data)
    before = distance(small, dense, data)
    weights = copy.deepcopy(dense.state_dict())
    done = refit(small, dense, plan, data, images=IMAGES)
    assert distance(small, dense, data) < 0.2 * before
    assert done.kept == "weights"
    assert done.errors["weights"] < done.errors["nothing"]
    assert done.images == IMAGES
    assert [layer.layer for layer in done.layers] == [
        "stem", "inner.0", "outer.0", "inner.1", "outer.1", "grouped", "last",
    ]  # fmt: skip
    assert all(layer.after <= layer.before for layer in done.layers)
    assert all((layer.ridge is None) == (layer.after == layer.before) for layer in done.layers)
    assert all(torch.equal(weights[key], value) for key, value in dense.state_dict().items())
    assert not small.training


def test_what_can_be_made_up_for_is_made_up_for_exactly():
    """A unit that copies another one: without it, the other one's columns take over."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 2 * net[0].weight[1], 2 * net[0].bias[1]
    data = data_of(torch.rand(IMAGES, 3, 8, 8))
    groups = ep.find_groups(net, data.example)
    scores = {group.name: torch.ones(group.size) for group in groups if group.name == "0"}
    scores["0"][3] = 0
    plan = ep.make_plan(net, groups, scores, data.example, channel_multiple=1)
    small = ep.slim(net, plan, example=data.example)
    assert plan.removed("0") == (3,)
    before = distance(small, net, data)
    refit(small, net, plan, data, images=IMAGES)
    assert distance(small, net, data) < 1e-4 * before


def test_a_change_of_the_mean_goes_to_the_bias_or_the_norms_running_mean():
    """A removed unit that is constant only on the images at hand: weights can not, an intercept can."""
    torch.manual_seed(0)
    for bias in (False, True):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=bias),
            *([] if bias else [nn.BatchNorm2d(5)]), nn.Flatten(), nn.Linear(5 * 64, 2),
        ).eval()  # fmt: skip
        with torch.no_grad():
            net[0].weight[2], net[0].bias[2] = 0, 3.0
        data = data_of(torch.rand(IMAGES, 3, 8, 8))
        groups = ep.find_groups(net, data.example)
        scores = {"0": torch.tensor([1.0, 1.0, 0.0, 1.0])}
        plan = ep.make_plan(net, groups, scores, data.example)
        small = ep.slim(net, plan, example=data.example)
        before = copy.deepcopy(small.state_dict())
        refit(small, net, plan, data, images=IMAGES)
        assert distance(small, net, data) < 1e-9
        key = "2.bias" if bias else "3.running_mean"
        assert not torch.allclose(small.state_dict()[key], before[key])


def test_an_exact_cut_is_left_alone_to_the_bit(data):
    dense = made()
    with torch.no_grad():
        dense.inner_norm[0].weight[:3] = 0
        dense.inner_norm[0].bias[:3] = 0.3
    groups = ep.find_groups(dense, data.example)
    scores = ep.schemes.BNScale().fit(dense, groups, data)
    plan = ep.make_plan(dense, groups, scores, data.example)
    assert plan.removed("inner.0")
    small = ep.slim(dense, plan, example=data.example)
    before = copy.deepcopy(small.state_dict())
    done = refit(small, dense, plan, data, images=IMAGES)
    assert done.kept == "nothing" or all(layer.ridge is None for layer in done.layers)
    assert distance(small, dense, data) < 1e-9
    for key, value in small.state_dict().items():
        if done.kept == "nothing":
            assert torch.equal(value, before[key])


def test_a_layer_keeps_its_weights_if_the_change_does_not_help_on_held_out_images(data, monkeypatch):
    dense = made()
    small, plan = cut(dense, data)
    before = copy.deepcopy(small.state_dict())
    solved = Moments.solved

    def astray(self, ridge, *, intercept):
        weight, bias = solved(self, ridge, intercept=intercept)
        return -weight, -bias

    monkeypatch.setattr(Moments, "solved", astray)
    done = refit(small, dense, plan, data, images=IMAGES)
    assert all(layer.ridge is None and layer.after == layer.before for layer in done.layers)
    assert done.errors["weights"] == done.errors["nothing"]
    if done.kept in ("nothing", "weights"):
        assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_the_network_keeps_its_weights_if_its_outputs_are_not_closer_on_held_out_images(data, monkeypatch):
    dense = made()
    small, plan = cut(dense, data)
    before = copy.deepcopy(small.state_dict())
    errors = iter([0.1, 0.2, 0.4, 0.3])
    monkeypatch.setattr("edgeprune.refitting.outputs_lack", lambda *_: next(errors))
    done = refit(small, dense, plan, data, images=IMAGES)
    assert done.kept == "nothing"
    assert any(layer.ridge is not None for layer in done.layers)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_norms_can_be_what_is_kept():
    """Statistics that are far off: with these alone estimated anew, all is well."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2))
    torch.manual_seed(0)
    images = torch.rand(IMAGES, 3, 8, 8)
    net.train()
    net[1].momentum = 1.0
    net(images)
    dense = net.eval()
    groups = ep.find_groups(dense, images[:1])
    scores = {"0": torch.arange(6.0)}
    plan = ep.make_plan(dense, groups, scores, images[:1])
    small = ep.slim(dense, plan, example=images[:1])
    with torch.no_grad():
        small[1].running_var.mul_(100)
    momentum = small[1].momentum
    done = refit(small, dense, plan, data_of(images), images=IMAGES)
    assert set(done.errors) == {"nothing", "weights", "norms", "weights and norms"}
    assert "norms" in done.kept
    assert small[1].momentum == momentum
    assert not small[1].training


def test_the_same_seed_gives_the_same_bits(data):
    dense = made()
    results = []
    for _ in range(2):
        small, plan = cut(dense, data)
        refit(small, dense, plan, data, images=IMAGES, places=9)
        results.append(small.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_a_residual_stream_that_is_cut_too_is_refitted(data):
    dense = made()
    groups = ep.find_groups(dense, data.example)
    (stream,) = (group for group in groups if group.name == "stem")
    scores = {"stem": torch.arange(float(stream.size))}
    plan = ep.make_plan(dense, groups, scores, data.example, max_macs_ratio=0.8)
    assert plan.removed("stem")
    small = ep.slim(dense, plan, example=data.example)
    before = distance(small, dense, data)
    refit(small, dense, plan, data, images=IMAGES)
    assert distance(small, dense, data) < before


def test_bad_images_and_networks_leave_the_weights_as_they_were(data):
    dense = made()
    small, plan = cut(dense, data)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(DataError, match="the calibration images is 2, expected at least 4 images"):
        refit(small, dense, plan, data, images=3)
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:  # in the pass that fits
            raise RuntimeError("out of order")

    handle = small.last.register_forward_pre_hook(fail)
    with pytest.raises(ModelError, match=r"could not refit the slim network: .* is failing \(out of order\)"):
        refit(small, dense, plan, data, images=IMAGES)
    handle.remove()
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
