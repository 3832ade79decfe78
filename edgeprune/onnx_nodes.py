"""Nodes of an ONNX file and the bytes that each one brings. Device side: no torch, no onnx."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import ArtifactError
from edgeprune.protobuf import Bytes, fields

# Field numbers of the messages in onnx.proto.
MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALIZER = 7, 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR = 1, 2, 3, 4
TENSOR_NAME, TENSOR_EXTERNAL, ENTRY_KEY, ENTRY_VALUE = 8, 13, 1, 2


@dataclass(frozen=True)
class Node:
    """One node of a graph that computes something from its inputs.

    Nodes that only prepare constants (a weight's DequantizeLinear) are part of the first node that reads
    what they prepare.

    Attributes:
        name: Its name; the first output's if it has none.
        op_type: Operator.
        inputs: Names of the tensors that it reads, constants left out.
        outputs: Names of the tensors that it makes.
        weights: Names of the initialisers that it reads, at any remove; one that several nodes read is the
            first one's.
        size_bytes: Of the node and these initialisers, in the file and its external data.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    size_bytes: int


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Nodes of an ONNX file's main graph, in its order.

    Raises:
        ArtifactError: It is no ONNX file.

    Example:
        >>> [node.op_type for node in read_nodes(Path("slim.onnx"))][:2]  # doctest: +SKIP
        ['Conv', 'Relu']
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _nodes(content)
    except (OSError, ValueError, IndexError) as reason:
        raise ArtifactError(
            "could not read the nodes",
            where=str(path),
            value=f"no protobuf message ({reason})",
            expected="an .onnx file",
        ) from None


def _nodes(content: Bytes) -> tuple[Node, ...]:
    # By the name of a constant: its bytes, and the initialisers that it was made of.
    constants: dict[str, tuple[int, tuple[str, ...]]] = {}
    raw: list[tuple[dict[int, list[str]], int]] = []
    for number, start, end in fields(content, 0, len(content)):
        if number != MODEL_GRAPH:
            continue
        for part, first, last in fields(content, start, end):
            if part == GRAPH_INITIALIZER:
                name, size = _initializer(content, first, last)
                constants[name] = (size, (name,))
            elif part == GRAPH_NODE:
                raw.append((_texts(content, first, last), last - first))
    found = []
    for texts, size in raw:
        inputs, outputs = ([name for name in texts[key] if name] for key in (NODE_INPUT, NODE_OUTPUT))
        kind = (texts[NODE_OPERATOR] or [""])[0]
        brought = [constants[name] for name in inputs if name in constants]
        total = size + sum(bytes_ for bytes_, _ in brought)
        weights = tuple(name for _, names in brought for name in names)
        for name in inputs:
            if name in constants:  # whoever reads it next brings no bytes for it
                constants[name] = (0, constants[name][1])
        if all(name in constants for name in inputs):
            for number, name in enumerate(outputs):
                constants[name] = (0 if number else total, weights)
            continue
        name = (texts[NODE_NAME] or outputs or [""])[0]
        flowing = tuple(name for name in inputs if name not in constants)
        found.append(Node(name, kind, flowing, tuple(outputs), weights, total))
    return tuple(found)


def _texts(content: Bytes, start: int, end: int) -> dict[int, list[str]]:
    wanted: dict[int, list[str]] = {n: [] for n in (NODE_INPUT, NODE_OUTPUT, NODE_NAME, NODE_OPERATOR)}
    for number, first, last in fields(content, start, end):
        if number in wanted:
            wanted[number].append(content[first:last].decode("utf-8", "replace"))
    return wanted


def _initializer(content: Bytes, start: int, end: int) -> tuple[str, int]:
    """Its name and its bytes, those in a file of external data too."""
    name, size = "", end - start
    for number, first, last in fields(content, start, end):
        if number == TENSOR_NAME:
            name = content[first:last].decode("utf-8", "replace")
        elif number == TENSOR_EXTERNAL:
            entry = {key: content[a:b] for key, a, b in fields(content, first, last)}
            if entry.get(ENTRY_KEY) == b"length":
                size += int(entry.get(ENTRY_VALUE, b"0"))
    return name, size


def producers(nodes: tuple[Node, ...]) -> dict[str, Node]:
    """The node that makes each tensor, by the tensor's name."""
    return {output: node for node in nodes for output in node.outputs}


def bytes_by_operator(nodes: tuple[Node, ...]) -> Counter[str]:
    """Bytes of all nodes of each operator."""
    found: Counter[str] = Counter()
    for node in nodes:
        found[node.op_type] += node.size_bytes
    return found
