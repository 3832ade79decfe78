"""Rules of layers with weights: where units end and begin, and norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgeprune.labels import VARIES, Flow, Ledger, Parameter, varies
from edgeprune.operators.common import (
    Rule,
    as_flow,
    because,
    from_channels,
    module_of,
    operator_name,
    per_channel,
    result_shape,
    unknown,
)
from edgeprune.operators.movement import take


def next_running_mean(ledger: Ledger, node: Node) -> str | None:
    """State-dict key of the running mean of the batch norm that alone reads this node; else None."""
    users = list(node.users)
    if len(users) == 1 and operator_name(users[0]) == "batch_norm" and users[0].args[0] is node:
        mean = users[0].args[3]
        return ledger.names.get(mean.name) if isinstance(mean, Node) and not users[0].args[5] else None
    return None


def layer(
    ledger: Ledger,
    node: Node,
    x: Flow,
    weight: Any,
    bias: Any,
    *,
    axis: int,
    groups: int,
    transposed: bool,
    padded: bool,
) -> Flow:
    """Convolution or linear layer: ends the units of its input, starts those of its output."""
    if not isinstance(weight, Parameter):
        text = "uses a weight that is computed in the forward pass"
        channels = result_shape(node)[axis]
        ledger.unlabelled.append((module_of(node) or node.name, channels, because(node, text)))
        return unknown(ledger, node, (x, weight, bias), {}, text)  # type: ignore[no-any-return]
    unit, constant = per_channel(ledger, node, x, axis)
    in_length, out_length = len(unit), result_shape(node)[axis]
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    fixed = because(node, "reads a fixed channel")
    if 1 < groups == in_length:
        # Depthwise: each input channel owns the same number of output channels, which are that channel.
        rows = ledger.site(weight.name, 0, weight.shape[0], "out").unit
        ledger.tie(rows, unit.repeat_interleave(len(rows) // groups), fixed)
        out_unit = unit.repeat_interleave(out_length // groups)
        out_constant = constant.repeat_interleave(out_length // groups)
        if padded:
            out_constant = torch.full_like(out_constant, VARIES)
    else:
        read = ledger.site(weight.name, in_axis, weight.shape[in_axis], "in", padded=padded)
        by_group = unit.view(groups, -1)
        ledger.tie(read.unit.view(groups if transposed else 1, -1), by_group, fixed)
        ledger.tie_along(by_group, 0, fixed)
        read.constant.append(constant)
        read.mean_after = next_running_mean(ledger, node)
        rows = ledger.site(weight.name, out_axis, weight.shape[out_axis], "out", produces=True).unit
        # Equal places of the convolution's groups go together.
        out_unit = rows.repeat(groups) if transposed else rows
        ledger.tie_along(out_unit.view(groups, -1), 0, fixed)
        out_constant = torch.full((out_length,), VARIES)
    if isinstance(bias, Parameter):
        ledger.tie(ledger.site(bias.name, 0, out_length, "out").unit, out_unit, fixed)
    elif bias is not None:
        ledger.freeze(out_unit, because(node, "adds a bias that is computed in the forward pass"))
    return from_channels(out_unit, out_constant, result_shape(node), axis)


def convolution(dimensions: int, transposed: bool = False) -> Rule:
    """Rule of conv1d/2d/3d or of their transposed kinds."""

    def rule(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:
        names = ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = {"bias": None, "padding": 0, "groups": 1} | dict(zip(names, args, strict=False)) | kwargs
        x, weight, padding = as_flow(ledger, given["input"]), given["weight"], given["padding"]
        if padding == "same":
            padded = isinstance(weight, Parameter) and max(weight.shape[2:]) > 1
        else:
            padded = padding != "valid" and any(tree_leaves(padding))
        axis, groups = x.unit.dim() - dimensions - 1, given["groups"]
        padded = padded or transposed  # fewer taps overlap at a transposed border
        return layer(
            ledger, node, x, weight, given["bias"],
            axis=axis, groups=groups, transposed=transposed, padded=padded,
        )  # fmt: skip

    return rule


def linear(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:
    """Linear layer over the last axis."""
    weight, *rest = args[1:]
    x, bias = as_flow(ledger, args[0]), rest[0] if rest else kwargs.get("bias")
    axis = x.unit.dim() - 1
    return layer(ledger, node, x, weight, bias, groups=1, transposed=False, padded=False, axis=axis)


def channel_norm(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:
    """Batch norm and instance norm: each channel on its own."""
    x = as_flow(ledger, args[0])
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = {**dict(zip(names, args[1:5], strict=False)), **{n: kwargs[n] for n in names if n in kwargs}}
    unit, _ = per_channel(ledger, node, x, 1)
    for kind, vector in vectors.items():
        if isinstance(vector, Parameter):
            ledger.calls[vector.name] += 1
            site = ledger.site(vector.name, 0, vector.shape[0], "out", norm=kind)
            ledger.tie(site.unit, unit, because(node, "normalises a fixed channel"))
    weight = vectors.get("weight")
    constant = torch.full_like(unit, VARIES)
    if isinstance(weight, Parameter):
        constant = torch.tensor(
            [ledger.constant_number(frozenset({(weight.name, i)})) for i in range(len(unit))]
        )
    constant_flow = from_channels(unit, constant, result_shape(node), 1).constant
    return Flow(x.unit, constant_flow)


def mixing_norm(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Flow:
    """Layer and group norm: their statistics mix channels, so cutting one changes the others."""
    x = as_flow(ledger, args[0])
    layer_wise = operator_name(node) != "group_norm"
    last = len(args[1]) if layer_wise else x.unit.dim() - 1
    mixed = [axis for axis in range(x.unit.dim() - last, x.unit.dim()) if varies(x.unit, axis)]
    vectors = [value for value in (*args[2:], *kwargs.values()) if isinstance(value, Parameter)]
    text = because(node, "computes statistics over channels")
    axis = x.unit.dim() - 1 if layer_wise else 1
    able = not ledger.exact and mixed in ([], [axis]) and all(len(vector.shape) == 1 for vector in vectors)
    if able:
        unit, _ = per_channel(ledger, node, x, axis)
        for vector in vectors:
            site = ledger.site(vector.name, 0, vector.shape[0], "out")
            ledger.tie(site.unit, unit, because(node, "normalises a fixed channel"))
        if not layer_wise:
            ledger.tie_along(unit.view(args[1], -1), 0, because(node, "has groups of one size"))
        ledger.mark(x.unit, text)
    elif mixed or vectors:
        ledger.freeze(x.unit, text)
    return Flow(x.unit, torch.full((), VARIES).expand(x.unit.shape))


def index_select(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A norm's channel select starts units of its own; its stream stays, or its numbers would be others."""
    if len(args) < 3 or not isinstance(args[2], Parameter):
        return take(ledger, node, args, kwargs)
    ledger.freeze(as_flow(ledger, args[0]).unit, f"is read by the channel select of {module_of(node)}")
    site = ledger.site(args[2].name, 0, args[2].shape[0], "out", produces=True)
    return from_channels(site.unit, torch.full_like(site.unit, VARIES), result_shape(node), 1)
