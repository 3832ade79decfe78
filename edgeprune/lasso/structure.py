"""Class graphs and class trees: how the classes of one layer hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from edgeprune.errors import UsageError


@dataclass(frozen=True)
class Tree:
    """A tree over the classes, from the leaves (the single classes) to the root (all of them).

    Attributes:
        members: Per node its classes, ascending; nodes 0 .. C-1 are the leaves, children stand before their
            parents, the last node is the root. With one class the leaf is the root.
        weights: Per node its weight in the penalty, >= 0; the root's is > 0.
        linkage: scipy's linkage matrix (C-1, 4), as ``scipy.cluster.hierarchy.dendrogram`` draws it.
    """

    members: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]
    linkage: np.ndarray

    @property
    def classes(self) -> int:
        """C, the number of leaves."""
        return len(self.members[-1])


@dataclass(frozen=True)
class Edges:
    """An undirected graph over the classes; each edge stands once, with first < second.

    Attributes:
        classes: C, the number of nodes.
        pairs: The edges.
        weights: Per edge the relatedness of its ends, > 0.
        linkage: scipy's linkage matrix (C-1, 4) of the same relatedness, to order a heat map by.
    """

    classes: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    linkage: np.ndarray


def build_tree(relatedness: Tensor | np.ndarray) -> Tree:
    """Complete linkage on 1 - relatedness, with weights as in Kim & Xing 2012, section 2.2.

    A node's height in [0, 1), ``s_v = height_v / (height_root (1 + 1/C))``, is 0 at the leaves. Its weight is
    ``(1 - s_v) prod_{ancestors a} s_a``. The weights of the nodes that hold a class sum to 1, whatever the
    tree. The paper's ``s_v = height_v / height_root`` would give the root the weight 0, and no term would
    remove a whole channel; ours is 1 / (C + 1). Where all heights are 0 (classes that cannot be told apart)
    every s is 0, and the root alone has a weight, 1: the group lasso.

    Args:
        relatedness: (C, C), symmetric, at most 1 (cosines or correlations).

    Raises:
        UsageError: The matrix is no relatedness.
    """
    related = _checked(relatedness, "could not build a class tree")
    count, links = len(related), _linkage(related)
    heights = np.concatenate([np.zeros(count), links[:, 2]])
    scale = heights[-1] * (1 + 1 / count)
    heights = heights / scale if scale > 0 else heights
    members: list[tuple[int, ...]] = [(leaf,) for leaf in range(count)]
    above = np.ones(len(heights))
    for left, right in links[:, :2].astype(int):
        members.append(tuple(sorted((*members[left], *members[right]))))
    for node in reversed(range(count, len(heights))):
        left, right = links[node - count, :2].astype(int)
        above[left] = above[right] = above[node] * heights[node]
    return Tree(tuple(members), tuple(((1 - heights) * above).tolist()), links)


def build_edges(relatedness: Tensor | np.ndarray, k: int = 3, rho: float = 0.0) -> Edges:
    """Edges between classes with relatedness > rho of which one is among the other's k nearest.

    Args:
        relatedness: (C, C), symmetric, at most 1.
        k: Nearest classes per class, >= 1.
        rho: Relatedness that an edge must exceed, in [0, 1).

    Raises:
        UsageError: The matrix is no relatedness, or k or rho is out of range.
    """
    problem = "could not build a class graph"
    related = _checked(relatedness, problem)
    if k < 1:
        raise UsageError(problem, where="k", value=k, expected="1 or more", hint="Use the default, 3.")
    if not 0 <= rho < 1:
        raise UsageError(problem, where="rho", value=rho, expected="0 <= rho < 1", hint="Use the default, 0.")
    count = len(related)
    others = np.where(np.eye(count, dtype=bool), -np.inf, related)
    near = np.zeros((count, count), dtype=bool)
    nearest = np.argsort(-others, axis=1, kind="stable")[:, : min(k, count - 1)]
    np.put_along_axis(near, nearest, True, axis=1)
    first, second = np.nonzero(np.triu((near | near.T) & (related > rho), 1))
    pairs = tuple(zip(first.tolist(), second.tolist(), strict=True))
    return Edges(count, pairs, tuple(related[first, second].tolist()), _linkage(related))


def _linkage(related: np.ndarray) -> np.ndarray:
    distances = np.clip(1 - related, 0, None)
    np.fill_diagonal(distances, 0.0)
    if len(related) == 1:
        return np.zeros((0, 4))
    return np.asarray(linkage(squareform(distances, checks=False), method="complete"))


def _checked(relatedness: Tensor | np.ndarray, problem: str) -> np.ndarray:
    """As a float64 array, exactly symmetric."""
    hint = "Pass cosines or correlations of the classes."
    raw = relatedness.detach().cpu().numpy() if isinstance(relatedness, torch.Tensor) else relatedness
    related = np.asarray(raw, dtype=np.float64)
    if related.ndim != 2 or related.shape[0] != related.shape[1] or not related.size:
        expected = "a square matrix (C, C)"
        raise UsageError(
            problem, where="relatedness", value=f"of shape {related.shape}", expected=expected, hint=hint
        )
    if not np.isfinite(related).all():
        raise UsageError(problem, where="relatedness", value="not finite", expected="numbers", hint=hint)
    if related.max() > 1 + 1e-6 or np.abs(related - related.T).max() > 1e-6:
        expected = "symmetric and at most 1"
        raise UsageError(problem, where="relatedness", value="something else", expected=expected, hint=hint)
    return (related + related.T) / 2
