"""Objectives against cvxpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.lasso import Edges, GraphLasso, Tree, TreeLasso, lambda_max, solve
from tests.lasso.problems import graphs, problem_of, rows_of, trees

cp = pytest.importorskip("cvxpy")

SHAPES = [(3, 2), (12, 6), (5, 3), (8, 4), (10, 5)]
FEW = [(shape, layers) for shape, layers in zip(SHAPES[:2], [5, 5], strict=True)]
ALL = [(shape, 10) for shape in SHAPES]


def their_objective(a: np.ndarray, b: np.ndarray, structure: Tree | Edges, lam: float) -> float:
    """The problem as it is written, to an interior-point solver; a (C, m, p), b (C, m)."""
    classes, _, p = a.shape
    matrix = cp.Variable((p, classes))
    loss = sum(cp.sum_squares(b[c] - a[c] @ matrix[:, c]) / 2 for c in range(classes))
    if isinstance(structure, Tree):
        nodes = zip(structure.members, structure.weights, strict=True)
        omega = sum(
            weight * cp.sum(cp.norm(matrix[:, list(members)], 2, axis=1)) for members, weight in nodes
        )
    else:
        edges = zip(structure.pairs, structure.weights, strict=True)
        omega = cp.norm1(cp.vec(matrix, order="F"))
        omega += sum(weight * cp.norm1(matrix[:, c] - matrix[:, d]) for (c, d), weight in edges)
    return float(cp.Problem(cp.Minimize(loss + lam * omega)).solve(solver=cp.CLARABEL))


def objectives(kind: str, shape: tuple[int, int], layers: int) -> tuple[list[float], list[float]]:
    """Ours and theirs."""
    p, classes = shape
    a, b = rows_of(layers, classes, p, seed=p)
    problem = problem_of(a, b)
    structures = trees(layers, classes, p) if kind == "tree" else graphs(layers, classes, p)
    penalty = TreeLasso(structures) if kind == "tree" else GraphLasso(structures)  # type: ignore[arg-type]
    shares = torch.logspace(-0.3, -3, layers, dtype=torch.float64)
    lam = shares * lambda_max(problem, penalty)
    ours = solve(problem, penalty, lam)
    assert ours.converged.all()
    theirs = [
        their_objective(a[layer].numpy(), b[layer].numpy(), structures[layer], lam[layer].item())
        for layer in range(layers)
    ]
    return ours.objective.tolist(), theirs


@pytest.mark.parametrize(("shape", "layers"), FEW)
@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_objectives_are_cvxpys(kind: str, shape: tuple[int, int], layers: int) -> None:
    ours, theirs = objectives(kind, shape, layers)
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "layers"), ALL)
@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_fifty_objectives_are_cvxpys(kind: str, shape: tuple[int, int], layers: int) -> None:
    ours, theirs = objectives(kind, shape, layers)
    assert ours == pytest.approx(theirs, rel=1e-5)
