"""fp16 and int8 files: close to float32, refused where they cannot be, the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.errors import ArtifactError, DataError, ExportError, UsageError
from edgeprune.onnx_export import export
from edgeprune.onnx_macs import macs_by_node
from edgeprune.precision import precision_of
from edgeprune.variants import INT8, convert
from tests.onnx_networks import data_of, network, outputs

CPU, XNNPACK, QNN = "CPUExecutionProvider", "XnnpackExecutionProvider", "QNNExecutionProvider"


# --- both precisions ----------------------------------------------------------------------------------------


def assert_macs_are_those_of(source: Artifact, made: Artifact) -> None:
    """The placement of a variant is weighed by its own nodes' names."""
    found, before = made.provenance["macs_by_node"], macs_by_node(onnx.load(source.path))
    assert set(found) <= {node.name for node in onnx.load(made.path).graph.node}
    assert sum(found.values()) == sum(before.values()) > 0


def test_int8(tmp_path: Path) -> None:
    source, data = network(tmp_path / "net.onnx"), data_of()
    made = convert(source, tmp_path / "net.int8.onnx", precision="int8", data=data, images=12)
    assert load_artifact(made.path) == made
    assert precision_of(made) == "int8"
    note = made.provenance["precision"]
    assert note["source"]["sha256"] == source.sha256
    assert (note["activations"], note["reduce_range"], note["images"]) == ("uint8", True, 12)
    assert 0 < made.parity_error < 0.2  # type: ignore[operator]
    right = [outputs(made.path, images).argmax(1) == labels.numpy() for images, labels in data.test]
    assert made.accuracy["test"] == np.concatenate(right).mean()
    assert set(note["source"]["accuracy"]) == {"val", "test"}
    assert set(made.accuracy_by_class) == set(note["source"]["accuracy_by_class"]) == {"val", "test"}
    assert set(note["source"]["accuracy_top5"]) == {"val", "test"}
    assert b"accuracy_by_class" not in made.path.read_bytes()
    assert_macs_are_those_of(source, made)
    weights = {value.name: numpy_helper.to_array(value) for value in onnx.load(made.path).graph.initializer}
    assert weights["w1_quantized"].dtype == np.int8
    assert weights["w1_scale"].shape == (8,)
    assert np.abs(weights["w1_quantized"].astype(int)).max() <= 64
    with pytest.raises(ExportError, match=r"net.int8.onnx is int8 already, expected float32"):
        convert(made, tmp_path / "twice.onnx", precision="fp16")


