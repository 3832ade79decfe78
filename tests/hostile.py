"""Hostile and broken ONNX files, and what is said of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RELU = helper.make_node("Relu", ["x"], ["y"])
ADD = helper.make_node("Add", ["x", "w"], ["y"])
IDENTITY = helper.make_node("Identity", ["x"], ["y"])


def value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[Any],
    inputs: list[Any],
    weights: tuple[Any, ...] = (),
    *,
    opsets: dict[str, int] | None = None,
    ir_version: int = 8,
    functions: tuple[Any, ...] = (),
) -> bytes:
    """A model with the output y, loadable by onnxruntime 1.21."""
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], list(weights))
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    made = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))
    return bytes(made.SerializeToString())


def tensor(dims: list[int], content: bytes = b"", kind: int = TensorProto.FLOAT) -> Any:
    return TensorProto(name="w", data_type=kind, dims=dims, raw_data=content)


def external(location: str, **entries: str) -> Any:
    """Four floats that are kept elsewhere."""
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in ({"location": location} | entries).items():
        made.external_data.add(key=key, value=text)
    return made


def outside(location: str, **entries: str) -> bytes:
    return model([ADD], [value("x", [4])], (external(location, **entries),))


def twice(first: str, second: str) -> bytes:
    weight = external(first)
    weight.external_data.add(key="location", value=second)
    return model([ADD], [value("x", [4])], (weight,))


def constant(name: str, *numbers: float, kind: type = np.int64) -> Any:
    return numpy_helper.from_array(np.array(numbers, kind), name)


def typed(kind: Any) -> bytes:
    """An input of a type that is not a tensor."""
    return model([IDENTITY], [helper.make_value_info("x", kind)])


def convolution(**attributes: Any) -> bytes:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    return model([node], [value("x", [1, 3, 8, 8])], (weight,))


def loop(start: str) -> bytes:
    """A loop of 2^62 turns from an input, so that it runs, or from a weight, so that it is folded."""
    inner = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Add", ["v", "v"], ["u"])]
    inputs = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("v", [1])]
    body = helper.make_graph(inner, "b", inputs, [value("d", [], TensorProto.BOOL), value("u", [1])])
    turns = numpy_helper.from_array(np.array(2**62), "n")
    go_on = numpy_helper.from_array(np.array(True), "t")
    nodes = [
        helper.make_node("Loop", ["n", "t", start], ["z"], body=body),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    return model(nodes, [value("x", [1])], (turns, go_on, constant("w", 1, kind=np.float32)))


def recursive() -> bytes:
    call = helper.make_node("F", ["x"], ["y"], domain="d")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    function = helper.make_function("d", "F", ["x"], ["y"], [call], opsets)
    return model([call], [value("x", [1])], opsets={"": 17, "d": 1}, functions=(function,))


def sparse(size: int, index: int) -> bytes:
    made = onnx.load_from_string(model([ADD], [value("x", [4])]))
    weight = made.graph.sparse_initializer.add(dims=[size])
    weight.values.CopyFrom(constant("w", 1, kind=np.float32))
    weight.indices.CopyFrom(constant("i", index))
    return bytes(made.SerializeToString())


def nested(depth: int) -> bytes:
    """Graphs inside of one another, deeper than the protobuf library would write them."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    made = onnx.load_from_string(GOOD)
    graph = made.graph.SerializeToString()
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute))
    made.ClearField("graph")
    return made.SerializeToString() + field(7, graph)


def link(path: Path, to: str) -> None:
    path.symlink_to(to)


def vast(path: Path) -> None:
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(2**31)


GOOD = model([RELU], [value("x", [1, 3, 8, 8])])
OPTIONAL = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
MAP = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))

