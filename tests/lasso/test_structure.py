"""Class trees and class graphs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgeprune.errors import UsageError
from edgeprune.lasso import build_edges, build_tree
from tests.lasso.problems import relatedness


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_weights_over_a_class_sum_to_one(classes: int, seed: int) -> None:
    tree = build_tree(relatedness(classes, seed))
    assert tree.classes == classes
    assert len(tree.members) == len(tree.weights) == 2 * classes - 1
    for leaf in range(classes):
        over = [weight for members, weight in zip(tree.members, tree.weights, strict=True) if leaf in members]
        assert math.isclose(sum(over), 1, rel_tol=1e-12)
    assert min(tree.weights) >= 0
    assert tree.weights[-1] > 0
    assert tree.members[-1] == tuple(range(classes))


def test_a_tree_by_hand() -> None:
    related = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    tree = build_tree(related)
    assert tree.members == ((0,), (1,), (2,), (0, 1), (0, 1, 2))
    root, pair = 3 / 4, 0.2 / 0.9 * 3 / 4
    expected = [pair * root, pair * root, root, (1 - pair) * root, 1 - root]
    assert np.allclose(tree.weights, expected, atol=1e-7)
    assert tree.linkage.shape == (2, 4)


def test_classes_that_cannot_be_told_apart_stay_together() -> None:
    tree = build_tree(torch.ones(4, 4))
    assert tree.weights == (0.0,) * 6 + (1.0,)


def test_one_class_is_leaf_and_root() -> None:
    assert build_tree(torch.ones(1, 1)).weights == (1.0,)
    assert build_edges(torch.ones(1, 1)).pairs == ()


def test_equal_heights() -> None:
    tree = build_tree(torch.eye(4))
    assert tree.weights == pytest.approx((0.8**3, 0.8**3, 0.8**2, 0.8**2, 0.2 * 0.8, 0.2 * 0.8, 0.2), rel=0.5)
    assert tree.weights[-1] == pytest.approx(1 / 5)


def test_edges_are_nearest_and_related() -> None:
    related = relatedness(8, 1).numpy()
    graph = build_edges(related, k=2, rho=0.1)
    others = related - 2 * np.eye(8)
    expected = set()
    for first in range(8):
        for second in np.argsort(-others[first])[:2]:
            if related[first, second] > 0.1:
                expected.add((min(first, second), max(first, second)))
    assert set(graph.pairs) == expected
    assert len(graph.pairs) == len(expected)
    assert all(
        weight == pytest.approx(related[pair])
        for pair, weight in zip(graph.pairs, graph.weights, strict=True)
    )
    assert graph.linkage.shape == (7, 4)


@pytest.mark.parametrize("build", [build_tree, build_edges])
@pytest.mark.parametrize(
    ("related", "message"),
    [
        (torch.ones(2, 3), r"of shape \(2, 3\), expected a square matrix"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), "not finite, expected numbers"),
        (torch.tensor([[1.0, 0.2], [0.4, 1.0]]), "expected symmetric and at most 1"),
        (torch.tensor([[1.0, 1.2], [1.2, 1.0]]), "expected symmetric and at most 1"),
    ],
)
def test_what_is_no_relatedness(build: object, related: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(related)  # type: ignore[operator]


def test_arguments_of_the_graph() -> None:
    with pytest.raises(UsageError, match="k is 0, expected 1 or more"):
        build_edges(torch.eye(3), k=0)
    with pytest.raises(UsageError, match=r"rho is 1\.0, expected 0 <= rho < 1"):
        build_edges(torch.eye(3), rho=1.0)
