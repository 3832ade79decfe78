"""Multiply-adds of each node of an ONNX graph, from its shapes. Needs onnx: host side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

# Operator -> where its weight (second factor) is among its inputs.
WEIGHT_AT = {
    "Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "QLinearConv": 3,
    "Gemm": 1, "QGemm": 3, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3,
}  # fmt: skip


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of one inference at batch 1, of each node that has any, by the node's name.

    Counted as ``count_macs`` counts: products alone, no bias, no padding taken off. An open batch is 1. Nodes
    without a name, and those of unknown shapes, are left out: the sum is then below ``count_macs``.

    Example:
        >>> macs_by_node(onnx.load("resnet20.onnx"))["node_Conv_347"]  # doctest: +SKIP
        442368
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        shapes.setdefault(
            value.name, tuple(size.dim_value if size.HasField("dim_value") else 0 for size in sizes)
        )
    found: dict[str, int] = {}
    for node in graph.node:
        at = WEIGHT_AT.get(node.op_type)
        if at is None or len(node.input) <= at or not node.name:
            continue
        data, weight, output = (
            shapes.get(name, ()) for name in (node.input[0], node.input[at], node.output[0])
        )
        count = _macs(node, data, weight, output)
        if count:
            found[node.name] = count
    return found


def _macs(node: onnx.NodeProto, data: Sequence[int], weight: Sequence[int], output: Sequence[int]) -> int:
    """Multiply-adds of one node; 0 if its shapes are not known."""
    if not data or not weight or not output:
        return 0
    data, output = (
        (1 if not data[0] else data[0], *data[1:]),
        (1 if not output[0] else output[0], *output[1:]),
    )
    if "ConvTranspose" in node.op_type:  # weight (in, out / groups, kernel ...): each input meets all of it
        return math.prod(data) * math.prod(weight[1:])
    if "Conv" in node.op_type:  # weight (out, in / groups, kernel ...)
        return math.prod(output) * math.prod(weight[1:])
    transposed = next((item.i for item in node.attribute if item.name == "transA"), 0)
    return math.prod(output) * (data[0] if transposed else data[-1])
