"""Small ONNX files without the onnx package, for measurements on a device that does not have it.

An ONNX file is one protobuf message. What a chain of layers needs of it is a few fields of six messages; each
is written here as its fields in order: (number, value). Device side: no torch, no onnx.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IR_VERSION = 7
OPSET = 13
"""Old enough for every runtime that the worker supports, new enough for all operators used here."""

FLOAT = 1  # TensorProto.DataType
INTS, INT = 7, 2  # AttributeProto.AttributeType

Value = int | str | bytes | Sequence["int | str | bytes"]


def message(*fields: tuple[int, Value]) -> bytes:
    """A protobuf message. A sequence is a repeated field; text and bytes have a length before them.

    Example:
        >>> message((1, 150), (2, "ab")).hex()
        '08960112026162'
    """
    out = bytearray()
    for number, value in fields:
        for one in [value] if isinstance(value, int | str | bytes) else value:
            if isinstance(one, int):
                out += _varint(number << 3) + _varint(one)
            else:
                payload = one.encode() if isinstance(one, str) else one
                out += _varint(number << 3 | 2) + _varint(len(payload)) + payload
    return bytes(out)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def node(op_type: str, inputs: Sequence[str], output: str, **attributes: int | Sequence[int]) -> bytes:
    """One operator; attributes are whole numbers or lists of them."""
    written = [
        message((1, name), (3, value), (20, INT))
        if isinstance(value, int)
        else message((1, name), (8, value), (20, INTS))
        for name, value in attributes.items()
    ]
    # Named after its output, so that a profile can tell the nodes apart.
    return message((1, inputs), (2, output), (3, output), (4, op_type), (5, written))


def weight(name: str, array: NDArray[np.float32]) -> bytes:
    """An initializer of float32."""
    return message((1, array.shape), (2, FLOAT), (8, name), (9, array.astype("<f4").tobytes()))


def value(name: str, shape: Sequence[int]) -> bytes:
    """An input or output of float32."""
    dimensions = [message((1, size)) for size in shape]
    return message((1, name), (2, message((1, message((1, FLOAT), (2, message((1, dimensions))))))))


def model(nodes: Sequence[bytes], weights: Sequence[bytes], inputs: bytes, outputs: bytes) -> bytes:
    """The file."""
    graph = message((1, nodes), (2, "g"), (5, weights), (11, inputs), (12, outputs))
    return message((1, IR_VERSION), (2, "edgeprune"), (7, graph), (8, message((2, OPSET))))
