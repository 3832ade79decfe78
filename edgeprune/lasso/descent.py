"""Steps towards the solution at one lambda: proximal gradient, and Newton on the face that it finds."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.lasso.penalties import Face, Penalty
from edgeprune.lasso.problem import Problem

_CONJUGATE_STEPS = 100
_CONJUGATE_TOLERANCE = 1e-8  # of the squared residual
_TRIALS = 12
_FEW = 7  # unknowns for each row: a dense factor of so many costs what conjugate gradients do


def lipschitz(problem: Problem) -> Tensor:
    """An upper bound (L,) of the largest eigenvalue of any G_c: the smaller of two norms."""
    gram = problem.gram
    rows, frobenius = gram.abs().sum(-1).amax(-1), gram.square().sum((-1, -2)).sqrt()
    return torch.minimum(rows, frobenius).amax(-1).clamp(min=1e-300)


def proximal_steps(problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor, steps: int) -> Tensor:
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
    """Minimise on the face of ``start``, where the objective is smooth, by a Newton step.

    The system is ``P (G + lambda Q) P d = P (z - lambda slope)`` with P the projection onto the face and Q
    the curvature of the penalty. Its unknowns are the tied components: where they are few it is solved by
    its Cholesky factor, else by conjugate gradients.

    Returns:
        The new coefficients, and where (L,) the step hit a kink, so that another may gain as much.
    """
    face = penalty.face(start)
    slope = problem.correlation(start) - lam[:, None, None] * face.slope
    step = torch.zeros_like(start)
    unsolved = []
    for layer, place in enumerate(face.places()):
        few = place.max() < _FEW * place.shape[0]
        if not (few and _solve_directly(problem, face, lam, slope, layer, place, step)):
            unsolved.append(layer)
    if unsolved:
        left = torch.tensor(unsolved, device=start.device)
        step[left] = _solve_iteratively(problem.at(left), face.at(left), lam[left], slope[left])
    return _line_search(problem, penalty, lam, start, step)


def _solve_directly(
    problem: Problem, face: Face, lam: Tensor, slope: Tensor, layer: int, place: Tensor, step: Tensor
) -> bool:
    """Fill a layer's step; False if its system has no Cholesky factor."""
    alive = place >= 0
    count = int(place.max()) + 1
    matrix, right = slope.new_zeros(count, count), slope.new_zeros(count)
    for kind, (there, own) in enumerate(zip(alive.T, place.T, strict=True)):
        rows, own = there.nonzero()[:, 0], own[there]  # of one class no two rows share a component
        matrix[own[:, None], own] += problem.gram[layer, kind][rows[:, None], rows]
        right[own] += slope[layer, rows, kind]
    if face.curvature is not None:
        both = alive[..., None] & alive[:, None]
        pairs = (place[..., None].expand_as(both)[both], place[:, None].expand_as(both)[both])
        matrix.index_put_(pairs, lam[layer] * face.curvature[layer][both], accumulate=True)
    diagonal = matrix.diagonal()
    diagonal += 1e-13 * diagonal.amax() if count else 0.0
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return False
    solved = torch.cholesky_solve(right[:, None], factor)[:, 0]
    step[layer][alive] = solved[place[alive]]
    return True


def _solve_iteratively(problem: Problem, face: Face, lam: Tensor, slope: Tensor) -> Tensor:
    """Conjugate gradients for the step (L, p, C).

    The system couples classes only by ties and by Q, so that the Cholesky factors of its diagonal blocks, one
    per class, are a good preconditioner, however ill G is.
    """
    scale = lam[:, None, None]
    residual = face.project(slope)
    inverse = _inverse_by_class(problem, scale, face)
    step = torch.zeros_like(slope)
    direction, before = torch.zeros_like(slope), torch.ones_like(scale)
    first: Tensor | None = None
    for _ in range(_CONJUGATE_STEPS):
        solved = face.project((inverse @ residual.mT.unsqueeze(-1)).squeeze(-1).mT)
        rho = (residual * solved).sum((-1, -2), keepdim=True)
        direction, before = solved + rho / before.clamp(min=1e-300) * direction, rho
        first = rho if first is None else first
        if (rho <= _CONJUGATE_TOLERANCE * first).all():
            break
        image = face.project(problem.product(direction) + scale * face.bend(direction))
        length = rho / (direction * image).sum((-1, -2), keepdim=True).clamp(min=1e-300)
        step = step + length * direction
        residual = residual - length * image
    return step


def _inverse_by_class(problem: Problem, scale: Tensor, face: Face) -> Tensor:
    """(L, C, p, p): the inverse of each class's block of the Newton system."""
    alive = face.alive.mT.to(problem.gram.dtype)
    blocks = problem.gram * alive[..., None] * alive[..., None, :]
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    diagonal += (scale * face.stiffness).mT + (1 - alive)
    diagonal += 1e-13 * diagonal.amax(-1, keepdim=True)
    factor, failed = torch.linalg.cholesky_ex(blocks)
    factor = torch.where((failed > 0)[..., None, None], torch.eye(alive.shape[-1]).to(factor), factor)
    return torch.cholesky_inverse(factor)


def _line_search(
    problem: Problem, penalty: Penalty, lam: Tensor, start: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """As far along the direction, by quarters, as lowers the objective, else not at all; stops at kinks.

    Entries that would cross a kink of the face (a zero, a tie) stop there, and the next face is without them.

    Returns:
        The new coefficients, and where (L,) another Newton step may gain as much: a kink was hit.
    """
    correlation = problem.correlation(start)
    before = penalty.value(start)
    noise = 1e-15 * (problem.at_zero + lam * before)
    length = torch.ones_like(lam)
    for _ in range(_TRIALS):
        straight = start + length[:, None, None] * direction
        new = penalty.settle(start, straight)
        move = new - start
        change = ((problem.product(move) / 2 - correlation) * move).sum((-1, -2))
        worse = ~(change + lam * (penalty.value(new) - before) <= noise)
        if not worse.any():
            break
        length = torch.where(worse, length / 4, length)
    new = torch.where(worse[:, None, None], start, new)
    return new, ~worse & (new != straight).flatten(1).any(-1)
