"""Kernels by their node, layers by their weight."""

from __future__ import annotations

import pytest

from edgeprune.onnx_nodes import Node
from edgeprune.parts import make_parts, share, total

NODES = (
    Node("conv_1", "Conv", ("x",), ("h",), ("a.weight_quantized", "a.weight_scale"), 100),
    Node("relu_1", "Relu", ("h",), ("r",), (), 5),
    Node("conv_2", "Conv", ("r",), ("s",), ("b.weight", "b.weight_bias"), 200),
    Node("add", "Add", ("s", "r"), ("y",), (), 5),
    Node("cast", "Cast", ("z",), ("w",), (), 5),
)
GROUPS = [
    {"name": "a", "kept": 4, "size": 8, "frozen_because": None, "places": [
        {"tensor": "a.weight", "axis": 0, "role": "out", "length": 4, "width": 1},
        {"tensor": "b.weight", "axis": 1, "role": "in", "length": 4, "width": 1}]},
    {"name": "b", "kept": 2, "size": 8, "frozen_because": None, "places": [
        {"tensor": "b.weight", "axis": 0, "role": "out", "length": 4, "width": 2}]},
]  # fmt: skip


def kernel(name: str, op_type: str, time_s: float, tensor_bytes: int | None = 10) -> dict[str, object]:
    return {"name": name, "op_type": op_type, "time_s": time_s, "tensor_bytes": tensor_bytes}


@pytest.mark.parametrize(
    ("name", "op_type", "layer", "groups"),
    [
        ("conv_2", "Conv", "b", {"a", "b"}),
        ("conv_2_token_31", "QLinearConv", "b", {"a", "b"}),
        ("r_nchwc", "Conv", "a", {"a"}),  # fused with its Relu: named after the Relu's output
        ("y_nchwc", "Conv", "b", {"a", "b"}),  # and with an Add
        ("relu_1", "Relu", "a", {"a"}),
        ("add", "Add", "b", {"b"}),  # no weight of its own: the output's channels alone
        ("cast", "Cast", "", set()),
        ("ReorderOutput_token_3", "ReorderOutput", "", set()),
    ],
)
def test_a_kernel_finds_its_layer(name: str, op_type: str, layer: str, groups: set[str]) -> None:
    (part,) = make_parts(NODES, {}, [kernel(name, op_type, 1.0, None)], GROUPS)[len(NODES) :]
    assert (part.layer, part.groups(), part.time_s) == (layer, groups, 1.0)


def test_totals_and_shares() -> None:
    kernels = [kernel("conv_1", "Conv", 3.0, 50), kernel("conv_2", "Conv", 1.0, 20)]
    parts = make_parts(NODES, {"conv_1": 30, "conv_2": 10}, kernels, GROUPS)
    assert [total(parts, basis) for basis in ("size_bytes", "macs", "time_s")] == [315, 40, 4.0]
    assert total(parts, "memory_bytes") == 315 + 50  # weights, and the largest tensors
    assert share(parts, "macs", GROUPS[0]) == 1.0
    assert share(parts, "time_s", GROUPS[1]) == pytest.approx(0.25)
    assert share(make_parts(NODES, {}, [], GROUPS), "time_s", GROUPS[0]) is None


def test_without_groups_a_layer_is_known_by_its_weight() -> None:
    parts = make_parts(NODES, {}, [], [])
    assert [part.layer for part in parts] == ["a", "a", "b", "b", ""]
    assert not any(part.groups() for part in parts)


def test_a_file_of_somebody_else_has_its_nodes_as_layers() -> None:
    nodes = (Node("c0", "Conv", ("x",), ("h",), ("w0", "b0"), 9), Node("r0", "Relu", ("h",), ("r",), (), 1))
    assert [part.layer for part in make_parts(nodes, {}, [], [])] == ["c0", "c0"]


def test_units_that_go_take_their_share() -> None:
    second = make_parts(NODES, {"conv_2": 100}, [], GROUPS)[2]
    assert second.left("macs", {}) == 100
    assert second.left("macs", {"a": 1}) == 75
    assert second.left("macs", {"a": 1, "b": 1}) == 37.5
    assert second.left("macs", {"a": 4}) == 0
