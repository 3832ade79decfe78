"""ONNX files written by hand, read by the real package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeprune.onnx_writer import message, model, node, value, weight


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (((1, 150),), "089601"),  # the example of protobuf's own documentation
        (((1, 0),), "0800"),
        (((1, 2**31),), "088080808008"),
        (((2, "testing"),), "120774657374696e67"),
        (((2, b"\x00"), (1, [1, 2])), "12010008010802"),
        (((16, 1),), "800101"),
        (((5, []),), ""),
    ],
)
def test_messages(fields: tuple[tuple[int, int | str | bytes]], expected: str) -> None:
    assert message(*fields).hex() == expected


def test_a_file_says_what_was_asked_for() -> None:
    kernel = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3)
    file = onnx.load_from_string(
        model(
            [node("Conv", ["x", "w"], "h", pads=(1, 1, 1, 1), group=4), node("Relu", ["h"], "y")],
            [weight("w", kernel)],
            value("x", (1, 4, 8, 300)),
            value("y", (1, 4, 8, 300)),
        )
    )
    onnx.checker.check_model(file, full_check=True)
    graph = file.graph
    assert [(one.op_type, list(one.input), list(one.output)) for one in graph.node] == [
        ("Conv", ["x", "w"], ["h"]),
        ("Relu", ["h"], ["y"]),
    ]
    attributes = {one.name: onnx.helper.get_attribute_value(one) for one in graph.node[0].attribute}
    assert attributes == {"pads": [1, 1, 1, 1], "group": 4}
    assert np.array_equal(onnx.numpy_helper.to_array(graph.initializer[0]), kernel)
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 4, 8, 300]


def test_a_wrong_file_would_be_seen() -> None:
    shape = value("x", (1, 3, 8, 8)), value("y", (1, 4, 8, 8))
    broken = model([node("Conv", ["x", "w"], "y")], [weight("w", np.ones((4, 2, 3, 3), np.float32))], *shape)
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(onnx.load_from_string(broken), full_check=True)
