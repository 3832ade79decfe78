"""Random lasso problems, and their penalties written from the definition."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeprune.lasso import Edges, GraphLasso, Penalty, Problem, Tree, TreeLasso, build_edges, build_tree


def relatedness(classes: int, seed: int) -> Tensor:
    """Cosines of random centred vectors that share a factor, (C, C)."""
    if classes == 1:
        return torch.ones(1, 1)
    random = np.random.default_rng(seed)
    means = (
        random.normal(size=(classes, 6)) + random.normal(size=(classes // 2 + 1, 6))[np.arange(classes) // 2]
    )
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return torch.from_numpy((means @ means.T).clip(-1, 1))


def rows_of(layers: int, classes: int, p: int, seed: int, samples: int = 20) -> tuple[Tensor, Tensor]:
    """A (L, C, m, p) with correlated columns, and b (L, C, m)."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=(layers, classes, samples, 1))
    a = shared + random.normal(size=(layers, classes, samples, p))
    true = random.normal(size=(layers, 1, p, 1)) * (random.random((layers, 1, p, 1)) < 0.6)
    b = a @ (true + 0.3 * random.normal(size=(layers, classes, p, 1)))
    b += 0.3 * random.normal(size=b.shape)
    return torch.from_numpy(a) / samples, torch.from_numpy(b[..., 0]) / samples


def problem_of(a: Tensor, b: Tensor) -> Problem:
    """The statistics of A and b."""
    return Problem(a.mT @ a, (a.mT @ b[..., None])[..., 0], b.square().sum(-1))


def random_problem(layers: int, classes: int, p: int, seed: int) -> Problem:
    return problem_of(*rows_of(layers, classes, p, seed))


def trees(layers: int, classes: int, seed: int = 0) -> list[Tree]:
    return [build_tree(relatedness(classes, 100 * seed + layer)) for layer in range(layers)]


def graphs(layers: int, classes: int, seed: int = 0) -> list[Edges]:
    return [build_edges(relatedness(classes, 100 * seed + layer), k=2) for layer in range(layers)]


def penalty_of(name: str, layers: int, classes: int, seed: int = 0) -> Penalty:
    if name == "tree":
        return TreeLasso(trees(layers, classes, seed))
    return GraphLasso(graphs(layers, classes, seed), kappa=1.0)


def grams(layers: int, classes: int, p: int, samples: int, seed: int = 0) -> Problem:
    """What a network gives: centred Gaussian Grams of features that share factors, ill-conditioned."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    centre = torch.eye(samples, dtype=torch.float64) - 1 / samples
    labels = torch.arange(samples) % classes

    def gram(x: Tensor) -> Tensor:
        return centre @ torch.exp(-(torch.cdist(x, x) ** 2) / x.shape[-1]) @ centre

    found = []
    for _ in range(layers):
        factors = normal(classes, 6)[labels] + normal(samples, 6)
        mixing = normal(4, 6, 16)[torch.arange(p) % 4] + 0.03 * normal(p, 6, 16)  # channels are near copies
        maps = torch.tanh(factors @ mixing / 3)
        columns, wanted = gram(maps), gram(torch.tanh(factors @ normal(6, 32)))
        columns, wanted = columns / columns.flatten(1).norm(dim=1).mean(), wanted / wanted.norm()
        by_class = [
            (columns[:, labels == c].flatten(1).T, wanted[labels == c].flatten()) for c in range(classes)
        ]
        found.append((torch.stack([a for a, _ in by_class]), torch.stack([b for _, b in by_class])))
    return problem_of(torch.stack([a for a, _ in found]), torch.stack([b for _, b in found]))
