"""Cutting tensors out of a module in place, and telling its layers their new sizes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError

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
    seen: set[tuple[int, int, str]] = set()
    by_key: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for held, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                by_key[f"{prefix}.{name}" if prefix else name] = id(tensor)
                spots = by_tensor.setdefault(id(tensor), [])
                if (id(tensor), id(module), name) not in seen:
                    seen.add((id(tensor), id(module), name))
                    spots.append(Place(module, name, is_parameter))
    return {key: by_tensor[number] for key, number in by_key.items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by state-dict key, shared ones under each of their keys."""
    return {key: getattr(spots[0].module, spots[0].name) for key, spots in places(model).items()}


def names_of(model: nn.Module) -> dict[str, str]:
    """By state-dict key, the key that stands for its tensor: of a shared one's several keys the first."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(tensor), key) for key, tensor in tensors_of(model).items()}


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
    widths = {
        module: (module.in_features, module.out_features)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    }
    for (key, axis), keep in cuts.items():
        spots = where[key]
        tensor = getattr(spots[0].module, spots[0].name).detach()
        assign(spots, chosen(tensor, axis, keep))
        touched |= {id(spot.module): spot.module for spot in spots}
    for module in touched.values():
        tell_sizes(module)
    for module in model.modules():
        tell_heads(module, widths)


def chosen(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    """The given positions of an axis; nothing is stored for an axis that is expanded."""
    if tensor.stride(axis) == 0:
        return tensor.narrow(axis, 0, len(keep))
    return tensor.index_select(axis, keep.to(tensor.device)).contiguous()


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
        held = [module.weight, module.running_mean, getattr(module, "channel_select", None)]
        module.num_features = next(len(vector) for vector in held if vector is not None)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


HEAD_COUNTS = ("num_heads", "n_heads", "heads", "n_head", "num_attention_heads")
"""What attention modules call their number of heads."""

HEAD_WIDTHS = ("attn_dim", "inner_dim", "all_head_dim")
"""What they call number times width of their heads."""


def tell_heads(module: nn.Module, widths: Mapping[nn.Linear, tuple[int, int]]) -> None:
    """Tell an attention module how many heads are left, if the layers around them lost whole heads.

    Args:
        module: Any module; only one that states the width and the number of its heads is changed.
        widths: Input and output features of the linear layers before the cut.
    """
    stated = vars(module)
    width = stated.get("head_dim")
    counts = [name for name in HEAD_COUNTS if type(stated.get(name)) is int]
    if type(width) is not int or not counts:
        return
    total = stated[counts[0]] * width
    layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    # One writes the heads (with or without queries, keys and values in one), a later one reads them.
    for first, second in itertools.combinations(layers, 2):
        parts, rest = divmod(widths[first][1], total)
        left = second.in_features
        if rest or widths[second][0] != total or first.out_features != parts * left or left % width:
            continue
        stated.update(dict.fromkeys(counts, left // width))
        stated.update({name: left for name in HEAD_WIDTHS if stated.get(name) == total})
        return


def duplicate(
    model: nn.Module,
    change: Callable[[Tensor], Tensor] = torch.clone,
    plain: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A deep copy with other tensors; what is tied stays tied.

    Args:
        model: Network; it is not changed.
        change: From the data of a tensor of ``model`` to that of the copy's. With the identity the copy
            shares all tensors: ``assign`` and ``cut`` put others in their place.
        plain: As ``change``, for tensors that modules hold as plain attributes; default: ``change``.

    Raises:
        ModelError: Python can not copy it.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    tensors = [(tensor, change) for tensor in tensors_of(model).values()]
    tensors += [(value, plain or change) for value in held if isinstance(value, Tensor)]
    memo: dict[int, Tensor] = {}
    for tensor, changed in tensors:
        if id(tensor) not in memo:
            new = changed(tensor.detach())
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


def device_of(model: nn.Module) -> torch.device:
    """Where a network is."""
    return next((tensor.device for tensor in tensors_of(model).values()), torch.device("cpu"))


def first_line(reason: BaseException) -> str:
    """First line of an exception's text."""
    return (str(reason).strip() or type(reason).__name__).partition("\n")[0]
