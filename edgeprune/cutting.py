"""Cutting tensors out of a module in place, and telling its layers their new sizes."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeprune.errors import ModelError, SlimError

Cuts = Mapping[tuple[str, int], Tensor]
"""Kept positions (int64, ascending) of each cut (state-dict key, axis)."""


@dataclass(frozen=True)
class Place:
    """A module that holds a tensor under a local name; shared tensors have several places."""

    module: nn.Module
    name: str
    is_parameter: bool


def places(model: nn.Module) -> dict[str, list[Place]]:
    """Every parameter and buffer by each of its state-dict keys, with all places that hold that tensor."""
    by_tensor: dict[int, list[Place]] = {}
    by_key: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for held, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                by_key[f"{prefix}.{name}" if prefix else name] = id(tensor)
                spots = by_tensor.setdefault(id(tensor), [])
                if not any(spot.module is module and spot.name == name for spot in spots):
                    spots.append(Place(module, name, is_parameter))
    return {key: by_tensor[number] for key, number in by_key.items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by state-dict key, shared ones under each of their keys."""
    return {key: getattr(spots[0].module, spots[0].name) for key, spots in places(model).items()}


def assign(spots: list[Place], tensor: Tensor) -> None:
    """Put a new tensor in every place of the old one."""
    old = getattr(spots[0].module, spots[0].name)
    new: Tensor = tensor
    if spots[0].is_parameter:
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
    for spot in spots:
        setattr(spot.module, spot.name, new)


def cut(model: nn.Module, cuts: Cuts) -> None:
    """Keep only the given positions of the given axes, in place.

    Args:
        model: Network on any device, the meta device included.
        cuts: Kept positions by (state-dict key, axis).
    """
    where = places(model)
    touched: dict[int, nn.Module] = {}
    for (key, axis), keep in cuts.items():
        spots = where[key]
        tensor = getattr(spots[0].module, spots[0].name).detach()
        assign(spots, tensor.index_select(axis, keep.to(tensor.device)).contiguous())
        touched |= {id(spot.module): spot.module for spot in spots}
    for module in touched.values():
        tell_sizes(module)


def tell_sizes(module: nn.Module) -> None:
    """Bring a layer's size attributes in line with its tensors, so that its repr and its forward are true."""
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        if module.transposed:
            depthwise = 1 < module.groups == module.in_channels
            module.in_channels = rows
            module.groups = rows if depthwise else module.groups
            module.out_channels = columns * module.groups
        else:
            depthwise = 1 < module.groups == module.in_channels
            multiplier = module.out_channels // module.groups
            module.out_channels = rows
            module.groups = rows // multiplier if depthwise else module.groups
            module.in_channels = columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = [module.weight, module.running_mean]
        module.num_features = next(len(vector) for vector in held if vector is not None)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def duplicate(model: nn.Module, change: Callable[[Tensor], Tensor] = torch.clone) -> nn.Module:
    """A deep copy with other tensors; what is tied stays tied.

    Args:
        model: Network; it is not changed.
        change: From the data of a tensor of ``model`` to that of the copy's. With the identity the copy
            shares all tensors: ``assign`` and ``cut`` put others in their place.

    Raises:
        ModelError: Python can not copy it.
    """
    # With the tensors that modules hold as plain attributes.
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [*tensors_of(model).values(), *(value for value in held if isinstance(value, Tensor))]
    memo: dict[int, Tensor] = {}
    for tensor in tensors:
        if id(tensor) not in memo:
            new = change(tensor.detach())
            memo[id(tensor)] = (
                nn.Parameter(new, requires_grad=tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else new
            )
    try:
        return copy.deepcopy(model, memo)
    except Exception as reason:
        raise ModelError(
            "could not copy the network",
            where="copy.deepcopy",
            value=f"refused ({first_line(reason)})",
            expected="modules that can be copied",
        ) from reason


def shared(model: nn.Module) -> nn.Module:
    """A copy of the modules that holds the tensors of ``model``."""
    return duplicate(model, lambda tensor: tensor)


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode: the arithmetic of the oracle."""
    return duplicate(
        model,
        lambda tensor: tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True),
    ).eval()


def device_of(model: nn.Module) -> torch.device:
    """Where a network is."""
    return next((tensor.device for tensor in tensors_of(model).values()), torch.device("cpu"))


def random_inputs(
    shapes: Iterable[tuple[Iterable[int], torch.dtype]], device: torch.device, *, seed: int
) -> tuple[Tensor, ...]:
    """Float64 noise where the dtype is floating-point, else zeros, which index and mask nothing wrong."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device)
        if dtype.is_floating_point
        else torch.zeros(tuple(shape), dtype=dtype, device=device)
        for shape, dtype in shapes
    )


@contextlib.contextmanager
def zeroed(model: nn.Module, columns: Mapping[tuple[str, int], Tensor]) -> Iterator[None]:
    """Within the block the given positions of weight axes are zero: their input does not count."""
    where = places(model)
    saved: list[tuple[Tensor, int, Tensor, Tensor]] = []
    with torch.no_grad():
        try:
            for (key, axis), positions in columns.items():
                weight = getattr(where[key][0].module, where[key][0].name).detach()
                positions = positions.to(weight.device)
                saved.append((weight, axis, positions, weight.index_select(axis, positions)))
                weight.index_fill_(axis, positions, 0)
            yield
        finally:
            for weight, axis, positions, values in reversed(saved):
                weight.index_copy_(axis, positions, values)


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
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


def first_line(reason: BaseException) -> str:
    """First line of an exception's text."""
    return (str(reason).strip() or type(reason).__name__).partition("\n")[0]
