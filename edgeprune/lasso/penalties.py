"""The penalties, each with its proximal map, its dual norm and the face that its zeros and ties span."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.lasso.fused import closure, fused_prox
from edgeprune.lasso.structure import Edges, Tree

_PROBLEM = "could not make a penalty"
_TINY = 1e-300
_EVALUATIONS = 100  # of a root finder that needs about ten


@dataclass(frozen=True)
class Face:
    """Where a penalty is smooth around B: which entries are zero, which are tied, and its derivatives there.

    Attributes:
        alive: Which entries are not zero (L, p, C).
        slope: Gradient of Omega (L, p, C); where entries are tied, only its sum over them counts.
        means: (L, p, C, C), averages over tied entries; None if none are tied.
        curvature: Hessian of Omega (L, p, C, C), row by row; None if Omega is linear on the face.
    """

    alive: Tensor
    slope: Tensor
    means: Tensor | None = None
    curvature: Tensor | None = None

    def project(self, points: Tensor) -> Tensor:
        """The nearest points on the face, of (L, p, C)."""
        if self.means is not None:
            points = (self.means @ points[..., None]).squeeze(-1)
        return torch.where(self.alive, points, 0.0)

    def places(self) -> Tensor:
        """Number of the component that each entry is in (L, p, C), from 0 in each layer; -1: it is zero."""
        kinds = torch.arange(self.alive.shape[-1], device=self.alive.device)
        first = (
            kinds.expand_as(self.alive) if self.means is None else (self.means > 0).to(torch.uint8).argmax(-1)
        )
        begins = self.alive & (first == kinds)
        number = begins.flatten(1).cumsum(-1).view_as(first) - 1
        return torch.where(self.alive, number.gather(-1, first), -1)

    def at(self, layers: Tensor) -> Face:
        """The faces of some of the layers, by index."""
        means, curvature = (None if part is None else part[layers] for part in (self.means, self.curvature))
        return Face(self.alive[layers], self.slope[layers], means, curvature)

    def bend(self, points: Tensor) -> Tensor | float:
        """The Hessian times points (L, p, C)."""
        return 0.0 if self.curvature is None else (self.curvature @ points[..., None]).squeeze(-1)

    @property
    def stiffness(self) -> Tensor | float:
        """The diagonal of the Hessian (L, p, C)."""
        return 0.0 if self.curvature is None else self.curvature.diagonal(dim1=-2, dim2=-1)


class Penalty(ABC):
    """A norm Omega(B) that is a sum over the rows of B, one norm per layer.

    ``root_weight`` (L, 1): raising a level by d lowers ``excess`` by ``d root_weight`` or more.
    """

    root_weight: Tensor | float = 1.0

    @abstractmethod
    def prox(self, points: Tensor, level: Tensor) -> Tensor:
        """``argmin_B 1/2 ||B - points||^2 + level Omega(B)``: points (L, p, C), level (L, 1) or (L, p)."""

    @abstractmethod
    def excess(self, points: Tensor, level: Tensor) -> Tensor:
        """(L, p), > 0 where the dual norm of the row exceeds the level; falls steadily as the level rises."""

    @abstractmethod
    def value(self, coefficients: Tensor) -> Tensor:
        """Omega(B) (L,)."""

    @abstractmethod
    def face(self, coefficients: Tensor) -> Face:
        """The face of B. Rows that a proximal map gave have exact zeros and exact ties."""

    def settle(self, start: Tensor, new: Tensor) -> Tensor:
        """``new``, but what crossed a kink of Omega on its way from ``start`` stops there: zero, or tied."""
        return torch.where(new.sign() == start.sign(), new, 0.0)

    def at(self, layers: Tensor) -> Self:  # noqa: ARG002 - the l1 norm is one for all
        """The norms of some of the layers, by index; the result lives on the device of the index."""
        return self

    def check(self, layers: int, classes: int) -> None:  # noqa: B027 - the l1 norm fits any
        """Raise a UsageError if this penalty is not one of so many layers and classes."""

    def dual_norm(self, points: Tensor) -> Tensor:
        """Omega°(z_k) (L, p) of each row z_k: the smallest level at which the proximal map gives 0."""
        zero = points.new_zeros(points.shape[:2])
        return smallest_level(lambda level: self.excess(points, level), zero, self.root_weight)


class Lasso(Penalty):
    """``||B||_1``, for any number of classes; on a ``tied`` problem this is the HSIC lasso."""

    def prox(self, points: Tensor, level: Tensor) -> Tensor:
        """Soft threshold."""
        return soft(points, level[..., None])

    def excess(self, points: Tensor, level: Tensor) -> Tensor:
        """Largest entry over the level."""
        return points.abs().amax(-1) - level

    def value(self, coefficients: Tensor) -> Tensor:
        """Sum of absolute values."""
        return coefficients.abs().sum((-1, -2))

    def face(self, coefficients: Tensor) -> Face:
        """All but the zeros."""
        return Face(coefficients != 0, coefficients.sign())


class TreeLasso(Penalty):
    """``sum_k sum_v w_v ||B_{k, G_v}||_2`` over the nodes v of each layer's class tree (Kim & Xing 2012).

    The proximal map is one sweep of group soft thresholds from the leaves to the root (Jenatton et al. 2011).
    Nodes at the same distance from their leaves are disjoint and go in one step.

    Args:
        trees: One per layer, all over the same number of classes.

    Raises:
        UsageError: Trees of different sizes, a negative weight, or a root weight of 0.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        sizes = {tree.classes for tree in trees}
        if len(sizes) != 1:
            raise _error("the number of classes", f"{sorted(sizes)}", "one number in all trees")
        for tree in trees:
            weights = np.array(tree.weights)
            if not np.isfinite(weights).all() or weights.min() < 0 or weights[-1] <= 0:
                expected = "no negative weight, and a positive one at the root"
                raise _error("weights of a tree", f"{tree.weights}", expected)
        (count,) = sizes
        steps = [_steps(tree) for tree in trees]
        depth = max(max(step) for step in steps)
        weights = np.zeros((len(trees), depth + 1, count))
        together = np.zeros((len(trees), depth + 1, count, count))
        for layer, (tree, step) in enumerate(zip(trees, steps, strict=True)):
            for node, members in enumerate(tree.members):
                place = depth if node == len(tree.members) - 1 else step[node]
                weights[layer, place, list(members)] = tree.weights[node]
                together[layer, place][np.ix_(members, members)] = 1
        self._set(torch.from_numpy(weights), torch.from_numpy(together))

    def _set(self, weights: Tensor, together: Tensor) -> None:
        self.weights = weights  # (L, S, C): of the node that holds a class at a step of the sweep, or 0
        self.together = together  # (L, S, C, C): 1 where two classes are in one node at that step
        self.root_weight = weights[:, -1, :1]

    def at(self, layers: Tensor) -> Self:
        """See ``Penalty.at``."""
        part = object.__new__(type(self))
        part._set(*(t.to(layers.device)[layers] for t in (self.weights, self.together)))
        return part

    def check(self, layers: int, classes: int) -> None:
        """See ``Penalty.check``."""
        _fits(self.weights.shape[0], self.weights.shape[-1], layers, classes)

    def _sweep(self, points: Tensor, level: Tensor, stop: int) -> Tensor:
        for step in range(stop):
            norms = self._norms(points, step).clamp(min=_TINY)
            weight = self.weights[:, step, None]
            points = points * (1 - level[..., None] * weight / norms).clamp(min=0)
        return points

    def _norms(self, points: Tensor, step: int) -> Tensor:
        """Norm over the classes that are in one node with a class, at each class (L, p, C)."""
        return points.abs() if not step else (points.square() @ self.together[:, step]).sqrt()

    def prox(self, points: Tensor, level: Tensor) -> Tensor:
        """One sweep, leaves to root."""
        return self._sweep(points, level, self.weights.shape[1])

    def excess(self, points: Tensor, level: Tensor) -> Tensor:
        """Norm of what reaches the root over the root's threshold."""
        before_root = self._sweep(points, level, self.weights.shape[1] - 1)
        return before_root.square().sum(-1).sqrt() - level * self.root_weight

    def value(self, coefficients: Tensor) -> Tensor:
        """Sum over the steps of the sweep."""
        steps = range(self.weights.shape[1])
        # A node of m classes shows its norm m times.
        share = self.weights / self.together.sum(-1).clamp(min=1)
        return torch.stack(
            [(self._norms(coefficients, s) * share[:, s, None]).sum((-1, -2)) for s in steps]
        ).sum(0)

    def face(self, coefficients: Tensor) -> Face:
        """All but the zeros; curved where classes share a node."""
        slope = torch.zeros_like(coefficients)
        curvature = coefficients.new_zeros(*coefficients.shape, coefficients.shape[-1])
        for step in range(self.weights.shape[1]):
            norms = self._norms(coefficients, step)
            factor = torch.where(norms > 0, self.weights[:, step, None] / norms.clamp(min=_TINY), 0.0)
            slope += factor * coefficients
            if step:  # a leaf's norm is linear
                unit = coefficients / norms.clamp(min=_TINY)
                pair = self.together[:, step, None] * unit[..., None] * unit[..., None, :]
                curvature += torch.diag_embed(factor) - factor[..., None] * pair
        return Face(coefficients != 0, slope, curvature=curvature)