# Refused before onnxruntime sees it: name -> (content or what makes the file, pattern of the message).
REFUSED: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "empty": (b"", "is empty"),
    "half": (GOOD[: len(GOOD) // 2], "broken at byte .* are left"),
    "inside a number": (b"\x08\xff", "its end inside a number"),
    "text": (b"hello", "broken at byte 2 of 5"),
    "zeros": (bytes(100), "broken at byte 0 of 100"),
    "ones": (b"\xff" * 100, "broken at byte 0 of 100"),
    "random": (np.random.default_rng(0).bytes(5000), "broken at byte"),
    "wrong magic": (b"PK\x03\x04" + GOOD, "broken at byte"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
    "vast": (vast, r"is 2\.15 GB long, expected at most 2 GiB"),
    "folder": (Path.mkdir, "is not a file"),
    "pipe": (os.mkfifo, "is not a file"),
    "link to itself": (lambda path: link(path, path.name), "is not a file"),
    "link to a device": (lambda path: link(path, "/dev/zero"), "is not a file"),
    "link to nothing": (lambda path: link(path, "nothing"), "is not a file"),
    "data outside": (outside("../secret.bin"), r"'\.\./secret\.bin' .* is outside, at .*secret\.bin"),
    "data far outside": (outside("a/../../secret.bin"), "is outside"),
    "data absolute": (outside("/etc/passwd"), "'/etc/passwd' .* is absolute"),
    "data absent": (outside("absent.bin"), "'absent.bin' .* is not there"),
    "data short": (outside("short.bin", length="16"), "is 8 bytes long, expected at least 16"),
    "data beyond": (outside("data.bin", offset="8", length="16"), "16 bytes long, expected at least 24"),
    "data vast": (outside("data.bin", length="9" * 30), "'9999.* bytes, expected whole numbers"),
    "data before": (outside("data.bin", offset="-8"), "read from '-8', '0' bytes, expected whole numbers"),
    "data of words": (outside("data.bin", offset="a"), "read from 'a'"),
    "data in a folder": (outside("inner"), "'inner' .* is not a regular file"),
    "data in a pipe": (outside("pipe.bin"), "'pipe.bin' .* is not a regular file"),
    "data behind a link": (outside("link.bin"), "is outside"),
    "data behind a loop": (outside("loop.bin"), "is not a regular file"),
    "data without a name": (outside(""), "'' .* is not a path"),
    "data of a nul": (outside("a\0b"), r"'a\\x00b' .* is not a path"),
    "data outside, as if of another format": (
        b"\x12\x06  ORTM" + outside("../secret.bin"), "is outside"),
    "data of two names": (twice("data.bin", "../secret.bin"), "external data with two of 'location'"),
    "data in memory": (outside("*/_ORT_MEM_ADDR_/*", offset="4096", length="16"), "is not there"),
    "data that is no text": (outside("absent.bin").replace(b"absent", b"\xff" * 6), "no UTF-8"),
}  # fmt: skip

# Told by onnxruntime, in the worker's process.
UNLOADABLE = "not a model that onnxruntime"
FAILING = "failing when it runs on"
LOADED: dict[str, tuple[bytes, str]] = {
    "no graph": (b"\x08\x08", UNLOADABLE),
    "no nodes": (model([], [value("x", [1])]), UNLOADABLE),
    "cycle": (
        model([helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
              [value("x", [1])]), "not acyclic"),
    "reads itself": (model([helper.make_node("Add", ["x", "y"], ["y"])], [value("x", [1])]), "not acyclic"),
    "twice": (model([RELU, RELU], [value("x", [1])]), "Duplicate definition of name"),
    "two inputs of a name": (model([RELU], [value("x", [1]), value("x", [1])]), UNLOADABLE),
    "dangling": (model([helper.make_node("Add", ["x", "z"], ["y"])], [value("x", [1])]), UNLOADABLE),
    "unknown operator": (model([helper.make_node("Nonesuch", ["x"], ["y"])], [value("x", [1])]), "Nonesuch"),
    "codes": (model([helper.make_node("No\x1b[2J", ["x"], ["y"])], [value("x", [1])]), r"No\?\[2J"),
    "unknown domain": (
        model([helper.make_node("F", ["x"], ["y"], domain="com.none")], [value("x", [1])],
              opsets={"": 17, "com.none": 1}), "com.none"),
    "undeclared domain": (
        model([helper.make_node("F", ["x"], ["y"], domain="com.none")], [value("x", [1])]), "com.none"),
    "opset 999": (model([RELU], [value("x", [1])], opsets={"": 999}), "Opset 999"),
    "opset 0": (model([RELU], [value("x", [1])], opsets={"": 0}), UNLOADABLE),
    "IR 99": (model([RELU], [value("x", [1])], ir_version=99), "IR version: 99"),
    "wrong types": (
        model([helper.make_node("Add", ["x", "z"], ["y"])],
              [value("x", [1]), value("z", [1], TensorProto.INT64)]), "Type Error"),
    "wrong shapes": (
        model([helper.make_node("MatMul", ["x", "z"], ["y"])], [value("x", [2, 3]), value("z", [2, 3])]),
        UNLOADABLE),
    "type 99": (model([RELU], [value("x", [1], 99)]), UNLOADABLE),
    "attribute of another type": (convolution(group="three"), UNLOADABLE),
    "nested": (nested(1000), UNLOADABLE),
    "recursive function": (recursive(), UNLOADABLE),
    "vast weight": (model([ADD], [value("x", [1])], (tensor([2**40, 2**20], b"0000"),)), UNLOADABLE),
    "weight beyond 64 bits": (model([ADD], [value("x", [1])], (tensor([2**32, 2**32]),)), UNLOADABLE),
    "negative weight": (model([ADD], [value("x", [1])], (tensor([-4], bytes(16)),)), UNLOADABLE),
    "short weight": (model([ADD], [value("x", [4])], (tensor([4], bytes(8)),)), UNLOADABLE),
    "weight of no type": (model([ADD], [value("x", [4])], (tensor([4], bytes(16), 0),)), UNLOADABLE),
    "vast sparse weight": (sparse(2**40, 2), UNLOADABLE),
    "kernel of 1000": (convolution(kernel_shape=[1000, 1000]), FAILING),
    "no groups": (convolution(group=0), f"{UNLOADABLE}|{FAILING}"),
    "vast padding": (convolution(pads=[2**40] * 4), FAILING),
    "vast input": (
        model([RELU], [value("x", [1, 3, 10**6, 10**6])]), r"of 1x3x1000000x1000000, 1\.2e\+04 GB"),
    "vast inside": (
        model([helper.make_node("Expand", ["x", "s"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
              [value("x", [1])], (constant("s", 10**6, 10**7),)),
        r"failing when it runs on x of 1 \(.*Failed to allocate"),
    "vast range": (
        model([helper.make_node("ConstantOfShape", ["s"], ["a"]), helper.make_node("Add", ["x", "a"], ["y"])],
              [value("x", [1])], (constant("s", 2**30, 2**30),)), f"{UNLOADABLE}|{FAILING}"),
    "index outside": (
        model([helper.make_node("Gather", ["x", "i"], ["y"])], [value("x", [4])], (constant("i", 2**40),)),
        f"{UNLOADABLE}|{FAILING}"),
    "wrong reshape": (
        model([helper.make_node("Reshape", ["x", "s"], ["y"])], [value("x", [1])], (constant("s", 7),)),
        f"{UNLOADABLE}|{FAILING}"),
    "crash": (
        model([helper.make_node("Div", ["a", "b"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])],
              [value("x", [1], TensorProto.INT32)],
              (constant("a", -(2**31), kind=np.int32), constant("b", -1, kind=np.int32))),
        rf"crashes onnxruntime \(signal 8|{UNLOADABLE}|{FAILING}"),
    "open dimension": (
        model([RELU], [value("x", ["N", 3, "H", 8])]),
        r"open in dimension 'H' \(axis 2\) of its input 'x' of Nx3xHx8"),
    "no elements": (model([RELU], [value("x", [0, 3])]), "made for inputs without elements"),
    "string": (
        model([IDENTITY], [value("x", [1], TensorProto.STRING)]), r"input 'x' of type tensor\(string\)"),
    "bfloat16": (model([IDENTITY], [value("x", [1], TensorProto.BFLOAT16)]), "of type tensor.bfloat16"),
    "sequence": (typed(SEQUENCE), "of type seq"),
    "optional": (typed(OPTIONAL), f"of type optional|{UNLOADABLE}"),
    "map": (typed(MAP), UNLOADABLE),
}  # fmt: skip
ENDLESS = {"endless run": loop("x"), "endless load": loop("w")}


def make(folder: Path, name: str, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file of the tables with what it may point to; its message names ``folder/models``."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    (folder / "secret.bin").write_bytes(bytes(16))
    if not (models / "data.bin").exists():
        (models / "data.bin").write_bytes(bytes(16))
        (models / "short.bin").write_bytes(bytes(8))
        (models / "inner").mkdir()
        os.mkfifo(models / "pipe.bin")
        link(models / "link.bin", "../secret.bin")
        link(models / "loop.bin", "loop.bin")
    path = models / f"{name}.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path
