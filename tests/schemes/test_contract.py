"""What every scheme promises. A new scheme needs a row in QUICK, nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from edgeprune.channels import ChannelGroup
from edgeprune.schemes import SCHEMES, make_scheme
from edgeprune.training import Progress

# Options that make a default scheme quick enough for a test.
QUICK: dict[str, dict[str, object]] = {
    "proximal-ns": {"epochs": 2, "l1": 1.0, "beta": 2.0},
    "sglp-ib": {"images": 12, "lambdas": 5, "path_ratio": 0.05},
    "stlp-ib": {"images": 12, "lambdas": 5, "path_ratio": 0.05},
    "hsic-lasso": {"images": 12, "lambdas": 5},
    "taylor": {"images": 30},
    "activation-weight": {"images": 30},
    "magnitude": {},
    "bn-scale": {},
    "random": {},
    "obs": {"images": 12},
}
BLIND = {"random"}  # does not look at the network, so that permuted channels mean nothing to it


@pytest.fixture(params=list(SCHEMES))
def scheme(request):
    return make_scheme(request.param, **QUICK[request.param])


def bits(model) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def permute_first_group(model, order: list[int]):
    """The same function with the first convolution's channels in another order."""
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order].clone())
        for vector in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            vector.copy_(vector[order].clone())
        model[3].weight.copy_(model[3].weight[:, order].clone())
    return model


def test_the_table_names_each_scheme_by_its_own_name():
    assert {name: scheme.name for name, scheme in SCHEMES.items()} == {name: name for name in QUICK}


def test_default_constructible_frozen_and_json(scheme):
    default = type(scheme)()
    for field in dataclasses.fields(default):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(default, field.name, None)
    options = json.loads(json.dumps(dataclasses.asdict(scheme), allow_nan=False))
    assert type(scheme)(**options) == scheme


def test_every_option_says_what_it_is(scheme):
    assert all(field.metadata["text"] for field in dataclasses.fields(scheme))


def test_scores_are_finite_not_negative_float32_on_the_cpu_and_as_long_as_the_group(
    scheme, net, groups, data
):
    scores = scheme.fit(net(), groups, data)
    sizes = {group.name: group.size for group in groups}
    assert scores
    for name, score in scores.items():
        assert score.shape == (sizes[name],)
        assert score.dtype == torch.float32
        assert score.device.type == "cpu"
        assert not score.requires_grad
        assert bool(score.isfinite().all())
        assert bool((score >= 0).all())


def test_frozen_groups_are_left_out(scheme, net, groups, data):
    assert "10" not in scheme.fit(net(), groups, data)


def test_facts_are_json_and_hold_the_options(scheme, net, groups, data):
    facts = json.loads(json.dumps(scheme.fit(net(), groups, data).facts, allow_nan=False))
    assert facts["options"] == dataclasses.asdict(scheme)


def test_only_schemes_that_train_change_the_network(scheme, net, groups, data):
    model = net().eval()
    before, flags = bits(model), [module.training for module in model.modules()]
    scheme.fit(model, groups, data)
    assert (bits(model) == before) is (not scheme.trains)
    assert [module.training for module in model.modules()] == flags


def test_same_seed_same_scores_and_the_random_state_is_left_alone(scheme, net, groups, data):
    torch.manual_seed(1)
    first = scheme.fit(net(), groups, data)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = scheme.fit(net(), groups, data)
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_permuting_channels_permutes_scores(scheme, net, groups, data):
    order = [3, 0, 5, 1, 4, 2]
    straight = scheme.fit(net(), groups, data)
    permuted = scheme.fit(permute_first_group(net(), order), groups, data)
    if scheme.name in BLIND:
        assert same(permuted, straight)
        return
    torch.testing.assert_close(permuted["0"], straight["0"][order], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(permuted["3"], straight["3"], rtol=1e-3, atol=1e-5)
    # Negative control: without the permutation they would not agree.
    assert not torch.allclose(permuted["0"], straight["0"], rtol=1e-3, atol=1e-5)


def test_the_order_of_the_groups_does_not_matter(scheme, net, groups, data):
    assert same(scheme.fit(net(), groups, data), scheme.fit(net(), groups[::-1], data))


def test_only_schemes_that_train_report_progress(scheme, net, groups, data):
    seen: list[Progress] = []
    scheme.fit(net(), groups, data, on_progress=seen.append)
    assert bool(seen) is scheme.trains


def test_the_weights_decide_not_the_object(scheme, net, groups, data):
    model = net()
    twin = copy.deepcopy(model)
    assert same(scheme.fit(model, groups, data), scheme.fit(twin, groups, data))


def test_an_empty_group_breaks_nothing(scheme, net, groups, data):
    frozen: tuple[ChannelGroup, ...] = (
        *groups,
        dataclasses.replace(groups[0], name="x", frozen_because="why not"),
    )
    assert "x" not in scheme.fit(net(), frozen, data)
