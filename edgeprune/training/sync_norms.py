"""Batch norms whose statistics are those of all ranks' images, on the CPU as well as on GPUs.

torch's ``SyncBatchNorm`` is for CUDA only and takes the place of the modules. Here the modules stay, so that
names, state dict, surgery and export are what they were; while a training runs only their ``forward`` is
another.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.launch import world
from edgeprune.training.ranks import share_state, telling


@contextlib.contextmanager
def synchronised(model: nn.Module, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """In the block, batch norms in training mode use mean and variance over the batches of all ranks.

    Each image counts the same, however unequally a batch is divided; gradients flow through the statistics of
    all ranks, and the running ones are the same bits on each. Every rank has to run the same norms in the
    same order, forward and backward. Alone, nothing changes.

    Args:
        model: Network; its batch norms get their own forward back at the end.
        counts: Whether this rank's batch counts; one that does not is normalised as the others' are.
    """
    norms = {module for module in model.modules() if isinstance(module, _BatchNorm)}
    norms = norms if world().size > 1 else set()
    for norm in norms:
        norm.forward = functools.partial(_forward, norm, norm.forward, counts)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


@contextlib.contextmanager
def separate(model: nn.Module) -> Iterator[None]:
    """Batch norms see the images of their own rank alone; after the block all ranks have rank 0's state."""
    yield
    share_state(model)


def _forward(
    norm: _BatchNorm, own: Callable[[Tensor], Tensor], counts: Callable[[], bool], x: Tensor
) -> Tensor:
    """As ``_BatchNorm.forward``; ``own`` is that."""
    if not norm.training or world().size == 1:
        return own(x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    y, mean, variance, count = _SynchronisedNorm.apply(x, norm.weight, norm.bias, norm.eps, counts())
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            unbiased = variance * (count / (count - 1).clamp(min=1))
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            norm.running_var.lerp_(unbiased.to(norm.running_var), share)
    return y  # type: ignore[no-any-return]


class _SynchronisedNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised x, and per channel mean, biased variance and the number of values."""
        here = world()
        # In bfloat16 a sum over a map would lose most of its values.
        wide = x if x.dtype == torch.float64 else x.float()
        # Three times as fast on the CPU as torch.var_mean, and as exact; without buffers it updates none.
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        number = mean.new_tensor([x.numel() // x.shape[1] if counts else 0])
        # A row per rank, 0 elsewhere: their sum is every row, with the same bits on every rank. In float64,
        # as one process adds up: what is lost here can turn activations that are near 0 on or off.
        rows = mean.new_zeros(here.size, 2 * len(mean) + 1, dtype=torch.float64)
        rows[here.rank] = torch.cat([mean, variance, number])
        with telling(here):
            dist.all_reduce(rows)
        means, variances, numbers = rows[:, : len(mean)], rows[:, len(mean) : -1], rows[:, -1:]
        count = numbers.sum()
        centre = (numbers * means).sum(0) / count
        spread = (numbers * (variances + (means - centre).square())).sum(0) / count
        mean, variance, count = (value.to(wide.dtype) for value in (centre, spread, count))
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.counts = eps, counts
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With c = x - mean, s^2 = variance + eps: ``dx = w/s (dy - mean(dy) - c mean(dy c) / s^2)``."""
        here = world()
        x, weight, mean, variance, count = ctx.saved_tensors
        shape = [1, -1, *(1,) * (x.ndim - 2)]
        dims = _all_but_channels(x)
        dy = dy.to(mean.dtype)
        centred = x.to(mean.dtype) - mean.view(shape)
        inverse = (variance + ctx.eps).rsqrt()
        sums = torch.stack([dy.sum(dims), (dy * centred).sum(dims)])
        own_bias, own_weight = sums[0].clone(), sums[1] * inverse
        with telling(here):
            dist.all_reduce(sums)
        scale = inverse if weight is None else inverse * weight.to(inverse)
        if ctx.counts:
            first, second = sums / count
            dx = torch.addcmul(
                dy - first.view(shape), centred, (second * inverse.square()).view(shape), value=-1
            )
            dx = (dx * scale.view(shape)).to(x.dtype)
        else:
            dx = torch.zeros_like(x)
        if weight is None:
            return dx, None, None, None, None
        return dx, own_weight.to(weight.dtype), own_bias.to(weight.dtype), None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]
