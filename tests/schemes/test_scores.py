from __future__ import annotations

import dataclasses

import pytest
import torch

from edgeprune.channels import ChannelGroup
from edgeprune.schemes.scores import Scores, parameters_by_key, scaled_by_norms, score_by_norms


def test_a_unit_scores_as_its_strongest_norm_weight():
    """A residual stream: a unit is a constant only when each norm that writes to it is closed."""
    closing = ((("a", 0), ("b", 2)), (("a", 1), ("b", 1)), (("a", 2), ("b", 0)))
    stream = ChannelGroup("stream", 3, (), None, closing)
    strength = {"a": torch.tensor([0.0, -0.5, 0.0]), "b": torch.tensor([0.25, 0.1, 0.0]), "c": torch.ones(9)}
    assert score_by_norms((stream,), strength)["stream"].tolist() == [0.0, 0.5, 0.25]


def test_a_unit_that_is_always_constant_scores_zero():
    group = ChannelGroup("group", 2, (), None, ((), (("a", 0),)))
    assert score_by_norms((group,), {"a": torch.tensor([2.0])})["group"].tolist() == [0.0, 2.0]


def test_groups_that_norms_cannot_close_are_left_out(groups):
    partly = dataclasses.replace(groups[0], constant_when=(None, *groups[0].constant_when[1:]))
    unknown = dataclasses.replace(groups[0], constant_when=())
    frozen = dataclasses.replace(groups[0], frozen_because="shared")
    assert [group.name for group in scaled_by_norms(groups)] == ["0", "3"]
    assert scaled_by_norms((partly, unknown, frozen)) == ()


def test_scores_are_detached_float32(net):
    scores = Scores({"a": net()[1].weight.double()}, facts={"b": 1})
    assert scores["a"].dtype == torch.float32
    assert not scores["a"].requires_grad
    assert scores.facts == {"b": 1}
    assert Scores({}).facts == {}


def test_a_shared_parameter_is_found_under_each_of_its_names(net):
    model = net()
    model[4].weight = model[1].weight
    by_key = parameters_by_key(model)
    assert by_key["4.weight"] is by_key["1.weight"]


def test_a_key_that_the_network_lacks_is_not_passed_over(groups):
    with pytest.raises(KeyError):
        score_by_norms(groups[:1], {})
