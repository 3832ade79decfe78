"""Steps towards the solution at one lambda: accelerated proximal gradient, and Newton on the face it finds."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.lasso.penalties import Penalty
from edgeprune.lasso.problem import Problem

_LARGEST_SYSTEM = 4000  # unknowns of one layer
_HALVINGS = 12


def lipschitz(problem: Problem) -> Tensor:
    """An upper bound (L,) of the largest eigenvalue of any G_c: the smaller of two norms."""
    gram = problem.gram
    rows, frobenius = gram.abs().sum(-1).amax(-1), gram.square().sum((-1, -2)).sqrt()
    return torch.minimum(rows, frobenius).amax(-1).clamp(min=1e-300)


def proximal_steps(
    problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor, steps: int
) -> Tensor:
    """FISTA with the gradient restart of O'Donoghue & Candes (2015), each layer for itself."""
    size = (1 / lipschitz(problem))[:, None, None]
    level = lam[:, None] * size[..., 0]
    now, ahead, momentum = start, start, torch.ones_like(size)
    for _ in range(steps):
        new = penalty.prox(ahead + size * problem.correlation(ahead), level)
        back = ((ahead - new) * (new - now)).sum((-1, -2), keepdim=True) > 0
        momentum = torch.where(back, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = new + (momentum - 1) / following * (new - now)
        now, momentum = new, following
    return now


def newton_step(problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise on the face of ``start``, where the objective is smooth.

    Exact if the penalty is linear there, else one Newton step. It is halved until the objective does not rise,
    or not taken.

    Returns:
        The new coefficients, and which layers (L,) took the full step.
    """
    face = penalty.face(start)
    layers, rows, classes = start.shape
    size = int(face.labels.amax()) + 1
    if not 1 < size <= _LARGEST_SYSTEM:
        return start, torch.zeros(layers, dtype=torch.bool, device=start.device)
    labels = face.labels
    ascent = lam[:, None, None] * face.slope - problem.correlation(start)
    system = start.new_zeros(layers, size * size)
    by_class = labels.mT
    places = by_class[..., :, None] * size + by_class[..., None, :]
    system.scatter_add_(1, places.flatten(1), problem.gram.flatten(1))
    if face.curvature is not None:
        places = labels[..., :, None] * size + labels[..., None, :]
        system.scatter_add_(1, places.flatten(1), (lam[:, None, None, None] * face.curvature).flatten(1))
    system = system.view(layers, size, size)
    system[:, 0, :] = system[:, :, 0] = 0  # label 0: what is zero and stays so
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    diagonal += torch.where(diagonal > 0, 1e-15 * diagonal, 1.0)
    slope = start.new_zeros(layers, size).scatter_add_(1, labels.flatten(1), ascent.flatten(1))
    slope[:, 0] = 0
    factor, failed = torch.linalg.cholesky_ex(system)
    step = torch.cholesky_solve(-slope[..., None], factor).squeeze(-1)
    step = torch.where((failed > 0)[:, None] | ~step.isfinite(), 0.0, step)
    direction = step.gather(1, labels.flatten(1)).view_as(start)
    return _line_search(problem, penalty, lam, start, direction)


def _line_search(
    problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    bend = (direction * problem.product(direction)).sum((-1, -2)) / 2
    tilt = -(direction * problem.correlation(start)).sum((-1, -2))
    before = penalty.value(start)
    length = torch.ones_like(lam)
    for _ in range(_HALVINGS):
        new = start + length[:, None, None] * direction
        change = length * tilt + length**2 * bend + lam * (penalty.value(new) - before)
        worse = ~(change <= 0)
        if not worse.any():
            break
        length = torch.where(worse, length / 2, length)
    length = torch.where(worse, 0.0, length)
    return start + length[:, None, None] * direction, length == 1
