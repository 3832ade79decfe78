"""What a network costs: multiply-adds and parameters, counted and not guessed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from edgeprune.cutting import duplicate, first_line, tensors_of
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
    _run_meta(shell, example, counter)
    # torch counts a multiply-add as two operations.
    return int(counter.get_total_flops()) // 2


def macs_by_weight(shell: nn.Module, example: Tensor | tuple[Tensor, ...]) -> tuple[dict[str, int], int]:
    """The multiply-adds of ``count_macs_meta``, booked on the weights that they read.

    A weight that is read several times has the sum. A product of two weights is booked on the second.

    Args:
        shell: As ``shell_of`` makes it.
        example: As for ``count_macs``.

    Returns:
        Multiply-adds by state-dict key (of a shared tensor, its first), and those that read no parameter or
        buffer: attention, and weights that the forward pass computes.

    Raises:
        ModelError: The network does not run without numbers.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))
        >>> macs_by_weight(shell_of(net), torch.zeros(1, 3, 4, 4))
        ({'0.weight': 864, '2.weight': 128}, 0)
    """
    keys: dict[int, str] = {}
    for key, tensor in tensors_of(shell).items():
        keys.setdefault(_storage(tensor), key)
    counter = FlopCounterMode(display=False)
    booking = _Booking(counter, keys)
    _run_meta(shell, example, counter, booking)
    macs = {key: flops // 2 for key, flops in booking.flops.items() if key is not None}
    return macs, booking.flops[None] // 2


class _Booking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books what a counter counts during each operator on the weight that the operator multiplies with.

    Args:
        counter: The counter, entered before.
        keys: State-dict key by storage: a weight comes to its product as a view, e.g. transposed.
    """

    def __init__(self, counter: FlopCounterMode, keys: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter, self.keys = counter, keys
        self.flops: Counter[str | None] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        flops = self.counter.get_total_flops() - before
        if flops:
            # The factors are the last two tensors, a convolution's bias aside; addmm has its addend first.
            named = zip(func._schema.arguments, args, strict=False)
            tensors = [x for entry, x in named if isinstance(x, Tensor) and entry.name != "bias"]
            found = [self.keys[place] for x in tensors[-2:] if (place := _storage(x)) in self.keys]
            self.flops[found[-1] if found else None] += flops
        return result


def _storage(tensor: Tensor) -> int:
    """The same number for all views of a tensor, on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def _run_meta(
    shell: nn.Module, example: Tensor | tuple[Tensor, ...], *modes: contextlib.AbstractContextManager[Any]
) -> None:
    """A forward pass on tensors without storage, inside of torch's modes."""
    inputs = tuple(torch.empty_like(tensor, device="meta") for tensor in as_inputs(example))
    try:
        with torch.no_grad(), torch.device("meta"), contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            shell(*inputs)
    except Exception as reason:
        raise ModelError(
            "could not count multiply-adds",
            where="the forward pass on tensors without storage",
            value=f"failing ({first_line(reason)})",
            expected="one that does not depend on the numbers in its input",
        ) from reason


def count_params(model: nn.Module) -> int:
    """Number of parameters (trainable or not; shared ones once; buffers are not parameters)."""
    return sum(parameter.numel() for parameter in model.parameters())
