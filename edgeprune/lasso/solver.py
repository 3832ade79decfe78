"""Solutions of the class-wise lassos at one lambda, each with its certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.lasso.descent import newton_step, proximal_steps
from edgeprune.lasso.penalties import Penalty
from edgeprune.lasso.problem import Problem

_FAILED = "could not solve the lasso"
_PROXIMAL_STEPS = 4  # between two rounds of Newton steps
_NEWTON_STEPS = 10  # of a round, while they hit kinks


@dataclass(frozen=True)
class Solution:
    """Solutions of L layers.

    Attributes:
        coefficients: B (L, p, C), with exact zeros.
        gap: Duality gap over F(0) (L,): the objective is at most this share of F(0) above the smallest.
        objective: F(B) + lambda Omega(B) (L,).
        converged: Which gaps are within the tolerance (L,).
        steps: Proximal and Newton steps taken, those of the layers together.
    """

    coefficients: Tensor
    gap: Tensor
    objective: Tensor
    converged: Tensor
    steps: int


def solve(
    problem: Problem,
    penalty: Penalty,
    lam: float | Tensor,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 20_000,
) -> Solution:
    """Minimise ``F(B) + lambda Omega(B)`` in each layer.

    Only rows that are non-zero or violate their optimality condition are worked on. On those, proximal steps
    find the face of the solution and Newton steps the place on it, until the duality gap is small.

    Args:
        problem: The quadratics.
        penalty: Omega.
        lam: lambda > 0, one or one per layer (L,).
        start: B (L, p, C) to start from; zero if None.
        tolerance: Largest duality gap, as a share of F(0).
        max_steps: Stop here, converged or not.

    Raises:
        UsageError: lambda, start, tolerance or the penalty does not fit.

    Example:
        >>> from edgeprune.lasso import Lasso
        >>> problem = Problem(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 2.0), torch.full((1, 1), 4.0))
        >>> solve(problem, Lasso(), 0.5).coefficients.item()
        1.5
    """
    layers, classes, rows = problem.target.shape
    penalty.check(layers, classes)
    lam = _checked_lambda(lam, problem)
    if start is not None and start.shape != (layers, rows, classes):
        raise _error("start", f"of shape {tuple(start.shape)}", f"{(layers, rows, classes)}")
    if start is not None and not start.isfinite().all():
        raise _error("start", "not finite", "numbers")
    if not (tolerance > 0 and max_steps >= 0):
        raise _error(
            "tolerance or max_steps", f"{tolerance:g}, {max_steps}", "tolerance > 0 and max_steps >= 0"
        )
    if start is None:
        start = problem.gram.new_zeros(layers, rows, classes)
    everywhere = torch.arange(layers, device=problem.gram.device)
    return _solve(problem, penalty.at(everywhere), lam, start.to(problem.gram), tolerance, max_steps)


def _solve(
    problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor, tolerance: float, max_steps: int
) -> Solution:
    now, steps = start.clone(), 0
    scale = _scale(problem)
    gap, objective, violation = _certify(problem, penalty, lam, now)
    while True:
        open_ = (gap > tolerance * scale).nonzero()[:, 0]
        if not len(open_) or steps >= max_steps:
            return Solution(now, gap / scale, objective, gap <= tolerance * scale, steps)
        part = problem.at(open_)
        rows = _working_set(now[open_], violation[open_])
        place = rows[..., None].expand(-1, -1, now.shape[-1])
        inner, used = _descend(
            part.rows(rows),
            penalty.at(open_),
            lam[open_],
            now[open_].gather(1, place),
            0.3 * tolerance * scale[open_],
            max_steps - steps,
        )
        steps += used
        now[open_] = now[open_].scatter(1, place, inner)
        gap[open_], objective[open_], violation[open_] = _certify(
            part, penalty.at(open_), lam[open_], now[open_]
        )


def _working_set(coefficients: Tensor, violation: Tensor) -> Tensor:
    """Indices (L, A): the non-zero rows of each layer, then those that violate most, up to as many again."""
    alive = (coefficients != 0).any(-1)
    urgency = torch.where(alive, torch.inf, violation)
    wanted = (alive | (violation > 0)).sum(-1)
    most = torch.minimum(wanted, 2 * alive.sum(-1) + 10).amax()
    return urgency.sort(stable=True, dim=-1, descending=True).indices[:, : int(most.clamp(min=1))]


def _descend(
    problem: Problem, penalty: Penalty, lam: Tensor, now: Tensor, limit: Tensor, max_steps: int
) -> tuple[Tensor, int]:
    """Work on all rows of a problem until its gaps are within the limit (L,)."""
    now, steps = now.clone(), 0
    open_ = torch.arange(len(lam), device=lam.device)
    part, own = problem, penalty
    while len(open_) and steps < max_steps:
        point = now[open_]
        for _ in range(_NEWTON_STEPS):
            point, kinked = newton_step(part, own, lam[open_], point)
            steps += 1
            if not kinked.any():
                break
        point = proximal_steps(part, own, lam[open_], point, _PROXIMAL_STEPS)
        now[open_] = point
        steps += _PROXIMAL_STEPS
        left = _certify(part, own, lam[open_], point)[0] > limit[open_]
        if not left.all():
            open_ = open_[left]
            part, own = problem.at(open_), penalty.at(open_)
    return now, steps


def _certify(
    problem: Problem, penalty: Penalty, lam: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Duality gap (L,), objective (L,), and by how much each row violates its condition (L, p).

    The dual point is ``u = tau r`` with r the residual and tau <= 1 such that ``Omega°(A' u) <= lambda``: as
    raising a level by d lowers the excess by ``d root_weight`` or more, lambda + excess / root_weight bounds
    ``Omega°(A' r)``. With ``t = ||b||^2`` the dual value is
    ``1/2 t - 1/2 ||b - u||^2 = tau b'r - tau^2/2 ||r||^2``. All follows from t, h'B and B'GB.
    """
    correlation = problem.correlation(coefficients)
    energy = problem.energy.sum(-1)
    fit = (problem.target.mT * coefficients).sum((-1, -2))
    along = energy - fit  # b'r
    residual = (along - (correlation * coefficients).sum((-1, -2))).clamp(min=0)  # ||r||^2
    objective = residual / 2 + lam * penalty.value(coefficients)
    violation = penalty.excess(correlation, lam[:, None])
    tau = lam / (lam + (violation.clamp(min=0) / penalty.root_weight).amax(-1))
    dual = tau * along - tau**2 / 2 * residual
    return (objective - dual).clamp(min=0), objective, violation


