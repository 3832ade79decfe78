"""What every rule needs: names and reasons, per-channel labels, and what to do without a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.labels import ALWAYS, FIXED, FREE, VARIES, Flow, Ledger, Parameter, narrowed, varies

Rule = Callable[[Ledger, Node, Sequence[Any], dict[str, Any]], Any]


def module_of(node: Node) -> str:
    """Name of the module whose forward pass holds the node; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [str(entry[0]) for entry in stack.values() if entry[0]]
    return path[-1].removeprefix("L['self'].") if path else ""


def operator_name(node: Node) -> str:
    """``aten.relu_.default`` -> ``relu``: an in-place operator moves labels as its functional twin does."""
    name = str(getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.target))
    return name if name.startswith("_") else name.rstrip("_")


def because(node: Node, text: str) -> str:
    """Reason text that names operator and place."""
    where = module_of(node) or "the network's forward"
    return f"{operator_name(node)} in {where} {text}"


def result_shape(node: Node) -> torch.Size:
    """Shape of the node's (first) result."""
    value = node.meta["val"]
    return torch.Size((value[0] if isinstance(value, (tuple, list)) else value).shape)


def as_flow(ledger: Ledger, value: Flow | Parameter | Tensor) -> Flow:
    """Any operand as a flow.

    A parameter that is a vector holds one unit per element; any other parameter, and a tensor that the
    forward pass makes of nothing, has a fixed size.
    """
    if isinstance(value, Flow):
        return value
    if isinstance(value, Tensor):
        return fixed(value.shape)
    axes = [axis for axis, size in enumerate(value.shape) if size > 1]
    shape = [1] * len(value.shape)
    if len(axes) == 1:
        shape[axes[0]] = -1
        site = ledger.site(value.name, axes[0], value.shape[axes[0]], "out")
        return Flow(site.unit.view(shape), torch.full(value.shape, ALWAYS))
    if axes:
        ledger.fixed_tensors.setdefault(value.name, "a weight that is used as a number")
    kind, constant = (FIXED, VARIES) if axes else (FREE, ALWAYS)
    return Flow(torch.full(value.shape, kind), torch.full(value.shape, constant))


def fixed(shape: Iterable[int], constant: int = VARIES) -> Flow:
    """A flow without units."""
    shape = tuple(shape)
    return Flow(torch.full((), FIXED).expand(shape), torch.full((), constant).expand(shape))


def per_channel(ledger: Ledger, node: Node, flow: Flow, axis: int) -> tuple[Tensor, Tensor]:
    """Labels and constant sets (C,) of a channel axis; units that share a channel are tied."""
    units = narrowed(flow.unit.movedim(axis, 0))[0].flatten(1)
    highest = units.amax(1)
    if varies(units, 1):
        ledger.tie_along(units, 1, because(node, "reads several units as one channel"))
    constants = narrowed(flow.constant.movedim(axis, 0))[0].flatten(1)
    same = (constants == constants[:, :1]).all(1)
    length = flow.unit.shape[axis]
    unit = highest.clamp(min=FIXED).expand(length)
    return unit, torch.where(same, constants[:, 0], VARIES).expand(length)


def from_channels(unit: Tensor, constant: Tensor, shape: torch.Size, axis: int) -> Flow:
    """Spread per-channel labels over an activation of ``shape``, without storage."""
    view = [1] * len(shape)
    view[axis] = -1
    return Flow(unit.view(view).expand(shape), constant.view(view).expand(shape))


def unknown(
    ledger: Ledger, node: Node, args: Any, kwargs: Any, text: str = "is an operator without a rule"
) -> Any:
    """Freeze what an operator touches; its results hold no units."""
    for leaf in tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Flow)):
        if isinstance(leaf, Flow):
            ledger.freeze(leaf.unit, because(node, text))
        elif isinstance(leaf, Parameter):
            ledger.fixed_tensors.setdefault(leaf.name, because(node, text))
    return tree_map(
        lambda value: fixed(value.shape) if isinstance(value, Tensor) else value, node.meta.get("val")
    )
