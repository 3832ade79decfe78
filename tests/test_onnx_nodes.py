"""Nodes of an ONNX file and the bytes that each one brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import ArtifactError
from edgeprune.onnx_nodes import bytes_by_operator, producers, read_nodes


def written(path: Path, **saving: object) -> Path:
    """A quantized weight, a weight that two nodes read, and a node without a name."""
    nodes = [
        helper.make_node("DequantizeLinear", ["a.weight_quantized", "scale"], ["a.weight"], "dequantize"),
        helper.make_node("MatMul", ["x", "a.weight"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "shared"], ["s"], "second"),
        helper.make_node("MatMul", ["s", "shared"], ["y"], "third"),
    ]
    weights = [
        numpy_helper.from_array(np.ones((64, 64), np.int8), "a.weight_quantized"),
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.ones((64, 64), np.float32), "shared"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph), path, **saving)
    return path


def test_bytes_are_those_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.onnx")
    nodes = read_nodes(path)
    assert [node.name for node in nodes] == ["first", "r", "second", "third"]
    assert [node.op_type for node in nodes] == ["MatMul", "Relu", "MatMul", "MatMul"]
    assert nodes[0].weights == ("a.weight_quantized", "scale")
    assert nodes[0].inputs == ("x",)
    model = onnx.load(path)
    sizes = [tensor.ByteSize() for tensor in model.graph.initializer]
    steps = [node.ByteSize() for node in model.graph.node]
    own = [sizes[0] + sizes[1] + steps[0] + steps[1], steps[2], sizes[2] + steps[3], steps[4]]
    assert [node.size_bytes for node in nodes] == own  # what two read is the first one's
    assert sum(own) < path.stat().st_size < sum(own) + 200
    assert bytes_by_operator(nodes) == {"MatMul": own[0] + own[2] + own[3], "Relu": own[1]}
    assert producers(nodes)["s"] is nodes[2]


def test_external_data_counts(tmp_path: Path) -> None:
    inside = read_nodes(written(tmp_path / "a.onnx"))
    outside = written(tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert outside.stat().st_size < 1000
    for one, other in zip(inside, read_nodes(outside), strict=True):
        assert other.size_bytes == pytest.approx(one.size_bytes, abs=200)  # names of the file and its places


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(ArtifactError, match=r"could not read the nodes: .*a\.onnx is no protobuf message"):
        read_nodes(path)
