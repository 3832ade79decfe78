"""The exact proximal map of the total variation of a row over a small graph.

``argmin_x 1/2 ||x - y||^2 + sum_e mu_e |x_c - x_d|`` over edges e = (c, d). With a flow v_e on each edge,
``x = y - D' v`` where ``|v_e| <= mu_e``, and ``v_e = mu_e sign(x_c - x_d)`` wherever the ends differ. An
accelerated projected gradient on v finds which edges are saturated; the others tie their ends, and then x is
a mean over each tied component and v the solution of a linear system. A row is done when that flow is
within its bounds and no saturated edge runs against its flow: these are the optimality conditions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BATCH = 15  # gradient steps between two looks at the face
_ROUNDS = 400
_SLACK = 1e-13  # of the largest entry of y


def closure(adjacent: Tensor) -> Tensor:
    """Which nodes are connected (..., C, C), 0.0 or 1.0, given where they are adjacent, > 0."""
    count = adjacent.shape[-1]
    reach = adjacent + torch.eye(count, dtype=adjacent.dtype, device=adjacent.device)
    for _ in range(max(count - 1, 1).bit_length()):
        reach = (reach @ reach).clamp(max=1)
    return reach


def fused_prox(points: Tensor, bounds: Tensor, incidence: Tensor, flows: Tensor) -> tuple[Tensor, Tensor]:
    """Proximal map and flow of each row.

    Args:
        points: y (R, C).
        bounds: mu (R, E), >= 0; an edge that is not there has the bound 0.
        incidence: D (R or 1, E, C): +1 at the first, -1 at the second end of an edge.
        flows: v (R, E) to start from.

    Returns:
        x (R, C), with ends that are tied exactly equal, and v (R, E) with ``x = y - D' v``.
    """
    result, flow = points.clone(), flows.clamp(-bounds, bounds)
    if not bounds.shape[-1] or not len(points):
        return result, flow
    # By Gershgorin, D D' has no eigenvalue above twice the largest degree.
    step = 0.5 / ((incidence.abs() * (bounds[..., None] > 0)).sum(-2).amax(-1).clamp(min=1))[:, None]
    rows = torch.arange(len(points), device=points.device)
    own = incidence.expand(len(points), -1, -1)
    gram = own @ own.mT
    for _ in range(_ROUNDS):
        x, exact, fits = _face(points[rows], bounds[rows], own, flow[rows])
        result[rows] = x
        flow[rows] = torch.where(fits[:, None], exact, flow[rows])
        left = ~fits
        if not left.any():
            break
        if not left.all():
            rows, own, gram, step = rows[left], own[left], gram[left], step[left]
        flow[rows] = _descend(points[rows], bounds[rows], own, gram, step, flow[rows])
    else:  # degenerate rows: what the descent gave is as exact as rounding lets it be
        result[rows] = points[rows] - _spread(own, flow[rows])
    return result, flow


def _spread(incidence: Tensor, flow: Tensor) -> Tensor:
    """``D' v``."""
    return (incidence.mT @ flow[..., None]).squeeze(-1)


def _descend(
    points: Tensor, bounds: Tensor, incidence: Tensor, gram: Tensor, step: Tensor, flow: Tensor
) -> Tensor:
    """A few steps of accelerated projected gradient on ``1/2 ||y - D' v||^2``, restarted."""
    slope = (incidence @ points[..., None]).squeeze(-1)
    ahead, momentum = flow, torch.ones_like(step)
    for _ in range(_BATCH):
        new = ahead + step * (slope - (gram @ ahead[..., None]).squeeze(-1))
        new = new.clamp(-bounds, bounds)
        back = ((ahead - new) * (new - flow)).sum(-1, keepdim=True) > 0
        momentum = torch.where(back, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = new + (momentum - 1) / following * (new - flow)
        flow, momentum = new, following
    return flow


def _face(points: Tensor, bounds: Tensor, incidence: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve on the face that the flow shows: x, v, and whether they are the solution."""
    free = flow.abs() < bounds
    loose = incidence * free[..., None]
    laplacian = loose.mT @ loose
    linked = closure((laplacian < 0).to(points.dtype))
    mean = linked / linked.sum(-1, keepdim=True)
    saturated = torch.where(free, 0.0, flow)
    x = (mean @ (points - _spread(incidence, saturated))[..., None]).squeeze(-1)
    x = x.gather(-1, linked.argmax(-1))  # one value per component, bit for bit
    missing = points - _spread(incidence, flow) - x
    potential = torch.linalg.solve(laplacian + mean, missing[..., None])
    exact = flow + (loose @ potential).squeeze(-1)
    slack = _SLACK * points.abs().amax(-1, keepdim=True)
    along = (incidence @ x[..., None]).squeeze(-1) * saturated.sign()
    fits = ((exact.abs() <= bounds + slack) & (along >= -slack)).all(-1)
    return x, exact.clamp(-bounds, bounds), fits
