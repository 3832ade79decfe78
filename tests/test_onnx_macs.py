"""Multiply-adds of ONNX nodes: exact integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.onnx_macs import macs_by_node


def model(nodes: list[Any], shape: list[Any], **weights: tuple[int, ...]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    tensors = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "shape", "weight", "options", "macs"),
    [
        ("Conv", [1, 3, 8, 8], (16, 3, 3, 3), {"pads": [1] * 4}, 16 * 64 * 27),
        ("Conv", [1, 3, 8, 8], (16, 3, 3, 3), {"strides": [2, 2]}, 16 * 9 * 27),
        ("Conv", ["N", 3, 8, 8], (16, 3, 3, 3), {"pads": [1] * 4}, 16 * 64 * 27),
        ("Conv", [4, 3, 8, 8], (16, 3, 1, 1), {}, 4 * 16 * 64 * 3),
        ("Conv", [1, 8, 8, 8], (8, 1, 3, 3), {"group": 8, "pads": [1] * 4}, 8 * 64 * 9),
        ("ConvTranspose", [1, 8, 4, 4], (8, 6, 2, 2), {"strides": [2, 2]}, 8 * 16 * 6 * 4),
        ("MatMul", [2, 5, 7], (7, 3), {}, 2 * 5 * 7 * 3),
        ("Gemm", [2, 7], (7, 3), {}, 2 * 7 * 3),
        ("Gemm", [7, 2], (3, 7), {"transA": 1, "transB": 1}, 2 * 7 * 3),
    ],
)
def test_exact_counts(
    kind: str, shape: list[Any], weight: tuple[int, ...], options: dict[str, Any], macs: int
) -> None:
    node = helper.make_node(kind, ["x", "w"], ["y"], "one", **options)
    assert macs_by_node(model([node], shape, w=weight)) == {"one": macs}


def test_what_has_no_macs_or_no_name_or_no_shape_is_left_out() -> None:
    named = helper.make_node("Relu", ["x"], ["y"], "relu")
    nameless = helper.make_node("MatMul", ["x", "w"], ["y"])
    open_shape = helper.make_node("MatMul", ["x", "w"], ["y"], "open")
    assert macs_by_node(model([named], [1, 7])) == {}
    assert macs_by_node(model([nameless], [1, 7], w=(7, 3))) == {}
    assert macs_by_node(model([open_shape], [1, "L", 7], w=(7, 3))) == {}
