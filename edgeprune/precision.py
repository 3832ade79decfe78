"""The precision of an ONNX file, told by the file itself. Device side: no torch, no onnx."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from typing import Any

from edgeprune.artifact import Artifact
from edgeprune.errors import ArtifactError
from edgeprune.target import Runtime

# Field numbers of the messages in onnx.proto.
MODEL_GRAPH, GRAPH_NODE, GRAPH_INITIALIZER, NODE_OPERATOR, TENSOR_TYPE = 7, 1, 5, 4, 2
FLOAT16 = 10
INTEGER_OPERATORS = (b"QuantizeLinear", b"DequantizeLinear", b"QLinear", b"ConvInteger", b"MatMulInteger")
VARINT, LENGTH = 0, 2  # wire types
FIXED_BYTES = {1: 8, 5: 4}

Bytes = bytes | mmap.mmap


def precision_of(artifact: Artifact) -> str | None:
    """``"int8"`` if it has quantized nodes, ``"fp16"`` if it has half-precision weights, else ``"fp32"``.

    A file of another format (ORT) has what its sidecar says; without one, or if it is broken, None.

    Example:
        >>> precision_of(load_artifact("slim.int8.onnx"))  # doctest: +SKIP
        'int8'
    """
    if artifact.path.suffix == ".ort":
        return note_of(artifact).get("name", "fp32" if artifact.provenance else None)
    try:
        with (
            artifact.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _precision(content)
    except (OSError, ValueError, IndexError):
        return None


def note_of(artifact: Artifact) -> dict[str, Any]:
    """What the sidecar says on how the file came to another precision; empty if nothing."""
    note = artifact.provenance.get("precision")
    return note if isinstance(note, dict) else {}


def fp32_accuracy(artifact: Artifact, fact: str = "accuracy") -> dict[str, Any]:
    """One of the ACCURACIES of the float32 file that a file was made of; its own if it is float32 itself."""
    if "precision" not in artifact.provenance:
        own: dict[str, Any] = getattr(artifact, fact)
        return own
    source = note_of(artifact).get("source")
    accuracy = source.get(fact) if isinstance(source, dict) else None
    return accuracy if isinstance(accuracy, dict) else {}


def precision_notes(artifacts: Sequence[Artifact], runtime: Runtime) -> list[str]:
    """Refuse a file that is not what a target measures; what is only worth knowing comes back as notes.

    Args:
        artifacts: The file to measure and, if there is one, its baseline.
        runtime: The target's.

    Raises:
        ArtifactError: The target asks for fp16 or int8 and the file is another, or an int8 file was made for
            another provider: its integers, and so its accuracy, hold for that one alone.
    """
    problem, wanted = "could not measure in this precision", runtime.precision
    found = [precision_of(one) for one in artifacts]
    if wanted not in ("fp32", found[0]):
        raise ArtifactError(
            problem,
            where=str(artifacts[0].path),
            value=found[0] or "of a precision that nothing tells",
            expected=f"{wanted}, as runtime.precision asks",
            hint="`edgeprune convert`, or `edgeprune export` for a run folder, makes such a file.",
        )
    for one, precision in zip(artifacts, found, strict=True):
        made_for = note_of(one).get("provider", runtime.provider)
        if precision == "int8" and made_for != runtime.provider:
            raise ArtifactError(
                problem,
                where=str(one.path),
                value=f"int8 for {made_for}",
                expected=f"int8 for {runtime.provider}, as runtime.provider asks",
                hint="Convert the float32 file again for this provider.",
            )
    notes = []
    if wanted == "fp32" and found[0] not in (None, "fp32"):
        notes.append(f"{artifacts[0].path.name} is {found[0]}, and was run as it is; the target says fp32.")
    for one, precision in zip(artifacts[1:], found[1:], strict=True):
        if precision != found[0]:
            text = f"{one.path.name} is {precision}, {artifacts[0].path.name} {found[0]}"
            notes.append(f"{text}: the ratios compare the precisions too.")
        if note_of(one) and "test" in fp32_accuracy(one):
            share = f"{fp32_accuracy(one)['test'] * 100:.2f} %"
            notes.append(f"accuracy_drop is against {one.path.name} before it became {precision}: {share}.")
    return notes


def _precision(content: Bytes) -> str:
    found = "fp32"
    for number, start, end in _fields(content, 0, len(content)):
        if number != MODEL_GRAPH:
            continue
        for part, first, last in _fields(content, start, end):
            if part == GRAPH_NODE:
                for field, a, b in _fields(content, first, last):
                    if field == NODE_OPERATOR and content[a:b].startswith(INTEGER_OPERATORS):
                        return "int8"
            elif part == GRAPH_INITIALIZER:
                half = any(
                    field == TENSOR_TYPE and content[a] == FLOAT16
                    for field, a, _ in _fields(content, first, last)
                )
                found = "fp16" if half else found
    return found


def _fields(content: Bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of a protobuf message.

    Raises:
        ValueError: It is no such message.
    """
    while position < end:
        key, position = _varint(content, position)
        wire = key & 7
        if wire == LENGTH:
            size, position = _varint(content, position)
        elif wire == VARINT:
            size = _varint(content, position)[1] - position
        elif wire in FIXED_BYTES:
            size = FIXED_BYTES[wire]
        else:
            raise ValueError("no protobuf message")
        if position + size > end:
            raise ValueError("a field that is longer than its message")
        yield key >> 3, position, position + size
        position += size


def _varint(content: Bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position after it."""
    value = shift = 0
    while shift < 64:
        byte = content[position]
        value, position, shift = value | (byte & 127) << shift, position + 1, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("a number of more than 64 bits")
