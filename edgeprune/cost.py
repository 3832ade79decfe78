"""What a network costs: multiply-adds and parameters, counted and not guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.cutting import duplicate, first_line
from edgeprune.errors import ModelError


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module of ``model`` into evaluation mode, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def as_inputs(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The positional inputs of a forward pass, cut to batch 1.

    Raises:
        ModelError: They are not tensors with a batch axis.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    for value in inputs:
        if not isinstance(value, Tensor) or not value.dim() or not len(value):
            raise ModelError(
                "could not use the example input",
                where="one of its values",
                value=f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
                expected="a tensor of at least one sample (N, ...)",
            )
    return tuple(tensor[:1] for tensor in inputs)


def count_macs(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> int:
    """Multiply-adds of one inference at batch 1.

    Counted are convolutions, linear layers and matrix products, by torch's own counter on tensors without
    storage; a multiply-add counts 1. Norms, activations, pooling and element-wise operators count 0.

    Args:
        model: Any network; it is not changed.
        example: Input (N, C, H, W), or a tuple of inputs; only the first sample's shape matters.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 32, 32))
        221184
    """
    return count_macs_meta(shell_of(model), example)


def shell_of(model: nn.Module) -> nn.Module:
    """A copy without storage, in evaluation mode: its tensors are on the meta device."""
    return duplicate(model, lambda tensor: tensor.to("meta")).eval()


def count_macs_meta(shell: nn.Module, example: Tensor | tuple[Tensor, ...]) -> int:
    """As ``count_macs``, for what ``shell_of`` made.

    Raises:
        ModelError: The network does not run without numbers.
    """
    counter = FlopCounterMode(display=False)
    inputs = tuple(torch.empty_like(tensor, device="meta") for tensor in as_inputs(example))
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            shell(*inputs)
    except Exception as reason:
        raise ModelError(
            "could not count multiply-adds",
            where="the forward pass on tensors without storage",
            value=f"failing ({first_line(reason)})",
            expected="one that does not depend on the numbers in its input",
        ) from reason
    # torch counts a multiply-add as two operations.
    return int(counter.get_total_flops()) // 2


def count_params(model: nn.Module) -> int:
    """Number of parameters (trainable or not; shared ones once; buffers are not parameters)."""
    return sum(parameter.numel() for parameter in model.parameters())
