"""Proximal maps, dual norms and values, against the definitions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.lasso import Edges, GraphLasso, Lasso, Penalty, Tree, TreeLasso
from edgeprune.lasso.fused import fused_prox
from tests.lasso.problems import graphs, penalty_of, trees

LAYERS, ROWS = 3, 40


def random_points(classes: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(LAYERS, ROWS, 1, generator=random, dtype=torch.float64)
    return shared + torch.randn(LAYERS, ROWS, classes, generator=random, dtype=torch.float64)


def tree_prox(point: np.ndarray, tree: Tree, level: float) -> np.ndarray:
    """One group soft threshold per node, children first."""
    point = point.copy()
    for members, weight in zip(tree.members, tree.weights, strict=True):
        group = list(members)
        norm = np.linalg.norm(point[group])
        point[group] *= max(0.0, 1 - level * weight / norm) if norm > 0 else 0.0
    return point


def tree_value(row: np.ndarray, tree: Tree) -> float:
    return sum(w * np.linalg.norm(row[list(m)]) for m, w in zip(tree.members, tree.weights, strict=True))


def graph_value(row: np.ndarray, graph: Edges) -> float:
    jumps = sum(r * abs(row[c] - row[d]) for (c, d), r in zip(graph.pairs, graph.weights, strict=True))
    return float(np.abs(row).sum() + jumps)


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_the_tree_map_is_the_definitions(classes: int) -> None:
    forest, points = trees(LAYERS, classes), random_points(classes)
    level = torch.tensor([[0.1], [0.7], [2.0]], dtype=torch.float64)
    ours = TreeLasso(forest).prox(points, level)
    theirs = [
        [tree_prox(row, tree, own) for row in layer.numpy()]
        for layer, tree, own in zip(points, forest, level[:, 0].tolist(), strict=True)
    ]
    assert torch.allclose(ours, torch.tensor(np.array(theirs)), atol=1e-14)
    assert (ours == 0).any()


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_values_are_the_definitions(classes: int) -> None:
    points = random_points(classes)
    forest, nets = trees(LAYERS, classes), graphs(LAYERS, classes)
    for layer in range(LAYERS):
        rows = points[layer].numpy()
        wanted = sum(tree_value(row, forest[layer]) for row in rows)
        assert TreeLasso(forest).value(points)[layer].item() == pytest.approx(wanted, rel=1e-12)
        wanted = sum(graph_value(row, nets[layer]) for row in rows)
        assert GraphLasso(nets).value(points)[layer].item() == pytest.approx(wanted, rel=1e-12)


def fused_faults(points: Tensor, x: Tensor, flow: Tensor, bounds: Tensor, incidence: Tensor) -> float:
    """By how much (x, flow) misses the optimality conditions of the fused map."""
    balance = (points - (incidence.mT @ flow[..., None])[..., 0] - x).abs().max()
    jumps = (incidence @ x[..., None])[..., 0]
    slack = (bounds * jumps.abs() - flow * jumps).abs().max()
    return max(balance.item(), slack.item(), (flow.abs() - bounds).max().item())


@pytest.mark.parametrize("classes", [2, 6, 10, 20])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 30.0])
def test_the_fused_map_is_exact(classes: int, scale: float) -> None:
    points, random = random_points(classes)[0], torch.Generator().manual_seed(classes)
    pairs = [(c, d) for c, d in np.ndindex(classes, classes) if c < d and (c * d + c + d) % 3 != 2]
    incidence = torch.zeros(len(pairs), classes, dtype=torch.float64)
    for place, (c, d) in enumerate(pairs[:60]):
        incidence[place, c], incidence[place, d] = 1, -1
    bounds = scale * torch.rand(ROWS, len(pairs), generator=random, dtype=torch.float64)
    bounds[:, 60:] = 0
    x, flow = fused_prox(points, bounds, incidence[None], torch.zeros_like(bounds))
    assert fused_faults(points, x, flow, bounds, incidence) < 1e-11
    assert fused_faults(points, x + 1e-6, flow, bounds, incidence) > 1e-7
    again, _ = fused_prox(points, bounds, incidence[None], flow)
    assert torch.allclose(again, x, atol=1e-12)


def test_a_fused_map_by_hand() -> None:
    points = torch.tensor([[3.0, 1.0, 0.0], [3.0, 2.5, 0.0]], dtype=torch.float64)
    incidence = torch.tensor([[[1.0, -1, 0], [0, 1, -1]]], dtype=torch.float64)
    x, _ = fused_prox(points, torch.full((2, 2), 0.5).double(), incidence, torch.zeros(2, 2).double())
    assert torch.allclose(x, torch.tensor([[2.5, 1.0, 0.5], [2.5, 2.5, 0.5]]).double(), atol=1e-14)
    assert x[1, 0] == x[1, 1]


@pytest.mark.parametrize("name", ["tree", "graph"])
def test_the_map_vanishes_at_the_dual_norm_and_not_below(name: str) -> None:
    penalty, points = penalty_of(name, LAYERS, 6), random_points(6)
    points[0, 0] = 0
    norm = penalty.dual_norm(points)
    assert norm[0, 0] == 0
    assert (penalty.prox(points, norm * (1 + 1e-9)) == 0).all()
    below = penalty.prox(points, norm * (1 - 1e-6)) != 0
    assert below.any(-1).sum() == below.shape[0] * below.shape[1] - 1


@pytest.mark.parametrize("name", ["tree", "graph"])
def test_the_root_weight_bounds_the_dual_norm(name: str) -> None:
    penalty, points = penalty_of(name, LAYERS, 6), random_points(6)
    norm = penalty.dual_norm(points)
    for share in (0.1, 0.9, 0.999):
        excess = penalty.excess(points, share * norm)
        assert (excess > 0).all()
        assert (share * norm + excess / penalty.root_weight >= norm * (1 - 1e-9)).all()


@pytest.mark.parametrize("name", ["tree", "graph"])
def test_the_face_has_the_derivatives_of_the_value(name: str) -> None:
    penalty = penalty_of(name, LAYERS, 6)
    points = penalty.prox(random_points(6), torch.full((LAYERS, 1), 0.4).double())
    face = penalty.face(points)
    direction = face.project(random_points(6, seed=1))
    assert torch.equal(face.project(points).ne(0), points.ne(0))
    step = 1e-5
    values = [penalty.value(points + share * step * direction) for share in (-1, 0, 1)]
    first, second = (after - before for before, after in pairwise(values))
    slope = (face.slope * direction).sum((-1, -2))
    assert torch.allclose((first + second) / (2 * step), slope, atol=1e-6)
    bend = (direction * face.bend(direction)).sum((-1, -2))
    assert torch.allclose(
        (second - first) / step**2, bend * torch.ones(LAYERS).double(), atol=1e-3, rtol=1e-3
    )


def test_layers_keep_their_own_structure() -> None:
    points, level = random_points(5), torch.full((LAYERS, 1), 0.5).double()
    for name in ("tree", "graph"):
        penalty = penalty_of(name, LAYERS, 5)
        picked = torch.tensor([2, 0])
        assert torch.allclose(
            penalty.at(picked).prox(points[picked], level[:2]), penalty.prox(points, level)[picked]
        )


def test_a_penalty_fits_its_problem() -> None:
    with pytest.raises(UsageError, match="one of 3 layers and 5 classes, expected 2 layers and 5 classes"):
        penalty_of("tree", 3, 5).check(2, 5)
    with pytest.raises(UsageError, match="one of 3 layers and 5 classes, expected 3 layers and 4 classes"):
        penalty_of("graph", 3, 5).check(3, 4)
    Lasso().check(3, 4)


def test_bad_structures() -> None:
    tree, graph = trees(1, 3)[0], graphs(1, 3)[0]
    with pytest.raises(UsageError, match="one number in all trees"):
        TreeLasso([tree, trees(1, 4)[0]])
    with pytest.raises(UsageError, match="a positive one at the root"):
        TreeLasso([replace(tree, weights=(*tree.weights[:-1], 0.0))])
    with pytest.raises(UsageError, match="no negative weight, and a positive"):
        TreeLasso([replace(tree, weights=(-1.0, *tree.weights[1:]))])
    with pytest.raises(UsageError, match="one number in all graphs"):
        GraphLasso([graph, graphs(1, 4)[0]])
    with pytest.raises(UsageError, match="no negative weight"):
        GraphLasso([Edges(2, ((0, 1),), (-0.5,), graph.linkage)])
    with pytest.raises(UsageError, match="kappa is -1, expected a number >= 0"):
        GraphLasso([graph], kappa=-1)


def test_penalties_are_penalties() -> None:
    assert all(isinstance(penalty, Penalty) for penalty in (Lasso(), penalty_of("tree", 1, 2)))
