"""What each node of an ONNX file costs, and which channel groups it scales with. Device side: no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeprune.onnx_nodes import Node, producers
from edgeprune.placement import WITH_MACS

Basis = Literal["size_bytes", "macs", "time_s", "memory_bytes"]

_TOKEN = re.compile(r"_token_\d+$")  # onnxruntime appends it to nodes that it moves between layouts
_LAYOUT = "_nchwc"  # and this to a convolution in its blocked layout, after the name of the output


@dataclass(frozen=True)
class Axis:
    """An axis of a weight, in the slim network.

    Attributes:
        makes: It is the layer's output, not its input.
        length: Positions on it.
        widths: Channel group -> positions that a unit of it occupies.
    """

    makes: bool
    length: int
    widths: Mapping[str, float]

    def left(self, removed: Mapping[str, float]) -> float:
        """Share of the positions that stay if so many units of each group go."""
        gone = sum(width * removed.get(group, 0) for group, width in self.widths.items())
        return max(0.0, 1 - gone / self.length) if self.length else 1.0


@dataclass(frozen=True)
class Part:
    """A node with what it costs.

    Attributes:
        name: Of the node, or of a kernel that no node of the file stands for.
        layer: State-dict name of the layer that it belongs to; "" if that is not known.
        size_bytes: In the file.
        macs: Multiply-adds.
        time_s: Of its kernels.
        memory_bytes: Its weights, and the tensors that it reads and makes if these are the largest of all.
        axes: With which its cost goes: of a layer all axes of its weight, of others that of the output.
    """

    name: str
    layer: str
    size_bytes: float = 0.0
    macs: float = 0.0
    time_s: float = 0.0
    memory_bytes: float = 0.0
    axes: tuple[Axis, ...] = ()

    def left(self, basis: Basis, removed: Mapping[str, float]) -> float:
        """What it costs once so many units of each group are gone, if cost follows the weight's entries."""
        cost = float(getattr(self, basis))
        for axis in self.axes if cost else ():
            cost *= axis.left(removed)
        return cost

    def groups(self) -> set[str]:
        """Channel groups that it scales with."""
        return {group for axis in self.axes for group in axis.widths}


def make_parts(
    nodes: tuple[Node, ...],
    macs_by_node: Mapping[str, int],
    kernels: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
) -> tuple[Part, ...]:
    """Costs by node, and those of kernels by the node that they stand for.

    A kernel that fuses several nodes has one of their names, or that of a tensor that one of them makes. What
    has no weight of its own goes with the output channels of the layer before it.

    Args:
        nodes: Of the file.
        macs_by_node: As the sidecar has it.
        kernels: Of the worker's profile; none if there is no profile.
        groups: Facts as a run folder keeps them (``edgeprune.group_facts``); none if they are not known.
    """
    places = _places(groups)
    by_output = producers(nodes)
    layers = _layers(nodes, by_output, set(places))
    by_name = {node.name: node for node in nodes}
    found = [
        Part(
            node.name, layers[node.name][0], node.size_bytes, macs_by_node.get(node.name, 0),
            memory_bytes=node.size_bytes, axes=_axes(places, *layers[node.name]),
        )
        for node in nodes
    ]  # fmt: skip
    largest = max((kernel.get("tensor_bytes") or 0 for kernel in kernels), default=0)
    for kernel in kernels:
        name = _TOKEN.sub("", kernel["name"]).removesuffix(_LAYOUT)
        node_ = by_name.get(kernel["name"]) or by_name.get(name) or by_output.get(name)
        layer, own = layers[node_.name] if node_ else ("", False)
        # A fused kernel may have the name of its last node, but does the work of the layer.
        own = own or any(word in kernel["op_type"] for word in WITH_MACS)
        tensors = kernel.get("tensor_bytes") or 0
        found.append(Part(kernel["name"], layer, time_s=kernel["time_s"], axes=_axes(places, layer, own)))
        if largest and tensors == largest:
            found.append(Part(kernel["name"], layer, memory_bytes=tensors, axes=_axes(places, layer, False)))
            largest = 0
    return tuple(found)


def total(parts: Iterable[Part], basis: Basis) -> float:
    """Of all parts."""
    return math.fsum(getattr(part, basis) for part in parts)


def share(parts: Sequence[Part], basis: Basis, group: Mapping[str, Any]) -> float | None:
    """What would go if all units of a group went, of the whole; None if nothing is known of it.

    A layer counts for the group that it makes and for the one that it reads, so shares add up to more than 1.
    """
    whole = total(parts, basis)
    removed = {group["name"]: group["kept"]}
    return 1 - sum(part.left(basis, removed) for part in parts) / whole if whole else None


def _places(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Axis]]:
    """By weight, its axes that groups live on."""
    found: dict[str, dict[int, tuple[bool, int, dict[str, float]]]] = {}
    for group in groups:
        for place in group["places"]:
            axes = found.setdefault(place["tensor"], {})
            start: tuple[bool, int, dict[str, float]] = (place["role"] == "out", place["length"], {})
            axes.setdefault(place["axis"], start)[2][group["name"]] = place["width"]
    return {
        tensor: {number: Axis(*entry) for number, entry in axes.items()} for tensor, axes in found.items()
    }


def _axes(places: Mapping[str, Mapping[int, Axis]], layer: str, own: bool) -> tuple[Axis, ...]:
    axes = places.get(f"{layer}.weight", {})
    return tuple(axis for axis in axes.values() if own or axis.makes)


def _layers(
    nodes: tuple[Node, ...], by_output: Mapping[str, Node], tensors: set[str]
) -> dict[str, tuple[str, bool]]:
    """By node, the layer that it belongs to, and whether it has that layer's weight itself."""
    found: dict[str, tuple[str, bool]] = {}
    for node in nodes:  # in the graph's order: what it reads has been seen
        own = _weight(node, tensors)
        if own:
            found[node.name] = (own, True)
            continue
        before = [by_output[name] for name in node.inputs if name in by_output]
        known = [found[one.name][0] for one in before if found.get(one.name, ("",))[0]]
        found[node.name] = (known[0] if known else "", False)
    return found


def _weight(node: Node, tensors: set[str]) -> str:
    """The layer whose weight a node reads: the exporter keeps state-dict names, and appends to them."""
    for name in node.weights:
        for tensor in (name, *(one for one in tensors if name.startswith(f"{one}_"))):
            if tensor in tensors and tensor.endswith(".weight"):
                return tensor.removesuffix(".weight")
    if not node.weights or not any(word in node.op_type for word in WITH_MACS):
        return ""
    named = [name.partition(".weight")[0] for name in node.weights if ".weight" in name]
    return named[0] if named else node.name  # somebody else's file
