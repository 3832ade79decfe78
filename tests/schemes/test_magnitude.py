from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.channels import ChannelGroup, Member
from edgeprune.schemes import Magnitude


@pytest.mark.parametrize("normalize", ["mean", "none"])
@pytest.mark.parametrize("p", [1, 2])
def test_is_the_norm_of_the_producing_rows(net, groups, data, p, normalize):
    model = net()
    ours = Magnitude(p=p, normalize=normalize).fit(model, groups, data)
    assert list(ours) == ["0", "3", "6"]
    for name in ours:
        weight = model.state_dict()[f"{name}.weight"].double().numpy()
        theirs = np.linalg.norm(weight.reshape(len(weight), -1), ord=p, axis=1)
        theirs = theirs / theirs.mean() if normalize == "mean" else theirs
        np.testing.assert_allclose(ours[name].numpy(), theirs, rtol=1e-6)


def test_all_producers_of_a_group_count_each_along_its_own_axis(data):
    """A stream fed by a convolution (rows), a transposed one (axis 1) and one with two rows a unit."""
    model = nn.ModuleDict(
        {
            "a": nn.Conv2d(3, 2, 1),
            "b": nn.ConvTranspose2d(5, 2, 3),
            "c": nn.Conv2d(3, 4, 1),
            "d": nn.Conv2d(2, 7, 1),
        }
    )
    single, pairs = ((0,), (1,)), ((0, 2), (1, 3))
    members = (
        Member("a.weight", 0, "out", single),
        Member("a.bias", 0, "out", single),
        Member("b.weight", 1, "out", single),
        Member("c.weight", 0, "out", pairs),
        Member("d.weight", 1, "in", single),
    )
    ours = Magnitude(p=2, normalize="none").fit(model, (ChannelGroup("a", 2, members),), data)["a"]
    state = {key: value.double().numpy() for key, value in model.state_dict().items()}
    for unit in range(2):
        squares = (state["a.weight"][unit] ** 2).sum() + (state["b.weight"][:, unit] ** 2).sum()
        squares += (state["c.weight"][[unit, unit + 2]] ** 2).sum()
        assert float(ours[unit]) == pytest.approx(np.sqrt(squares), rel=1e-6)


def test_a_unit_without_weights_scores_lowest_but_is_not_called_free(net, groups, data):
    model = net()
    with torch.no_grad():
        model[0].weight[2] = 0
    score = Magnitude().fit(model, groups, data)["0"]
    assert int(score.argmin()) == 2
    assert 0 < float(score[2]) < 1e-30


def test_a_group_of_zeros_stays_finite(net, groups, data):
    model = net()
    nn.init.zeros_(model[0].weight)
    score = Magnitude().fit(model, groups, data)["0"]
    assert bool((score > 0).all())
    assert bool(score.isfinite().all())


def test_a_group_that_no_weight_produces_is_left_out(net, groups, data):
    orphan = dataclasses.replace(groups[0], members=groups[0].members[1:])
    assert list(Magnitude().fit(net(), (orphan, groups[1]), data)) == ["3"]
