"""ORT files: the same network in onnxruntime's own format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeprune.artifact import load_artifact
from edgeprune.errors import ExportError, UsageError
from edgeprune.ort_format import to_ort_format
from edgeprune.precision import precision_of
from edgeprune.variants import convert
from tests.onnx_networks import data_of, network, outputs


def test_ort_file_needs_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"path is net.onnx, expected a name that ends in .ort"):
        to_ort_format(network(tmp_path / "net.onnx"), tmp_path / "net.onnx")


def test_ort_file_of_a_broken_network(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx.ModelProto(producer_name="nobody").SerializeToString())
    with pytest.raises(ExportError, match=r"onnxruntime cannot convert broken.onnx"):
        to_ort_format(broken, tmp_path / "x.ort")


def test_ort_file(tmp_path: Path) -> None:
    source, data = replace(network(tmp_path / "net.onnx"), macs=9, accuracy={"test": 2.0}), data_of()
    made = to_ort_format(source, tmp_path / "net.ort", data=data)
    assert made.path.read_bytes()[4:8] == b"ORTM"
    assert load_artifact(made.path) == made
    assert made.macs == 9
    assert 0 <= made.accuracy["test"] <= 1
    images, _ = next(iter(data.test))
    np.testing.assert_allclose(outputs(made.path, images), outputs(source.path, images), atol=1e-5)
    assert to_ort_format(source, tmp_path / "b.ort").accuracy == {}


@pytest.mark.slow
def test_a_half_precision_ort_file_keeps_its_halves(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    half = convert(source, tmp_path / "half.onnx", precision="fp16")
    made = to_ort_format(half, tmp_path / "half.ort")
    assert made.provenance["ort_format"]["style"] == "runtime"
    assert precision_of(made) == "fp16"
