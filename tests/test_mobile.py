"""Estimates from onnxruntime's operator tables."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import ArtifactError
from edgeprune.mobile import PROVIDERS, estimate_partitions


def save(path: Path, nodes: list[Any], shape: list[Any]) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_nodes_and_partitions(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Hardmax", ["a"], ["b"]),  # in none of the tables
        helper.make_node("Sigmoid", ["b"], ["y"]),
    ]
    before = logging.root.manager.disable
    found = estimate_partitions(save(tmp_path / "m.onnx", nodes, [1, 3, 4, 4]))
    assert [one.provider for one in found] == list(PROVIDERS)
    for one in found:
        assert (one.nodes, one.supported, one.partitions) == (3, 2, 2)
        assert one.text == "2 of 3 nodes in 2 partitions; not ai.onnx:Hardmax"
    assert logging.root.manager.disable == before


def test_open_shapes_are_not_taken(tmp_path: Path) -> None:
    found = estimate_partitions(save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [1, "N"]))
    assert [one.supported for one in found] == [0, 0, 0]
    assert found[0].text == "0 of 1 nodes in 0 partitions; 1 nodes have an open shape, which it does not take"


def test_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"could not estimate partitions: .*m\.onnx is unreadable"):
        estimate_partitions(tmp_path / "m.onnx")
