"""What an ONNX file says of its own precision, and which files a target measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.artifact import Artifact
from edgeprune.errors import ArtifactError
from edgeprune.precision import fp32_accuracy, precision_notes, precision_of
from edgeprune.target import Runtime

XNNPACK = "XnnpackExecutionProvider"


def written(
    folder: Path, name: str, kind: Any = np.float32, operators: tuple[str, ...] = ("Conv",)
) -> Artifact:
    """A file with these operators and one weight; it need not run."""
    nodes = [helper.make_node(operator, ["x", "w"], [f"y{i}"]) for i, operator in enumerate(operators)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    weight = numpy_helper.from_array(np.ones(300, kind), "w")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [], [weight])), folder / name)
    return Artifact(folder / name, "", 1)


@pytest.mark.parametrize(
    ("kind", "operators", "precision"),
    [
        (np.float32, ("Conv", "Relu"), "fp32"),
        (np.float16, ("Cast", "Conv"), "fp16"),
        (np.int8, ("Conv", "DequantizeLinear"), "int8"),
        (np.float16, ("QLinearConv",), "int8"),
        (np.int8, ("Gather",), "fp32"),
    ],
)
def test_the_file_tells(tmp_path: Path, kind: Any, operators: tuple[str, ...], precision: str) -> None:
    assert precision_of(written(tmp_path, "net.onnx", kind, operators)) == precision


@pytest.mark.parametrize(
    "content", [None, b"", b"\x3a", b"\x3a\x05ab", b"\x3f", b"\xff" * 20, b"\x3a\x02\x0a\x7f", b"not a model"]
)
def test_files_that_tell_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    assert precision_of(Artifact(path, "", 1)) is None


def test_fixed_size_fields_are_passed_over(tmp_path: Path) -> None:
    made = written(tmp_path, "net.onnx", np.float16)
    made.path.write_bytes(b"\x79" + bytes(8) + b"\x7d" + bytes(4) + made.path.read_bytes())
    assert precision_of(made) == "fp16"


def test_the_sidecar_tells_of_an_ort_file() -> None:
    path = Path("net.ort")
    assert precision_of(Artifact(path, "", 1)) is None
    assert precision_of(Artifact(path, "", 1, provenance={"opset": 18})) == "fp32"
    assert precision_of(Artifact(path, "", 1, provenance={"precision": {"name": "int8"}})) == "int8"


def test_accuracy_before_the_conversion() -> None:
    own = Artifact(Path("a"), "", 1, accuracy={"test": 0.5})
    assert fp32_accuracy(own) == {"test": 0.5}
    for source, accuracy in (({"accuracy": {"test": 0.7}}, {"test": 0.7}), ({}, {}), (3, {}), (None, {})):
        made = Artifact(
            Path("a"), "", 1, accuracy={"test": 0.5}, provenance={"precision": {"source": source}}
        )
        assert fp32_accuracy(made) == accuracy


def test_a_file_of_another_precision_is_not_measured(tmp_path: Path) -> None:
    floats, halves = written(tmp_path, "a.onnx"), written(tmp_path, "b.onnx", np.float16)
    assert precision_notes([floats, floats], Runtime()) == []
    assert precision_notes([halves], Runtime(precision="fp16")) == []
    with pytest.raises(
        ArtifactError, match=r"a.onnx is fp32, expected int8, as runtime.precision asks\. `edge"
    ):
        precision_notes([floats, halves], Runtime(precision="int8"))


def test_integers_for_another_provider(tmp_path: Path) -> None:
    made = written(tmp_path, "a.onnx", operators=("QuantizeLinear",))
    assert precision_notes([made], Runtime(precision="int8", provider=XNNPACK)) == []
    made.provenance["precision"] = {"name": "int8", "provider": "QNNExecutionProvider"}
    with pytest.raises(
        ArtifactError, match=f"a.onnx is int8 for QNNExecutionProvider, expected int8 for {XNNPACK}"
    ):
        precision_notes([made], Runtime(precision="int8", provider=XNNPACK))


def test_what_is_worth_knowing(tmp_path: Path) -> None:
    floats, halves = written(tmp_path, "a.onnx"), written(tmp_path, "b.onnx", np.float16)
    told, mixed = precision_notes([halves, floats], Runtime())
    assert told == "b.onnx is fp16, and was run as it is; the target says fp32."
    assert mixed == "a.onnx is fp32, b.onnx fp16: the ratios compare the precisions too."
    halves.provenance["precision"] = {"name": "fp16", "source": {"accuracy": {"test": 0.9}}}
    (against,) = precision_notes([halves, halves], Runtime(precision="fp16"))
    assert against == "accuracy_drop is against b.onnx before it became fp16: 90.00 %."