def test_fp16(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    made = convert(source, tmp_path / "net.fp16.onnx", precision="fp16", data=data_of(calib=8))
    assert precision_of(made) == "fp16"
    assert made.parity_error is not None
    assert 0 < made.parity_error < 2e-3
    assert made.provenance["parity"]["real_images"] == 30
    assert_macs_are_those_of(source, made)
    kinds = {
        value.name: numpy_helper.to_array(value).dtype for value in onnx.load(made.path).graph.initializer
    }
    assert set(kinds.values()) == {np.dtype(np.float16)}
    without = convert(source, tmp_path / "b.onnx", precision="fp16")
    assert without.accuracy == {}, "an accuracy that nobody measured"
    again = convert(source, tmp_path / "c.onnx", precision="fp16")
    assert again.sha256 == without.sha256


def test_an_accuracy_is_never_carried_over(tmp_path: Path) -> None:
    source = replace(network(tmp_path / "net.onnx"), accuracy={"val": 1.0, "test": 1.0}, macs=7, params=5)
    made = convert(source, tmp_path / "half.onnx", precision="fp16")
    assert made.accuracy == {}
    assert made.provenance["precision"]["source"]["accuracy"] == {"val": 1.0, "test": 1.0}
    assert (made.macs, made.params) == (7, 5)


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "provider", "fault"),
    [
        ("fp32", CPU, "precision is 'fp32', expected fp16 or int8"),
        (
            "int8",
            "CoreMLExecutionProvider",
            "provider is CoreMLExecutionProvider, for which there is no recipe",
        ),
        ("int8", "CUDAExecutionProvider", f"expected one of {CPU}, {XNNPACK}, {QNN}"),
        ("fp16", XNNPACK, "half-precision convolutions return wrong numbers"),
    ],
)
def test_wrong_precision_for_a_provider(tmp_path: Path, precision: str, provider: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        convert(tmp_path / "net.onnx", tmp_path / "x.onnx", precision=precision, provider=provider)


def test_missing_calibration_data(tmp_path: Path) -> None:
    source, path = network(tmp_path / "net.onnx"), tmp_path / "x.onnx"
    with pytest.raises(
        DataError, match=r"could not calibrate: data is missing, expected a data set\. int8 needs"
    ):
        convert(source, path, precision="int8")
    with pytest.raises(DataError, match=r"data.calib is empty"):
        convert(source, path, precision="int8", data=data_of(calib=0))
    with pytest.raises(
        DataError, match=r"input is of shape \[\[1, 3, 8, 8\]\], expected one input like the images"
    ):
        convert(source, path, precision="int8", data=data_of(shape=(1, 8, 8)))
    assert not path.exists()


def test_numbers_that_half_floats_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    big = network(tmp_path / "weight.onnx", last=1e5)
    with pytest.raises(ExportError, match=r"the largest weight of 'w4' is \d+, expected at most 65504"):
        convert(big, path, precision="fp16")
    hot = network(tmp_path / "activation.onnx", scale=3e4)
    with pytest.raises(
        ExportError, match=r"the activation '\w+' on random inputs at batch 1 is .* 65504, the larg"
    ):
        convert(hot, path, precision="fp16")
    assert not path.exists()


def test_arguments_that_are_wrong(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"path is .*net.onnx, the float32 file itself, expected another"):
        convert(source, source.path, precision="fp16")
    with pytest.raises(UsageError, match="tolerance is 0, expected a number above 0"):
        convert(source, tmp_path / "x.onnx", precision="fp16", tolerance=0)
    with pytest.raises(UsageError, match="images is 0"):
        convert(source, tmp_path / "x.onnx", precision="int8", data=data_of(), images=0)
    with pytest.raises(ArtifactError, match="not a file"):
        convert(tmp_path / "absent.onnx", tmp_path / "x.onnx", precision="fp16")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx.ModelProto(producer_name="nobody").SerializeToString())
    with pytest.raises(ExportError, match=r"broken.onnx is not a file that onnx can read"):
        convert(broken, tmp_path / "x.onnx", precision="fp16")


def test_a_variant_that_differs_too_much(tmp_path: Path) -> None:
    source, path = network(tmp_path / "net.onnx"), tmp_path / "x.onnx"
    with pytest.raises(ExportError, match=r"difference to the float32 file is .* expected at most 1e-09"):
        convert(source, path, precision="fp16", tolerance=1e-9)
    assert not path.exists()


def test_sizes_that_are_open(tmp_path: Path) -> None:
    graph = onnx.load(network(tmp_path / "net.onnx", batch="N").path)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(graph, tmp_path / "open.onnx")
    with pytest.raises(ExportError, match="the input is open in 'input' beyond its batch"):
        convert(tmp_path / "open.onnx", tmp_path / "x.onnx", precision="fp16")


def test_what_the_converters_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime.transformers.float16 as tool

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(tool, "convert_float_to_float16", fail)
    with pytest.raises(ExportError, match=r"onnxruntime cannot halve it \(RuntimeError: no\)"):
        convert(network(tmp_path / "net.onnx"), tmp_path / "x.onnx", precision="fp16")


# --- more networks and providers ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("provider", INT8)
@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_int8_for_each_provider(tmp_path: Path, provider: str, batch: int | str) -> None:
    source = network(tmp_path / "net.onnx", batch=batch)
    made = convert(source, tmp_path / "x.onnx", precision="int8", provider=provider, data=data_of())
    assert made.parity_error is not None
    assert 0 < made.parity_error < 0.2
    weights = {value.name: numpy_helper.to_array(value) for value in onnx.load(made.path).graph.initializer}
    kinds = {
        value.dtype for name, value in weights.items() if name.endswith("zero_point") and value.ndim == 0
    }
    assert kinds == {np.dtype(np.int8 if provider == XNNPACK else np.uint8)}
    assert weights["w2_scale"].shape == (8,), "a scale for each channel of the depthwise convolution"
    stored = [
        value for name, value in weights.items() if name.endswith("quantized") and value.dtype == np.int8
    ]
    largest = max(np.abs(value.astype(int)).max() for value in stored)
    assert (largest > 64) == (provider != CPU)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("tiny", [0.0, 1e-6, 1e-12, 1e-30])
