from __future__ import annotations

import dataclasses

import torch

from edgeprune.schemes import Random


def test_depends_on_the_seed_and_the_groups_name_alone(net, groups, data):
    first = Random(seed=3).fit(net(0), groups, data)
    alone = Random(seed=3).fit(net(5), groups[1:2], data)
    assert torch.equal(first["3"], alone["3"])
    assert not torch.equal(first["3"], Random(seed=4).fit(net(0), groups, data)["3"])
    renamed = dataclasses.replace(groups[1], name="other")
    assert not torch.equal(first["3"], Random(seed=3).fit(net(0), (renamed,), data)["other"])


def test_is_uniform_above_zero(net, groups, data):
    wide = dataclasses.replace(groups[0], size=20_000)
    score = Random().fit(net(), (wide,), data)["0"]
    assert float(score.min()) > 0
    assert float(score.max()) <= 1
    counts = torch.histc(score, bins=10, min=0, max=1)
    assert bool(((counts - 2000).abs() < 200).all())