class GraphLasso(Penalty):
    """``||B||_1 + kappa sum_{edges (c, d)} r_cd sum_k |B_kc - B_kd|``.

    The graph-guided fused lasso (Chen et al. 2012). The proximal map is a soft threshold after
    the exact fused map (Friedman et al. 2007).

    Args:
        edges: One graph per layer, all over the same number of classes.
        kappa: Weight of the graph against the l1 norm, >= 0.

    Raises:
        UsageError: Graphs of different sizes, a negative weight, or kappa < 0.
    """

    def __init__(self, edges: Sequence[Edges], kappa: float = 1.0) -> None:
        sizes = {graph.classes for graph in edges}
        if len(sizes) != 1:
            raise _error("the number of classes", f"{sorted(sizes)}", "one number in all graphs")
        if not (np.isfinite(kappa) and kappa >= 0):
            raise _error("kappa", f"{kappa}", "a number >= 0")
        (count,) = sizes
        most = max(len(graph.pairs) for graph in edges)
        weights, incidence = torch.zeros(len(edges), most), torch.zeros(len(edges), most, count)
        weights, incidence = weights.double(), incidence.double()
        for layer, graph in enumerate(edges):
            if any(not weight >= 0 for weight in graph.weights):
                raise _error("weights of a graph", f"{graph.weights}", "no negative weight")
            for place, ((first, second), weight) in enumerate(zip(graph.pairs, graph.weights, strict=True)):
                weights[layer, place] = kappa * weight
                incidence[layer, place, first], incidence[layer, place, second] = 1, -1
        self._set(weights, incidence)

    def _set(self, weights: Tensor, incidence: Tensor) -> None:
        self.weights = weights  # (L, E): kappa r, 0 for an edge that is not there
        self.incidence = incidence  # D (L, E, C)
        self._flows: Tensor | None = (
            None  # shares of the bounds, of the last proximal map: the next starts there
        )

    def at(self, layers: Tensor) -> Self:
        """See ``Penalty.at``."""
        part = object.__new__(type(self))
        part._set(*(t.to(layers.device)[layers] for t in (self.weights, self.incidence)))
        return part

    def check(self, layers: int, classes: int) -> None:
        """See ``Penalty.check``."""
        _fits(self.weights.shape[0], self.incidence.shape[-1], layers, classes)

    def _fused(self, points: Tensor, level: Tensor) -> Tensor:
        layers, rows, classes = points.shape
        bounds = (level[..., None] * self.weights[:, None]).expand(layers, rows, -1)
        if self._flows is None or self._flows.shape != bounds.shape:
            self._flows = torch.zeros_like(bounds)
        incidence = self.incidence[:, None].expand(-1, rows, -1, -1).flatten(0, 1)
        start = (self._flows * bounds).flatten(0, 1)
        flat, flows = fused_prox(points.reshape(-1, classes), bounds.flatten(0, 1), incidence, start)
        self._flows = torch.where(bounds > 0, flows.view_as(bounds) / bounds.clamp(min=_TINY), 0.0)
        return flat.view_as(points)

    def prox(self, points: Tensor, level: Tensor) -> Tensor:
        """Fused map, then soft threshold."""
        return soft(self._fused(points, level), level[..., None])

    def excess(self, points: Tensor, level: Tensor) -> Tensor:
        """Largest entry of the fused map over the level."""
        return self._fused(points, level).abs().amax(-1) - level

    def _differences(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.incidence.mT

    def value(self, coefficients: Tensor) -> Tensor:
        """Sum of absolute values and of weighted jumps."""
        jumps = self._differences(coefficients).abs() * self.weights[:, None]
        return coefficients.abs().sum((-1, -2)) + jumps.sum((-1, -2))

    def settle(self, start: Tensor, new: Tensor) -> Tensor:
        """What met along an edge is tied, what crossed zero is zero."""
        was, now = self._differences(start).sign(), self._differences(new).sign()
        stopped = (was * now <= 0) & (self.weights > 0)[:, None]
        ends = self.incidence.abs()[:, None]
        linked = closure((stopped[..., None] * ends).mT @ ends)
        means = linked / linked.sum(-1, keepdim=True)
        merged = (means @ new[..., None]).squeeze(-1).gather(-1, linked.argmax(-1))
        crossed = (stopped & (was != 0)).any(-1, keepdim=True)
        new = torch.where(crossed, merged, new)
        return super().settle(start, new)

    def face(self, coefficients: Tensor) -> Face:
        """All but the zeros, and what is equal along edges tied."""
        ends = self.incidence.mT.abs() @ (self.incidence.abs() * (self.weights > 0)[..., None])
        same = coefficients[..., None] == coefficients[..., None, :]
        alive = coefficients != 0
        tied = closure((same & alive[..., None] & (ends > 0)[:, None]).to(coefficients.dtype))
        means = tied / tied.sum(-1, keepdim=True)
        flow = self._differences(coefficients).sign() * self.weights[:, None]
        return Face(alive, coefficients.sign() + flow @ self.incidence, means)


def smallest_level(excess: Callable[[Tensor], Tensor], low: Tensor, weight: Tensor | float) -> Tensor:
    """The smallest level >= low with ``excess(level) <= 0``, elementwise, approached from above to 1e-10.

    As raising a level by d lowers the excess by ``weight d`` or more, ``level + excess / weight`` is enough
    wherever the excess is > 0. Regula falsi (Illinois) narrows that down.
    """
    left, left_excess = low, excess(low)
    over = left_excess > 0
    high = torch.where(over, low + left_excess / weight, low)
    right, right_excess = high, excess(high)
    above = below = torch.zeros_like(over)
    for _ in range(_EVALUATIONS):
        over = over & (high - low > 1e-10 * high)
        if not over.any():
            break
        share = left_excess / (left_excess - right_excess.clamp(max=0)).clamp(min=_TINY)
        middle = torch.where(over, (left + share * (right - left)).clamp(low, high), high)
        found = excess(middle)
        # An end that stays a second time counts half.
        left_excess = torch.where(below & (found <= 0), left_excess / 2, left_excess)
        right_excess = torch.where(above & (found > 0), right_excess / 2, right_excess)
        above, below = over & (found > 0), over & (found <= 0)
        left, left_excess = torch.where(above, middle, left), torch.where(above, found, left_excess)
        right, right_excess = torch.where(below, middle, right), torch.where(below, found, right_excess)
        # The root lies within |excess| / weight of any level, and on the known side of it.
        reach = middle + found / weight
        low = torch.where(over, torch.maximum(low, torch.minimum(middle, reach)), low)
        high = torch.where(over, torch.minimum(high, torch.maximum(middle, reach)), high)
    return high


def soft(points: Tensor, level: Tensor) -> Tensor:
    """Soft threshold."""
    return points.sign() * (points.abs() - level).clamp(min=0)


def _steps(tree: Tree) -> list[int]:
    """Per node the step of the sweep that it is in: 0 for leaves, else one after its last child."""
    steps = [0] * len(tree.members)
    sets = [set(members) for members in tree.members]
    for node, members in enumerate(sets):
        inside = [steps[child] for child in range(node) if sets[child] <= members]
        steps[node] = 1 + max(inside) if inside else 0
    return steps


def _fits(own_layers: int, own_classes: int, layers: int, classes: int) -> None:
    if (own_layers, own_classes) != (layers, classes):
        raise UsageError(
            "could not solve the lasso",
            where="the penalty",
            value=f"one of {own_layers} layers and {own_classes} classes",
            expected=f"{layers} layers and {classes} classes, as the problem has",
            hint="Build one tree or graph per layer of the problem.",
        )


def _error(where: str, value: str, expected: str) -> UsageError:
    hint = "Build trees and graphs with build_tree and build_edges."
    return UsageError(_PROBLEM, where=where, value=value, expected=expected, hint=hint)
