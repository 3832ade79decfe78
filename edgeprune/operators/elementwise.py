"""Rules of operators that work element by element, window by window, or over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgeprune.labels import ALWAYS, FREE, VARIES, Flow, Ledger, Parameter, compact, narrowed, varies
from edgeprune.operators.common import (
    as_flow,
    because,
    fixed,
    from_channels,
    operator_name,
    per_channel,
    result_shape,
    unknown,
)

SIZE_FREE = frozenset(
    {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "softmax", "log_softmax", "norm"}
    | {"linalg_vector_norm", "logsumexp"}
)
"""Reductions that mean the same over fewer channels."""


def unary(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:  # noqa: ARG001
    """Works on each number by itself."""
    return as_flow(ledger, args[0])


def prelu(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    """PReLU: its slopes are one per channel, or one for all."""
    x, weight = as_flow(ledger, args[0]), args[1]
    if not isinstance(weight, Parameter):
        return unknown(ledger, node, args, {}, "uses slopes that are computed in the forward pass")
    if weight.shape[0] > 1:
        unit, _ = per_channel(ledger, node, x, 1)
        ledger.tie(
            ledger.site(weight.name, 0, weight.shape[0], "out").unit,
            unit,
            because(node, "reads a fixed channel"),
        )
    return x


def combine(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:
    """Element-wise operator of several operands: what stands at one place belongs together."""
    shape = result_shape(node)
    operands = tree_leaves((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, (Flow, Parameter)))
    fixed_size = [operand for operand in operands if isinstance(operand, Tensor) and operand.numel() > 1]
    fixed_size += [
        torch.empty(p.shape) for p in operands if isinstance(p, Parameter) and sum(s > 1 for s in p.shape) > 1
    ]
    flows = [
        as_flow(ledger, operand)
        for operand in operands
        if isinstance(operand, Flow)
        or (isinstance(operand, Parameter) and sum(s > 1 for s in operand.shape) == 1)
    ]
    axes = {axis for flow in flows for axis in range(len(shape)) if varies(flow.unit.expand(shape), axis)}
    for tensor in fixed_size:
        offset = len(shape) - tensor.dim()
        if any(tensor.shape[axis - offset] > 1 for axis in axes if axis >= offset):
            for flow in flows:
                ledger.freeze(flow.unit, because(node, "combines it with a tensor of hard-coded size"))
    if not flows:
        return fixed(shape)
    together = meet(ledger, node, flows, shape)
    return Flow(together.unit, torch.full((), VARIES).expand(shape)) if fixed_size else together


def meet(ledger: Ledger, node: Node, flows: Sequence[Flow], shape: torch.Size) -> Flow:
    """What stands at one place, after broadcasting to ``shape``, belongs together."""
    spread = [(flow, flow.unit.expand(shape), flow.constant.expand(shape)) for flow in flows]
    axes = {axis for _, unit, _ in spread for axis in range(len(shape)) if varies(unit, axis)}
    unit = torch.full((), FREE).expand(shape)
    constant = torch.full((), ALWAYS).expand(shape)
    for flow, labels, constants in spread:
        constant = ledger.join_constants(constant, constants)
        offset = len(shape) - flow.unit.dim()
        broadcast = [axis for axis in axes if axis < offset or flow.unit.shape[axis - offset] == 1]
        if any(shape[axis] > 1 for axis in broadcast):
            ledger.freeze(labels, because(node, "spreads this channel over others"))
            constant = torch.full((), VARIES).expand(shape)  # over space its values may differ
            continue
        ledger.tie(unit, labels, because(node, "adds or multiplies a fixed channel"))
        unit = highest(unit, labels)
    return Flow(compact(unit), compact(constant))


def highest(a: Tensor, b: Tensor) -> Tensor:
    """The larger label at each place, without storage where both are expanded."""
    small = narrowed(a, b)
    return torch.maximum(*small).expand(a.shape)


def reduction(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Mean, sum, max, softmax ... over axes: what is computed from several units ties them."""
    x = as_flow(ledger, args[0])
    place = 2 if operator_name(node).endswith("norm") else 1
    dims = args[place] if len(args) > place else kwargs.get("dim")
    if any(isinstance(other, (Flow, Tensor)) for other in args[1:]):
        return combine(ledger, node, args, kwargs)  # max(x, y), min(x, y)
    if dims is None or isinstance(dims, (bool, torch.dtype)):
        dims = []  # over everything
    dims = [dims] if isinstance(dims, int) else list(dims)
    axes = [dim % x.unit.dim() for dim in dims] or list(range(x.unit.dim()))
    text = because(node, "reduces over channels")
    mixed = [axis for axis in axes if varies(x.unit, axis)]
    loose = not ledger.exact and operator_name(node) in SIZE_FREE
    for axis in mixed:
        if loose:
            ledger.mark(x.unit, text)
        else:
            ledger.tie_along(x.unit, axis, text)
    shape = result_shape(node)
    if shape == x.unit.shape:
        flow = Flow(x.unit, torch.full((), VARIES).expand(shape))
    else:
        unit, constant = x.unit, x.constant
        for axis in axes:
            first = constant.narrow(axis, 0, 1)
            same = (narrowed(constant)[0] == narrowed(first)[0]).all(axis, keepdim=True)
            constant = torch.where(same, first, VARIES)
            unit = unit.amax(axis, keepdim=True)
        if mixed and loose:  # the result belongs to all units, and outlives each of them
            unit, constant = torch.full_like(unit, FREE), torch.full_like(constant, VARIES)
        flow = Flow(unit.reshape(shape), constant.reshape(shape))
    value = node.meta["val"]
    return [flow] * len(value) if isinstance(value, (tuple, list)) else flow


def pool(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Pooling and interpolation: window by window inside each channel."""
    x = as_flow(ledger, args[0])
    shape = result_shape(node)
    axis = 1 if x.unit.dim() > 2 else 0
    unit, constant = per_channel(ledger, node, x, axis)
    if operator_name(node).startswith("avg_pool"):
        padding = args[3] if len(args) > 3 else kwargs.get("padding", 0)
        counted = args[5] if len(args) > 5 else kwargs.get("count_include_pad", True)
        if any(tree_leaves(padding)) and counted:
            constant = torch.full_like(constant, VARIES)  # the border averages zeros in
    flow = from_channels(unit, constant, shape, axis)
    value = node.meta["val"]
    return [flow] * len(value) if isinstance(value, (tuple, list)) else flow
