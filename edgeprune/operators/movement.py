"""Rules of operators that only move numbers: they are run as they are, on labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.labels import (
    ALWAYS,
    FIXED,
    FREE,
    VARIES,
    Choice,
    Flow,
    Ledger,
    Parameter,
    narrowed,
    units_in,
    varies,
)
from edgeprune.operators.common import as_flow, because, fixed, module_of, operator_name, result_shape


def move(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run the operator itself, once on the labels and once on the constant sets."""

    def run(part: str) -> Any:
        def pick(value: Any) -> Any:
            if isinstance(value, (Flow, Parameter)):
                return getattr(as_flow(ledger, value), part)
            return value

        is_leaf = lambda value: isinstance(value, (Flow, Parameter))  # noqa: E731
        moved_args, moved_kwargs = tree_map(pick, (list(args), kwargs), is_leaf=is_leaf)
        return call_like(node)(*moved_args, **moved_kwargs)

    units, constants = run("unit"), run("constant")
    if isinstance(units, Tensor):
        return Flow(units, constants)
    return [Flow(unit, constant) for unit, constant in zip(units, constants, strict=True)]


def call_like(node: Node) -> Callable[..., Any]:
    """The node's operator, able to run on expanded integer tensors."""
    name = operator_name(node)
    if name in ("view", "_unsafe_view"):
        return torch.Tensor.reshape
    if name in ("view_as", "reshape_as"):
        return lambda x, other: x.reshape(other.shape)
    overload = getattr(node.target, "_overloadname", "default")
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, overload) if overload in packet.overloads() else packet  # type: ignore[no-any-return]


def choose(ledger: Ledger, node: Node, flow: Flow, policies: Sequence[Callable[[], None]], text: str) -> None:
    """Offer policies for a node that cuts labelled axes by a size, and follow the one in force."""
    code = f"{operator_name(node)} {node.args[1:]} at {node.stack_trace}" if node.stack_trace else None
    ledger.choices[node.name] = Choice(
        units_in(flow.unit), 1 + len(policies), because(node, text), module_of(node), code
    )
    number = number_of(ledger, node)
    if number:
        policies[number - 1]()


def number_of(ledger: Ledger, node: Node) -> int:
    """The policy in force."""
    return ledger.policy.get(node.name, 0)