def test_a_channel_of_tiny_weights(tmp_path: Path, precision: str, tiny: float) -> None:
    source, data = network(tmp_path / "net.onnx", tiny=tiny), data_of()
    made = convert(source, tmp_path / "x.onnx", precision=precision, data=data)
    assert made.parity_error is not None
    assert made.parity_error < (0.2 if precision == "int8" else 2e-3)


@pytest.mark.slow
def test_weights_below_the_least_half_float_become_zero(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx", tiny=1e-12)
    made = convert(source, tmp_path / "x.onnx", precision="fp16")
    stored = {value.name: numpy_helper.to_array(value) for value in onnx.load(made.path).graph.initializer}
    assert not stored["w1"][0].any(), "the converter itself would raise them to 6e-8"
    assert stored["w1"][1].any()


class Residual(nn.Module):
    """Batch norms that the export folds, a residual, a depthwise convolution, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.body(x)).relu().mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "provider"), [("fp16", CPU), ("int8", CPU), ("int8", XNNPACK), ("int8", QNN)]
)
def test_an_exported_network(tmp_path: Path, precision: str, provider: str) -> None:
    torch.manual_seed(0)
    net, data = Residual(), data_of()
    for _ in range(5):
        net(torch.randn(16, 3, 8, 8))  # statistics of the batch norms
    source = export(net.eval(), data.example, tmp_path / "net.onnx", data=data, provenance={"role": "slim"})
    made = convert(source, tmp_path / "x.onnx", precision=precision, provider=provider, data=data)
    assert made.provenance["role"] == "slim"
    assert made.parity_error is not None
    assert made.parity_error < (0.2 if precision == "int8" else 2e-3)
    assert made.provenance["precision"]["source"]["accuracy"] == source.accuracy
    assert str(tmp_path) not in made.path.read_bytes().decode(errors="replace")
    images, _ = next(iter(data.test))
    error = np.abs(outputs(made.path, images) - outputs(source.path, images)).max()
    assert error < 0.2 * np.abs(outputs(source.path, images)).max()


@pytest.mark.slow
def test_nothing_to_quantize(tmp_path: Path) -> None:
    source = export(nn.Flatten(), torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"nothing in it can be quantized\. It has no convolution"):
        convert(source, tmp_path / "x.onnx", precision="int8", data=data_of())


@pytest.mark.slow
def test_what_onnxruntime_cannot_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization as tool

    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(tool, "quantize_static", fail)
    with pytest.raises(ExportError, match=r"onnxruntime cannot quantize it \(ValueError: no\)"):
        convert(network(tmp_path / "net.onnx"), tmp_path / "x.onnx", precision="int8", data=data_of())


SAME_BYTES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from edgeprune.variants import convert
from onnx_networks import data_of, network
folder = Path(sys.argv[2])
CPU, XNNPACK, QNN = (f"{name}ExecutionProvider" for name in ("CPU", "Xnnpack", "QNN"))
source = network(folder / "net.onnx")
for precision, provider in (("fp16", QNN), ("int8", CPU), ("int8", XNNPACK), ("int8", QNN)):
    made = convert(source, folder / "x.onnx", precision=precision, provider=provider, data=data_of())
    print(made.sha256)
"""


@pytest.mark.slow
def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    found = []
    for seed in "12":
        folder = tmp_path / seed
        folder.mkdir()
        child = subprocess.run(
            [sys.executable, "-c", SAME_BYTES, str(Path(__file__).parent), str(folder)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(child.stdout)
    assert found[0] == found[1]
    assert len(set(found[0].split())) == 4
