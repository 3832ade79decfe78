"""The smooth part of a class-wise lasso: one quadratic per layer and class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UsageError

_PROBLEM = "could not pose the lasso"


@dataclass(frozen=True)
class Problem:
    """``F(B) = sum_c 1/2 B_c' G_c B_c - h_c' B_c + 1/2 t_c`` for L layers of p channels and C classes.

    Everything is brought to float64 on the device of ``gram``.

    Args:
        gram: G (L, C, p, p), symmetric, positive semidefinite.
        target: h (L, C, p).
        energy: t (L, C), ``||b_c||^2`` on the scale of G and h.

    Raises:
        UsageError: Shapes do not fit, a value is not finite, or a diagonal or an energy is negative.
    """

    gram: Tensor
    target: Tensor
    energy: Tensor

    def __post_init__(self) -> None:
        for name in ("gram", "target", "energy"):
            tensor = getattr(self, name).to(self.gram.device, torch.float64)
            object.__setattr__(self, name, tensor)
        shape = self.gram.shape
        if len(shape) != 4 or shape[-1] != shape[-2] or not self.gram.numel():
            raise _error("gram", f"of shape {tuple(shape)}", "(layers, classes, p, p)")
        for name, tensor, expected in (
            ("target", self.target, shape[:3]),
            ("energy", self.energy, shape[:2]),
        ):
            if tensor.shape != expected:
                raise _error(name, f"of shape {tuple(tensor.shape)}", f"{tuple(expected)}")
        for name in ("gram", "target", "energy"):
            if not getattr(self, name).isfinite().all():
                raise _error(name, "not finite", "numbers")
        diagonal = self.gram.diagonal(dim1=-2, dim2=-1)
        if diagonal.min() < 0 or self.energy.min() < 0:
            raise _error("the diagonal of gram or energy", "negative", "squares, >= 0")
        skew = (self.gram - self.gram.mT).abs().amax((-1, -2))
        if (skew > 1e-6 * diagonal.amax(-1)).any():
            raise _error("gram", "not symmetric", "A' A")

    @property
    def at_zero(self) -> Tensor:
        """F(0) (L,)."""
        return self.energy.sum(-1) / 2

    def product(self, coefficients: Tensor) -> Tensor:
        """``G_c B_c`` (L, p, C) of coefficients (L, p, C)."""
        return (self.gram @ coefficients.mT.unsqueeze(-1)).squeeze(-1).mT

    def correlation(self, coefficients: Tensor) -> Tensor:
        """``z = h - G B = A' r`` (L, p, C), minus the gradient of F."""
        return self.target.mT - self.product(coefficients)

    def at(self, layers: Tensor) -> Problem:
        """Some of the layers, by index."""
        return _unchecked(self.gram[layers], self.target[layers], self.energy[layers])

    def rows(self, rows: Tensor) -> Problem:
        """Some of the rows of every layer, by index (L, A)."""
        layer = torch.arange(len(rows), device=rows.device)[:, None, None, None]
        kind = torch.arange(self.gram.shape[1], device=rows.device)[None, :, None, None]
        gram = self.gram[layer, kind, rows[:, None, :, None], rows[:, None, None, :]]
        target = self.target[layer[..., 0], kind[..., 0], rows[:, None, :]]
        return _unchecked(gram, target, self.energy)


def tied(problem: Problem) -> Problem:
    """The problem with all columns of B equal, as one column: the HSIC lasso under ``Lasso``.

    ``F(beta 1') = 1/2 beta' (sum_c G_c) beta - (sum_c h_c)' beta + 1/2 sum_c t_c``.
    """
    sums = (tensor.sum(1, keepdim=True) for tensor in (problem.gram, problem.target, problem.energy))
    return _unchecked(*sums)


def _unchecked(gram: Tensor, target: Tensor, energy: Tensor) -> Problem:
    """A part of a problem that was checked."""
    part = object.__new__(Problem)
    for name, tensor in (("gram", gram), ("target", target), ("energy", energy)):
        object.__setattr__(part, name, tensor)
    return part


def _error(where: str, value: str, expected: str) -> UsageError:
    hint = "Compute the statistics again from finite maps."
    return UsageError(_PROBLEM, where=where, value=value, expected=expected, hint=hint)