def lambda_max(problem: Problem, penalty: Penalty) -> Tensor:
    """The smallest lambda (L,) at which all of B is zero: ``max_k Omega°(h_k)``.

    Raises:
        UsageError: The penalty does not fit the problem.
    """
    layers, classes, _ = problem.target.shape
    penalty.check(layers, classes)
    everywhere = torch.arange(layers, device=problem.gram.device)
    return penalty.at(everywhere).dual_norm(problem.target.mT).amax(-1)


def _scale(problem: Problem) -> Tensor:
    """F(0) (L,), or something tiny where there is nothing to explain."""
    return problem.at_zero.clamp(min=1e-300)


def _checked_lambda(lam: float | Tensor, problem: Problem) -> Tensor:
    layers = len(problem.target)
    given = torch.as_tensor(lam, dtype=torch.float64, device=problem.gram.device)
    if given.shape not in {torch.Size([]), torch.Size([layers])}:
        raise _error("lambda", f"of shape {tuple(given.shape)}", f"one number, or {layers}")
    if not (given.isfinite() & (given > 0)).all():
        raise _error("lambda", f"{given.min().item():g}", "a number > 0")
    return given.expand(layers).clone()


def _error(where: str, value: str, expected: str) -> UsageError:
    hint = "See the arguments of edgeprune.lasso.solve."
    return UsageError(_FAILED, where=where, value=value, expected=expected, hint=hint)
