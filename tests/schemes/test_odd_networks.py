"""What looks at layers meets networks with dead, uncalled and odd parts."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgeprune as ep
from edgeprune.errors import ModelError, SchemeError
from edgeprune.schemes import make_scheme
from edgeprune.schemes.sensitivity import sensitivities, stakes
from edgeprune.training.evaluation import mode

LOOKING = {
    "sglp-ib": {"images": 12, "lambdas": 5, "path_ratio": 0.05},
    "stlp-ib": {"images": 12, "lambdas": 5, "path_ratio": 0.05},
    "obs": {"images": 12},
    "taylor": {"images": 12},
    "activation-weight": {"images": 12},
}


class Odd(nn.Module):
    """A layer whose output goes nowhere, and one that is used by its weight alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.dead = nn.Conv2d(8, 4, 1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.uncalled = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).relu()
        self.dead(x)
        x = F.conv2d(self.b(x).relu(), self.uncalled.weight, self.uncalled.bias).relu()
        return self.last(x.mean((2, 3)))


class InDict(Odd):
    def forward(self, x):
        return {"out": super().forward(x)}


class Failing(Odd):
    def forward(self, x):
        if len(x) > 2:
            raise RuntimeError("only two at a time")
        return super().forward(x)


def odd(kind: type[nn.Module] = Odd) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


@pytest.mark.parametrize("name", LOOKING)
def test_dead_and_uncalled_layers_break_nothing(name, data):
    net = odd()
    groups = ep.find_groups(net, data.example)
    scores = make_scheme(name, **LOOKING[name]).fit(net, groups, data)
    assert {"a", "uncalled"} <= set(scores)
    assert "b" not in scores  # only the weight of a layer that is never called reads it
    plan = ep.make_plan(net, groups, scores, data.example, max_macs_ratio=0.7)
    small = ep.slim(net, plan)
    assert small(data.example).shape == (1, 3)
    json.dumps(scores.facts, allow_nan=False)


def test_obs_names_what_it_did_not_look_at(data):
    net = odd()
    facts = make_scheme("obs", images=12).fit(net, ep.find_groups(net, data.example), data).facts
    assert facts["readers_left_out"] == ["uncalled"]
    assert set(facts["without_score"]) == {"dead", "b"}


def test_nothing_hangs_on_a_layer_whose_output_goes_nowhere(data):
    net, images = odd(), next(iter(data.calib))[0][:4]
    found = sensitivities(net, images, ("dead", "b", "uncalled"))
    assert found["dead"].tolist() == [0.0] * 4
    assert bool((found["b"] > 0).all())
    assert "uncalled" not in found
    assert stakes(net, images, ("dead", "b", "uncalled")).keys() == {"dead", "b"}


def test_a_network_without_gradient_has_no_sensitivity(data):
    class Cut(Odd):
        def forward(self, x):
            return super().forward(x).detach()

    found = sensitivities(odd(Cut), next(iter(data.calib))[0][:4], ("b",))
    assert found["b"].tolist() == [0.0] * 8


@pytest.mark.parametrize("name", ["sglp-ib", "obs", "taylor"])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (InDict, "the network's output is dict, expected one tensor of logits for each of"),
        (Failing, r"the network on the calibration images is failing \(only two at a time\)"),
    ],
)
def test_says_what_is_wrong_with_the_network(name, kind, match, data):
    net = odd(kind)
    groups = ep.find_groups(net, data.example)
    with pytest.raises(ModelError, match=match):
        make_scheme(name, **LOOKING[name]).fit(net, groups, data)


def test_a_gradient_that_is_not_finite_is_one_clear_error():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return (self.layer(x) * 0).sqrt()

    with pytest.raises(SchemeError, match="the gradient of the logits at layer is not finite"):
        sensitivities(Root(), torch.randn(4, 3), ("layer",))


def test_a_refit_of_constant_outputs_gives_numbers_that_json_knows(data):
    net = odd()
    groups = ep.find_groups(net, data.example)
    with torch.no_grad():
        net.last.weight.zero_()
    plan = ep.make_plan(net, groups, {"a": torch.arange(8.0)}, data.example, max_macs_ratio=0.7)
    small = ep.slim(net, plan)
    with torch.no_grad():
        small.last.bias.add_(1)
    done = ep.refit(small, net, plan, data, images=12)
    assert all(math.isfinite(error) for error in done.errors.values())
    assert done.errors["nothing"] > 1e6
    with torch.no_grad(), mode(small, False):
        assert torch.allclose(small(data.example), net(data.example), atol=1e-5)