def reshape(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """View, reshape, unflatten, expand ...: the sizes may be hard-coded."""
    moved = move(ledger, node, args, kwargs)
    before = as_flow(ledger, args[0]).unit
    axes = [axis for axis in range(moved.unit.dim()) if varies(moved.unit, axis)]
    if axes and before.shape != moved.unit.shape:
        text = "cuts channels by a size that the forward pass fixes"
        # An axis of channels that becomes several must keep dividing: tie along one of them, the shortest
        # first, since that leaves most units.
        axes = sorted(axes, key=lambda axis: moved.unit.shape[axis]) if len(axes) > 1 else []
        ties = [partial(ledger.tie_along, moved.unit, axis, because(node, text)) for axis in axes]
        choose(ledger, node, moved, ties, text)
    return moved


def split(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Chunk, split, unbind: equal pieces stay equal when equal places go together."""
    pieces: list[Flow] = move(ledger, node, args, kwargs)
    flow = as_flow(ledger, args[0])
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % flow.unit.dim()
    if operator_name(node) == "unbind":
        axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % flow.unit.dim()
    if len(pieces) > 1 and varies(flow.unit, axis):
        text = "cuts channels into pieces of sizes that the forward pass fixes"

        def tie() -> None:
            stacked = torch.stack(narrowed(*(piece.unit for piece in pieces)))
            ledger.tie_along(stacked, 0, because(node, text))

        equal = len({piece.unit.shape for piece in pieces}) == 1
        stay = partial(ledger.freeze, flow.unit, because(node, text))
        choose(ledger, node, flow, [tie if equal else stay], text)
    return pieces


def take(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Slice, select, index, roll: positions may be hard-coded."""
    flow = as_flow(ledger, args[0])
    moved = move(ledger, node, args, kwargs)
    if moved.unit.shape == flow.unit.shape and bool((moved.unit == flow.unit).all()):
        return moved
    text = "takes channels at positions that the forward pass fixes"
    axes = [axis for axis in range(flow.unit.dim()) if varies(flow.unit, axis)]
    reason = because(node, text)
    if operator_name(node) == "index":
        if axes:
            choose(ledger, node, flow, [partial(ledger.freeze, flow.unit, reason)], text)
        return moved
    if operator_name(node) == "roll":
        if axes:
            freeze_wrapped(ledger, flow, args, reason)
            choose(ledger, node, flow, [partial(ledger.freeze, flow.unit, reason)], text)
        return moved
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % flow.unit.dim()
    if axis not in axes:
        return moved
    places = torch.arange(flow.unit.shape[axis])
    taken = call_like(node)(places, 0, *args[2:], **{k: v for k, v in kwargs.items() if k != "dim"}).reshape(
        -1
    )
    policies = taking(ledger, flow, axis, taken, reason)
    if len(taken) > 1 and int(taken[1] - taken[0]) > 1 and not number_of(ledger, node):
        policies[0]()  # a stride means whole runs, or nothing up to its end: without either it is never right
    choose(ledger, node, flow, policies, text)
    return moved


def freeze_wrapped(ledger: Ledger, flow: Flow, args: Sequence[Any], reason: str) -> None:
    """What ``roll`` moves around the end of an axis stays, so that it still moves the same units there."""
    shifts, axes = ([value] if isinstance(value, int) else value for value in (args[1], (*args, ())[2]))
    if not axes:  # rolled as one flat array
        ledger.freeze(flow.unit, reason)
    for shift, axis in zip(shifts, axes, strict=False):
        if varies(flow.unit, axis):
            length = flow.unit.shape[axis]
            count = min(abs(shift), length)
            ledger.freeze(flow.unit.narrow(axis, length - count if shift > 0 else 0, count), reason)


def taking(ledger: Ledger, flow: Flow, axis: int, taken: Tensor, reason: str) -> list[Callable[[], None]]:
    """Policies for taking positions: as one of several equal pieces; counted from the start; from the end."""
    length, part = flow.unit.shape[axis], len(taken)

    def tie(along: int, *sizes: int) -> None:
        ledger.tie_along(flow.unit.unflatten(axis, sizes), along, reason)  # type: ignore[no-untyped-call]

    def freeze(first: int, end: int) -> None:
        ledger.freeze(flow.unit.narrow(axis, first, end - first), reason)

    if not part:
        return [partial(freeze, 0, length)]
    first, end = int(taken.min()), int(taken.max()) + 1
    policies: list[Callable[[], None]] = []
    if 1 < part < length and length % part == 0:
        pieces = length // part
        strided = int(taken[1] - taken[0]) == pieces
        policies.append(partial(tie, axis + 1, part, pieces) if strided else partial(tie, axis, pieces, part))
    # What reaches to the other end of the axis may become shorter there.
    policies.append(partial(freeze, 0, end if end < length else first))
    policies.append(partial(freeze, first if first else end, length))
    return policies


def like(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """zeros_like ...: a constant that has the width of its model, channel by channel."""
    del node, kwargs
    x = as_flow(ledger, args[0])
    return Flow(x.unit, torch.full((), ALWAYS).expand(x.unit.shape))


def made(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """new_zeros ...: a constant of the size that the forward pass states."""
    del ledger, args, kwargs
    return fixed(result_shape(node), ALWAYS)


def join(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Concatenation and stack."""
    pieces = [as_flow(ledger, piece) for piece in args[0]]
    moved = move(ledger, node, [pieces, *args[1:]], kwargs)
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % moved.unit.dim()
    if not varies(moved.unit, axis):  # one channel is made of several pieces: each may hold another constant
        return Flow(moved.unit, torch.full((), VARIES).expand(moved.unit.shape))
    return moved


def pad(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Padding: over space it belongs to its channel, over channels it is a fixed size."""
    x = as_flow(ledger, args[0])
    amounts = list(args[1] if len(args) > 1 else kwargs["pad"])
    mode = args[2] if len(args) > 2 and isinstance(args[2], str) else kwargs.get("mode")
    if operator_name(node) == "constant_pad_nd" or mode is None:
        mode = "constant"
    unit, constant = x.unit, x.constant
    zeros = tree_leaves([args[2:], kwargs.get("value")]) in ([], [None]) or 0 in args[2:]
    for place in range(len(amounts) // 2):
        axis, sizes = unit.dim() - 1 - place, amounts[2 * place : 2 * place + 2]
        if not any(sizes):
            continue
        if mode != "constant":
            if varies(unit, axis):
                ledger.freeze(unit, because(node, "mirrors channels"))
            shape = list(unit.shape)
            shape[axis] += sum(sizes)
            unit, constant = (part.amax(axis, keepdim=True).expand(shape) for part in (unit, constant))
            continue
        over_channels = varies(unit, axis)
        fill = [0, 0] * place + sizes
        unit = torch.constant_pad_nd(unit, fill, FIXED if over_channels else FREE)
        constant = torch.constant_pad_nd(constant, fill, ALWAYS if over_channels and zeros else VARIES)
    return Flow(unit, constant)


def channel_shuffle(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Channel shuffle: equal places of the groups go together."""
    x, groups = as_flow(ledger, args[0]), args[1]
    by_group = x.unit.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
    ledger.tie_along(by_group, 1, because(node, "shuffles channels of equal groups"))
    return move(ledger, node, args, kwargs)


def glu(ledger: Ledger, node: Node, args: Any, kwargs: dict[str, Any]) -> Any:
    """Gated linear unit: the second half of the channels gates the first."""
    x, axis = as_flow(ledger, args[0]), args[1] if len(args) > 1 else kwargs.get("dim", -1)
    first, second = x.unit.chunk(2, axis)
    ledger.tie(first, second, because(node, "gates a fixed channel"))
    return Flow(first, torch.full((), VARIES).expand(first.shape))
