"""Fields of protobuf messages, without a parser of their schema. Device side: no torch, no onnx."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, LENGTH = 0, 2  # wire types
FIXED_BYTES = {1: 8, 5: 4}

Bytes = bytes | mmap.mmap


def fields(content: Bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
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
