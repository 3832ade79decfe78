"""Solutions along descending lambdas that all layers share, and the lambda at which each row enters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UsageError
from edgeprune.lasso.penalties import Penalty
from edgeprune.lasso.problem import Problem
from edgeprune.lasso.solver import lambda_max, solve


@dataclass(frozen=True)
class PathResult:
    """What a path of N lambdas over L layers found.

    Attributes:
        lambdas: As given (N,).
        entry: (L, p) >= 0, the largest lambda at which the row is non-zero. At each lambda of the path,
            ``entry >= lambda`` exactly for the rows that were non-zero there or before. Within a cell of the
            path it is an estimate. A row that never enters has its dual norm at the last lambda, below it.
        gap: Relative duality gaps (L, N).
        objective: (L, N).
        converged: Which gaps are within the tolerance (L, N).
        coefficients: B (L, p, C) at the lambdas asked for, by their place on the path.
        steps: Proximal and Newton steps taken.
    """

    lambdas: Tensor
    entry: Tensor
    gap: Tensor
    objective: Tensor
    converged: Tensor
    coefficients: dict[int, Tensor]
    steps: int


def path(
    problem: Problem,
    penalty: Penalty,
    lambdas: Sequence[float] | Tensor,
    tolerance: float = 1e-6,
    max_steps: int = 20_000,
    keep: Collection[int] = (),
) -> PathResult:
    """Solve at each lambda, starting from the solution before.

    Args:
        problem: The quadratics.
        penalty: Omega.
        lambdas: Descending, > 0.
        tolerance: Largest duality gap, as a share of F(0).
        max_steps: Of one lambda.
        keep: Places on the path whose coefficients to hand back.

    Raises:
        UsageError: The lambdas do not descend or are not positive, or the penalty does not fit.
    """
    grid = torch.as_tensor(lambdas, dtype=torch.float64, device=problem.gram.device)
    if (
        grid.ndim != 1
        or not len(grid)
        or not (grid.isfinite() & (grid > 0)).all()
        or (grid.diff() >= 0).any()
    ):
        raise UsageError(
            "could not follow the path",
            where="lambdas",
            value="something else",
            expected="one or more numbers > 0 that descend",
            hint="Use torch.logspace from lambda_max down.",
        )
    ceiling = lambda_max(problem, penalty)
    layers, classes, rows = problem.target.shape
    now = problem.gram.new_zeros(layers, rows, classes)
    before = problem.target.mT  # h - G B at the lambda before
    entry, entered = now.new_zeros(layers, rows), now.new_zeros(layers, rows, dtype=torch.bool)
    gap, converged = now.new_zeros(layers, len(grid)), now.new_ones(layers, len(grid), dtype=torch.bool)
    objective = problem.at_zero[:, None].repeat(1, len(grid))
    kept, steps = {}, 0
    upper = ceiling
    for place, lam in enumerate(grid):
        on = (ceiling > lam).nonzero()[:, 0]
        if len(on):
            part = problem.at(on)
            found = solve(part, penalty.at(on), lam, now[on], tolerance, max_steps)
            steps += found.steps
            now[on], gap[on, place] = found.coefficients, found.gap
            objective[on, place], converged[on, place] = found.objective, found.converged
            after = problem.correlation(now)
            fresh = (now != 0).any(-1) & ~entered
            entry[fresh] = _crossing(problem, penalty, fresh, before, after, now, upper, lam)
            entered |= fresh
            before = after
        upper = torch.minimum(ceiling, lam)
        if place in keep:
            kept[place] = now.clone()
    outside = ~entered
    below = torch.nextafter(grid[-1], grid.new_zeros(()))
    entry[outside] = _row_norms(penalty, outside, before).clamp(max=below)
    return PathResult(grid, entry, gap, objective, converged, kept, steps)


def _row_norms(penalty: Penalty, which: Tensor, points: Tensor) -> Tensor:
    """Omega° of some rows of points (L, p, C), in the order of ``points[which]``."""
    if not which.any():
        return points.new_zeros(0)
    return penalty.at(which.nonzero()[:, 0]).dual_norm(points[which][:, None])[:, 0]


def _crossing(
    problem: Problem,
    penalty: Penalty,
    which: Tensor,
    before: Tensor,
    after: Tensor,
    now: Tensor,
    upper: Tensor,
    lam: Tensor,
) -> Tensor:
    """Where in [lam, upper] rows enter that are zero at upper and non-zero at lam.

    A row enters where its dual norm, taken without its own part of the fit, reaches lambda. At both ends that
    is known; a straight line lies between.
    """
    layer = which.nonzero()[:, 0]
    alone = after + problem.gram.diagonal(dim1=-2, dim2=-1).mT * now
    top = upper[layer]
    short = (top - _row_norms(penalty, which, before)).clamp(min=0)
    over = (_row_norms(penalty, which, alone) - lam).clamp(min=0)
    share = torch.where(short + over > 0, over / (short + over).clamp(min=1e-300), 1.0)
    inside = torch.where(short > 0, torch.nextafter(top, lam), top)
    return torch.minimum(lam + share * (top - lam), inside).clamp(min=lam)
