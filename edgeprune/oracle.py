"""Running networks in float64 without holding them in float64, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgeprune.cutting import duplicate, names_of, tensors_of
from edgeprune.errors import SlimError
from edgeprune.scratch import Scratch

Inputs = tuple[Tensor, ...]

SIDES = (64, 96, 128, 160, 192)
"""Spatial sizes to try in place of a larger one; at 64 a network of stride 32 still has 2 x 2 places."""

ASKS = frozenset({"size", "dim", "numel", "is_floating_point", "is_complex", "get_device", "__len__"})
"""Methods that ask a tensor about its form and not about its numbers."""


COLUMNS: dict[Callable[..., Any], int] = {F.linear: -1, F.conv1d: -2, F.conv2d: -3, F.conv3d: -4}
"""Axis of the input's channels, by function whose weight has a column (axis 1) for each of them."""

Zeros = Mapping[str, list[tuple[int, Tensor]]]
"""Positions of tensor axes that count as zero, by the tensor's state-dict key."""


def hollow(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose floating-point parameters and buffers are float64 and take no memory.

    They hold NaN: whoever reads one that nobody fills computes nothing that could pass for a result.
    """

    def emptied(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.clone()
        dtype = torch.complex128 if tensor.is_complex() else torch.float64
        return torch.full((), float("nan"), dtype=dtype, device=tensor.device).expand(tensor.shape)

    return duplicate(model, emptied, plain=in_double).eval()


def in_double(tensor: Tensor, scratch: Scratch | None = None) -> Tensor:
    """A float64 copy (complex128 of complex numbers); what is not floating-point is copied as it is."""
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    dtype = torch.complex128 if tensor.is_complex() else dtype
    return tensor.to(dtype, copy=True) if scratch is None else scratch.copy(tensor, dtype)


class Filled(TorchFunctionMode):
    """While active, each operator that reads a hollow tensor gets what the tensor's source makes.

    The numbers of a tensor exist only as long as one operator works on them.

    Args:
        sources: By ``id`` of the hollow tensor.
        columns: Of weights with columns of zeros, which a product need not multiply with, by ``id``: the
            positions of the others, and what makes the weight of those alone.
    """

    def __init__(
        self,
        sources: Mapping[int, Callable[[], Tensor]],
        columns: Mapping[int, tuple[Tensor, Callable[[], Tensor]]] | None = None,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.columns = columns or {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See ``torch.overrides.TorchFunctionMode``."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ASKS:
            return func(*args, **kwargs)
        if name == "__get__":
            found = func(*args, **kwargs)
            if not isinstance(found, Tensor):
                return found  # shape, dtype, device ...
        if func in COLUMNS and len(args) > 1 and id(args[1]) in self.columns:
            args = self._without_zeros(args, COLUMNS[func])
        return func(*self._filled(args), **{key: self._filled(value) for key, value in kwargs.items()})

    def _without_zeros(self, args: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
        """Input and weight without the columns that are zero; grouped convolutions read all they have."""
        x, weight, *others = args
        kept, make = self.columns[id(weight)]
        if x.shape[axis] != weight.shape[1] or not len(kept):
            return args
        return (x.index_select(axis, kept.to(x.device)), make(), *others)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            source = self.sources.get(id(value))
            return value if source is None else source()
        if type(value) in (tuple, list):
            return type(value)(map(self._filled, value))
        return value


class Double:
    """A network that computes in float64, in evaluation mode; parameters become float64 one at a time.

    Args:
        model: Network; it is not changed, and must not change while this is in use.
        zeros: Positions of tensor axes that count as zero.

    Attributes:
        module: The network, hollow.
        owned: Tensors of its own, by state-dict key: they take the place of the network's.
    """

    def __init__(self, model: nn.Module, zeros: Mapping[tuple[str, int], Tensor] | None = None) -> None:
        self.module = hollow(model)
        self.owned: dict[str, Tensor] = {}
        self._tensors = tensors_of(model)
        self._name = names_of(model)
        self._zeros: dict[str, list[tuple[int, Tensor]]] = {}
        for (key, axis), positions in (zeros or {}).items():
            self._zeros.setdefault(self._name[key], []).append((axis, positions))

    def value(self, key: str, scratch: Scratch | None = None) -> Tensor:
        """The float64 numbers of a parameter or buffer: its own tensor, or else a copy."""
        name = self._name[key]
        if name in self.owned:
            return self.owned[name]
        tensor = in_double(self._tensors[name].detach(), scratch)
        for axis, positions in self._zeros.get(name, ()):
            tensor.index_fill_(axis, positions.to(tensor.device), 0)
        return tensor

    def __contains__(self, key: str) -> bool:
        """Whether the network has such a parameter or buffer."""
        return key in self._name

    def own(self, key: str) -> Tensor:
        """As ``value``, kept from now on: it may be changed in place."""
        return self.owned.setdefault(self._name[key], self.value(key))

    def filled(self) -> Filled:
        """The mode in which ``module`` computes."""
        scratch = Scratch()

        def part(key: str, kept: Tensor) -> Tensor:
            return in_double(scratch.chosen(self._tensors[key].detach(), 1, kept), scratch)

        return Filled(
            sources_of(self.module, lambda key: self.value(key, scratch)),
            columns_of(
                self.module, {key: z for key, z in self._zeros.items() if key not in self.owned}, part
            ),
        )

    def outputs(self, inputs: Inputs) -> list[Tensor]:
        """All tensors that a forward pass on float64 inputs returns."""
        with self.filled():
            return outputs_of(self.module, inputs)


def sources_of(module: nn.Module, value: Callable[[str], Tensor]) -> dict[int, Callable[[], Tensor]]:
    """Sources for ``Filled`` from a function of the state-dict key."""
    floating = ((key, t) for key, t in tensors_of(module).items() if t.is_floating_point() or t.is_complex())
    return {id(tensor): (lambda key=key: value(key)) for key, tensor in floating}  # type: ignore[misc]


def columns_of(
    module: nn.Module, zeros: Zeros, part: Callable[[str, Tensor], Tensor]
) -> dict[int, tuple[Tensor, Callable[[], Tensor]]]:
    """Columns for ``Filled`` of the weights that are zero along axis 1 alone.

    Args:
        module: Hollow network.
        zeros: What is zero.
        part: Makes the weight of a key at the given positions of axis 1.
    """
    tensors = tensors_of(module)
    columns: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}
    for key, places in zeros.items():
        if {axis for axis, _ in places} == {1}:
            mask = torch.ones(tensors[key].shape[1], dtype=torch.bool)
            for _, positions in places:
                mask[positions] = False
            kept = mask.nonzero()[:, 0]
            columns[id(tensors[key])] = (kept, partial(part, key, kept))
    return columns


def random_inputs(
    shapes: Iterable[tuple[Iterable[int], torch.dtype]], device: torch.device, *, seed: int
) -> Inputs:
    """Float64 noise where the dtype is floating-point, else zeros, which index and mask nothing wrong."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device)
        if dtype.is_floating_point
        else torch.zeros(tuple(shape), dtype=dtype, device=device)
        for shape, dtype in shapes
    )


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a forward pass returns, whatever holds them.

    What the forward pass makes of nothing is of the first input's dtype, if that is floating-point.
    """
    default = torch.get_default_dtype()
    if inputs[0].is_floating_point():
        torch.set_default_dtype(inputs[0].dtype)
    try:
        with torch.no_grad():
            return [leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
    finally:
        torch.set_default_dtype(default)


def smallest(model: nn.Module, inputs: Inputs) -> Inputs:
    """Inputs with the smallest height, width or length that the network accepts: channels do not care.

    Args:
        model: Network; it is not changed.
        inputs: Inputs (N, C, ...) that it accepts.

    Returns:
        Slices of ``inputs``: at most ``SIDES[0]`` places per spatial axis if the network takes that and
        makes of it as many outputs with as many axes and the same batch; else the next of ``SIDES``; else
        ``inputs``.
    """
    longest = max((size for tensor in inputs for size in tensor.shape[2:]), default=0)
    if longest <= SIDES[0] or not all(tensor.dim() > 2 for tensor in inputs):
        return inputs
    shell = duplicate(model, lambda tensor: tensor.to("meta")).eval()

    def kinds(batch: Inputs) -> list[tuple[int, int]] | None:
        try:
            with torch.device("meta"):
                found = outputs_of(shell, tuple(tensor.to("meta") for tensor in batch))
        except Exception:  # the forward pass is the user's: it may raise anything
            return None
        return [(tensor.dim(), tensor.shape[0] if tensor.dim() else 1) for tensor in found]

    wanted = kinds(inputs)
    for side in SIDES:
        if wanted is None or side >= longest:
            break
        places = [(..., *[slice(side)] * (tensor.dim() - 2)) for tensor in inputs]
        batch = tuple(tensor[place] for tensor, place in zip(inputs, places, strict=True))  # type: ignore[index]
        if kinds(batch) == wanted:
            return batch
    return inputs


def disagreement(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference of two sets of outputs, relative to the largest magnitude of ``theirs``.

    Raises:
        SlimError: The outputs differ in number or shape.
    """
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        raise SlimError(
            "could not slim the network",
            where="the output shape",
            value=[tuple(tensor.shape) for tensor in ours],
            expected=str([tuple(tensor.shape) for tensor in theirs]),
        )
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not b.is_complex():
            a, b = a.double(), b.double()
        scale = float(b.abs().max()) if b.numel() else 0.0
        gap = float((a - b).abs().max()) if b.numel() else 0.0
        # `not <=` instead of `>`: a NaN on either side is a disagreement, and so is an infinity.
        if not gap <= 0:
            share = gap / scale if 0 < scale < float("inf") else float("inf")
            worst = max(worst, share) if share == share else float("inf")
    return worst
