"""Data files that an ONNX file keeps weights in. Device side: no onnx here, so its protobuf is walked.

onnxruntime does not tell which files these are, and before 1.24 it opens any file that it is pointed to.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from edgeprune.errors import ArtifactError

PROBLEM = "could not open the ONNX file"
HINT = "Copy or export it again."
MAX_BYTES = 2**31 - 1  # of one protobuf message; no parser takes more
MAX_FIELDS = 10_000_000  # a network of 100,000 nodes has about two million
LFS_POINTER = b"version https://git-lfs"
ORT_FORMAT = b"ORTM"  # at byte 4: a flatbuffer, which holds its weights itself

# What leads to a tensor in onnx.proto: message -> number of a field -> the message in it. Others are skipped.
MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}  # fmt: skip
KEY, VALUE = 1, 2  # fields of StringStringEntryProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of field


def files_of(model: Path) -> tuple[Path, ...]:
    """What ships: the ONNX file, then its data files, each once, in the order of their names.

    Args:
        model: A regular file.

    Raises:
        ArtifactError: The file is not a protobuf message, or a data file is outside of the model's folder,
            absent, not a regular file, or too short.
    """
    with model.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ArtifactError(
                PROBLEM,
                where=str(model),
                value=f"{size / 1e9:.3g} GB long",
                expected="at most 2 GiB, as protobuf has it",
                hint="Save it with its weights as external data.",
            )
        start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ArtifactError(
                PROBLEM,
                where=str(model),
                value="a pointer of Git LFS",
                expected="the file itself",
                hint="Fetch it with `git lfs pull`.",
            )
        # onnxruntime goes by the name. A protobuf message can be made to have these bytes there too.
        if not start or (model.suffix == ".ort" and start[4:8] == ORT_FORMAT):
            return (model,)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            entries = list(_Walk(model, content).entries())
    found: dict[str, Path] = {}
    for entry in entries:
        if "location" in entry:
            path = _data_file(model, entry)
            found.setdefault(os.path.realpath(path), path)
    found.pop(os.path.realpath(model), None)
    return (model, *sorted(found.values()))


class _Walk:
    """Reads the external data of every tensor, at any depth, without a call per depth."""

    def __init__(self, model: Path, content: mmap.mmap) -> None:
        self.model, self.content, self.fields = model, content, 0

    def entries(self) -> Iterator[dict[str, str]]:
        """What each tensor says of its data file: ``location``, ``offset`` ... as text."""
        entry: dict[str, str] = {}
        stack = [("ModelProto", self._fields(0, len(self.content)), entry)]
        while stack:
            message, fields, entry = stack[-1]
            inner = MESSAGES[message]
            for number, start, end in fields:
                if number not in inner:
                    continue
                if message != "TensorProto":
                    stack.append((inner[number], self._fields(start, end), {}))
                    break
                # onnxruntime heeds it only in a tensor that is marked as external. The mark may stand in
                # another piece of the same tensor, so it is not waited for.
                texts = {n: self.content[a:b] for n, a, b in self._fields(start, end)}
                try:
                    key, value = texts.get(KEY, b"").decode(), texts.get(VALUE, b"").decode()
                except UnicodeDecodeError:
                    raise self._broken(start, "external data named by no UTF-8 text") from None
                if key in entry:  # which of the two counts is for each reader to choose
                    raise self._broken(start, f"external data with two of {key!r:.40}")
                entry[key] = value
            else:
                stack.pop()
                if entry:
                    yield entry

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of each field of bytes in a message that lies in [at, end)."""
        content = self.content
        while at < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise self._broken(at, f"more than {MAX_FIELDS:,} fields")
            tag, after = (content[at], at + 1) if content[at] < 128 else self._varint(at, end)
            kind = tag & 7 if tag >> 3 else None  # no field has the number 0
            if kind == BYTES:
                size, start = self._varint(after, end)
                after = start + size
                if after <= end:
                    yield tag >> 3, start, after
            elif kind == VARINT:
                _, after = self._varint(after, end)
            elif kind in (FIXED64, FIXED32):
                after += 8 if kind == FIXED64 else 4
            else:
                raise self._broken(at, "no protobuf")
            if after > end:
                raise self._broken(at, f"a field of {after - at:,} bytes where {end - at:,} are left")
            at = after

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of 7 bits a byte, and where it ends."""
        value = 0
        for place in range(10):
            if at + place >= end:
                raise self._broken(at, "its end inside a number")
            byte = self.content[at + place]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value, at + place + 1
        raise self._broken(at, "no protobuf")

    def _broken(self, at: int, found: str) -> ArtifactError:
        return ArtifactError(
            PROBLEM,
            where=str(self.model),
            value=f"broken at byte {at:,} of {len(self.content):,} ({found})",
            expected="an ONNX file",
            hint=HINT,
        )


def _data_file(model: Path, entry: dict[str, str]) -> Path:
    """The file that a tensor's external data names, proven to be what a model may read.

    As in onnxruntime it lies in the model's folder, or, if the model is a link, in the folder of what the
    link points to: that is how the cache of Hugging Face is laid out.
    """
    location = entry["location"]
    text = repr(location if len(location) <= 80 else location[:79] + "…")

    def fail(value: str, expected: str, hint: str) -> NoReturn:
        raise ArtifactError(
            PROBLEM, where=f"external data {text} of {model}", value=value, expected=expected, hint=hint
        )

    inside = "a file in the model's folder"
    if not location or "\0" in location or Path(location).is_absolute():
        value = "absolute" if location.startswith(os.sep) else "not a path"
        fail(value, inside, "A file that reads others on your machine may be an attack.")
    path = model.parent / location
    real = Path(os.path.realpath(path))
    homes = (model.parent, Path(os.path.realpath(model)).parent)
    if not any(real.is_relative_to(os.path.realpath(home)) for home in homes):
        fail(f"outside, at {real}", inside, "A file that reads others on your machine may be an attack.")
    if not path.is_file():  # also false for a pipe, which would never end
        value = "not a regular file" if os.path.lexists(path) else "not there"
        fail(value, inside, "Keep the data files beside the ONNX file.")
    size = path.stat().st_size
    numbers = [entry.get(key, "0") for key in ("offset", "length")]
    if not all(number.isdecimal() and number.isascii() and len(number) < 20 for number in numbers):
        fail(f"to be read from {numbers[0]!r:.40}, {numbers[1]!r:.40} bytes", "whole numbers", HINT)
    needed = sum(map(int, numbers))
    if needed > size:
        fail(f"{size:,} bytes long", f"at least {needed:,}", "Copy or export both files again.")
    return path
