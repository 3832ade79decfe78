"""Schemes in one process share what they look at, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.schemes import SGLPIB, STLPIB, class_lasso
from edgeprune.schemes.kept import digest, keeping, kept

FEW: dict[str, Any] = {"images": 12, "lambdas": 8, "path_ratio": 0.05}


def equal(one: Any, two: Any) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_one_lasso_takes_the_grams_of_another_and_has_the_same_bits(
    net: Any, groups: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    look = class_lasso.quadratics
    monkeypatch.setattr(class_lasso, "quadratics", lambda *a, **k: looked.append(1) or look(*a, **k))
    model = net()
    alone = STLPIB(**FEW).fit(model, groups, data)
    SGLPIB(**FEW).fit(model, groups, data)
    assert len(looked) == 2
    with keeping():
        SGLPIB(**FEW).fit(model, groups, data)
        assert equal(STLPIB(**FEW).fit(model, groups, data), alone)
        assert len(looked) == 3
        # Other images, another kernel, another network: anew.
        STLPIB(**{**FEW, "images": 9}).fit(model, groups, data)
        STLPIB(**FEW, kernel="linear").fit(model, groups, data)
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        STLPIB(**FEW).fit(model, groups, data)
        assert len(looked) == 6
    STLPIB(**FEW).fit(model, groups, data)
    assert len(looked) == 7


def test_only_the_latest_is_kept() -> None:
    made = []
    with keeping():
        for name in ("a", "a", "b", "a"):
            assert kept(lambda name=name: name, lambda name=name: made.append(name) or name) == name  # type: ignore[misc]
    assert made == ["a", "b", "a"]
    assert kept(lambda: 1 / 0, lambda: 5) == 5  # type: ignore[arg-type, return-value]


def test_everything_counts_in_a_digest() -> None:
    layer = nn.BatchNorm1d(2)
    one = digest(layer, [torch.ones(2)], "x")
    assert one == digest(layer, [torch.ones(2)], "x")
    others = [
        digest(layer, [torch.ones(2)], "y"),
        digest(layer, [torch.zeros(2)], "x"),
        digest(layer, [], "x"),
    ]
    others += [digest(layer, [torch.ones(2).bfloat16()], "x"), digest(layer, [torch.ones(2, 1)], "x")]
    others.append(digest(nn.BatchNorm1d(2, eps=0.1), [torch.ones(2)], "x"))
    with torch.no_grad():
        layer.weight[1] = 2
    assert len({one, *others, digest(layer, [torch.ones(2)], "x")}) == len(others) + 2
