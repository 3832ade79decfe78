"""The learning rate of each step."""

from __future__ import annotations

import math

from edgeprune.training.recipe import Schedule

CYCLE_START, CYCLE_END = 25.0, 1e4
"""One cycle starts at the highest rate / 25, and ends at its start / 10,000."""
CYCLE_RISE = 0.3
"""Share of the epochs that one cycle rises, unless the recipe says how many."""


def learning_rate(
    schedule: Schedule,
    lr: float,
    epoch: int,
    epochs: int,
    step: int,
    steps: int,
    *,
    warmup_epochs: float = 0.0,
) -> float:
    """Learning rate of one step; ``epoch`` and ``step`` count from 0.

    Args:
        schedule: ``"cosine"`` and ``"one-cycle"`` change each step, ``"step"`` each epoch.
        lr: The highest.
        epoch: Whole epochs done.
        epochs: Of the training.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        warmup_epochs: See `Recipe`.
    """
    done = epoch + step / steps
    if schedule == "one-cycle":
        rise, low = warmup_epochs or CYCLE_RISE * epochs, lr / CYCLE_START
        if done < rise:
            return _glide(low, lr, done / rise)
        return _glide(lr, low / CYCLE_END, (done - rise) / (epochs - rise))
    if done < warmup_epochs:
        return lr * (done + 1 / steps) / (warmup_epochs + 1 / steps)
    if schedule == "step":
        drops = {int(epochs * 0.5), int(epochs * 0.75)}  # a set: in a short training they may coincide
        return float(lr * 0.1 ** sum(0 < drop <= epoch for drop in drops))
    return lr * 0.5 * (1 + math.cos(math.pi * (done - warmup_epochs) / (epochs - warmup_epochs)))


def _glide(start: float, end: float, share: float) -> float:
    """From start to end by half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
