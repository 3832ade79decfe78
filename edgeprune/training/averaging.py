"""A running mean of a network's weights and norm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightMean:
    """Exponential mean over the steps, of every tensor of the state dict that has a fraction.

    Args:
        model: The network.
        decay: Per step, once the training is long enough: the first steps count less.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        state = model.state_dict(keep_vars=True)
        unique = {id(tensor): tensor for tensor in state.values() if tensor.is_floating_point()}
        self.live = list(unique.values())
        self.mean = [tensor.detach().clone() for tensor in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step; ``step`` counts from 0 over the whole training."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.mean, [tensor.detach() for tensor in self.live], 1 - decay)

    @contextlib.contextmanager
    def worn(self) -> Iterator[None]:
        """The network wears the mean, and then its own weights again, to the bit."""
        with torch.no_grad():
            own = [tensor.detach().clone() for tensor in self.live]
            torch._foreach_copy_([tensor.detach() for tensor in self.live], self.mean)
            try:
                yield
            finally:
                torch._foreach_copy_([tensor.detach() for tensor in self.live], own)

    def state_dict(self) -> dict[str, Any]:
        """The mean."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the mean."""
        for mine, saved in zip(self.mean, state["mean"], strict=True):
            mine.copy_(saved)


@contextlib.contextmanager
def wearing(mean: WeightMean | None) -> Iterator[None]:
    """As ``mean.worn()``; without a mean nothing changes."""
    with mean.worn() if mean is not None else contextlib.nullcontext():
        yield


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of its own."""
    return {key: value.detach().clone() for key, value in state.items()}
