"""Real providers other than the CPU's, in environments that scripts/test_providers builds and names."""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import edgeprune as ep
from edgeprune.artifact import Artifact
from edgeprune.availability import find_providers
from edgeprune.errors import MeasurementError
from edgeprune.files import sha256_file
from edgeprune.onnx_macs import macs_by_node
from edgeprune.target import Runtime, Target
from tests.conftest import run

pytestmark = pytest.mark.providers

CPU = "CPUExecutionProvider"
NAMES = {
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}


def python_of(name: str) -> str:
    """The interpreter that scripts/providers printed."""
    if "EDGEPRUNE_PROVIDERS" not in os.environ:
        pytest.fail("there are no environments: run scripts/test_providers, which builds them")
    line = Path(os.environ["EDGEPRUNE_PROVIDERS"], f"{name}.toml").read_text()
    return str(tomllib.loads(line)["python"])


def target(name: str, *, strict: bool = False, **options: str) -> Target:
    runtime = Runtime(
        provider=NAMES[name], python=python_of(name), strict=strict, provider_options=dict(options)
    )
    return Target(name, 8, runtime, (), Path(f"{name}.toml"), "ab" * 32)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """ResNet-20 on 3x32x32, random but for norms that fit."""
    torch.manual_seed(0)
    network = ep.load_model("resnet20", num_classes=10).train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(16, 3, 32, 32))
        # XNNPACK's Gemm crashes without a bias in onnxruntime 1.21, and one of zeros is taken out by onnxsim.
        network.linear.bias.normal_()
    return ep.export(network.eval(), torch.zeros(1, 3, 32, 32), tmp_path_factory.mktemp("fp32") / "r20.onnx")


@pytest.fixture(scope="module")
def int8(fp32: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same, quantized as QNN wants it, with a sidecar."""
    from onnxruntime.quantization import CalibrationDataReader, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter(
                {"input": np.random.default_rng(seed).standard_normal((1, 3, 32, 32), dtype=np.float32)}
                for seed in range(8)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    folder = tmp_path_factory.mktemp("int8")
    model = onnx.load(fp32.path)
    del model.metadata_props[:]  # onnxruntime's preprocessing for QNN trips over them
    onnx.save(model, folder / "bare.onnx")
    path = folder / "r20.int8.onnx"
    quantize(str(folder / "bare.onnx"), str(path), get_qnn_qdq_config(str(folder / "bare.onnx"), Images()))
    macs = macs_by_node(onnx.load(path))
    facts = replace(fp32, path=path, sha256=sha256_file(path), size_bytes=path.stat().st_size)
    artifact = replace(facts, provenance={"macs_by_node": macs})
    artifact.write_sidecar()
    return artifact


def test_xnnpack_takes_the_convolutions_and_the_rest_is_named(fp32: Artifact) -> None:
    measured = ep.bench(fp32, target("xnnpack"), processes=2, runs=20)
    placement = measured.placement
    assert placement["source"] == "profile"  # Debian's onnxruntime is older than the record
    took = Counter(kind for _, kind in placement["assigned"][NAMES["xnnpack"]])
    assert took == {"Conv": 19, "Gemm": 1}
    left = Counter(node["op_type"] for node in placement["left_to_cpu"])
    assert left["Add"] == 9
    assert not {"Conv", "FusedConv", "Gemm"} & set(left)
    assert all(node["name"] for node in placement["left_to_cpu"])
    assert placement["macs_share"] == {NAMES["xnnpack"]: 1.0, CPU: 0.0}
    assert 1 < placement["partitions"] <= 20
    assert placement["functional_only"] is None
    assert measured.value("latency_p50") is not None
    assert measured.value("cpu_nodes") == len(placement["left_to_cpu"])
    assert any("left" in note and "9 Add" in note for note in measured.notes)


def test_qnn_on_the_simulator_in_strict_mode(int8: Artifact) -> None:
    measured = ep.bench(int8, target("qnn", strict=True, backend_type="htp"))
    placement = measured.placement
    assert set(placement["nodes"]) == {NAMES["qnn"]}
    assert placement["left_to_cpu"] == []
    assert placement["macs_share"] == {NAMES["qnn"]: 1.0}
    assert measured.value("partitions") == 1.0
    assert measured.value("cpu_nodes") == 0.0
    assert "simulator" in placement["functional_only"]
    for metric in ("latency_p50", "throughput", "load_time", "peak_memory"):
        assert measured.value(metric) is None
        assert "simulator" in str(measured.why_unmeasured(metric))


def test_qnn_leaves_quantization_of_the_ends_to_the_cpu_unless_strict(int8: Artifact) -> None:
    placement = ep.bench(int8, target("qnn")).placement
    assert sorted(node["op_type"] for node in placement["left_to_cpu"]) == [
        "DequantizeLinear",
        "QuantizeLinear",
    ]
    assert placement["partitions"] == 1


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("gpu", "is listed, but took none of the .* nodes"),  # fails to initialise, and the session is made
        ("cpu", "is without the backend 'cpu'"),
        ("npu", "is without a backend 'npu'.*QNN has htp, gpu, cpu"),
    ],
)
def test_qnn_backend_that_does_not_start_is_not_measured(int8: Artifact, backend: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=f"QNNExecutionProvider {message}") as caught:
        ep.bench(int8, target("qnn", backend_type=backend))
    assert caught.value.exit_code == 3


def test_bench_and_gate_say_could_not_measure(
    int8: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hexagon.toml"
    path.write_text(
        f'name = "Hexagon"\n[runtime]\nprovider = "{NAMES["qnn"]}"\npython = "{python_of("qnn")}"\n'
        'strict = true\n[budgets]\nmax_latency_p50 = "5 ms"\nmax_cpu_nodes = 0\nmax_partitions = 1\n'
    )
    saved = tmp_path / "measurement.json"
    code, _, _ = run(capsys, "bench", str(int8.path), "--target", str(path), "--save", str(saved))
    assert code == 0
    code, out, _ = run(capsys, "gate", str(saved), "--target", str(path), "--json")
    assert code == 3
    states = [verdict["state"] for verdict in json.loads(out)["verdicts"]]
    assert states == ["cannot tell", "passed", "passed"]
    assert "could not measure: QNN runs on a simulator" in json.loads(out)["verdicts"][0]["text"]


def test_doctor_tells_a_simulator_from_a_device() -> None:
    found = {
        (one.provider, one.python): one for one in find_providers([python_of("qnn"), python_of("xnnpack")])
    }
    qnn, xnnpack = (found[NAMES[name], python_of(name)] for name in ("qnn", "xnnpack"))
    assert (qnn.state, xnnpack.state) == ("runs", "runs")
    assert "simulator" in qnn.time
    assert xnnpack.time_is_real


@pytest.mark.slow
def test_openvino_takes_all(fp32: Artifact) -> None:
    measured = ep.bench(fp32, target("openvino", strict=True, device_type="CPU"), processes=2, runs=20)
    assert set(measured.placement["nodes"]) == {NAMES["openvino"]}
    assert measured.placement["macs_share"] == {NAMES["openvino"]: 1.0}
    assert measured.value("partitions") == 1.0
    assert measured.value("latency_p50") is not None


@pytest.mark.slow
def test_webgpu_takes_all_and_is_not_timed_on_software(fp32: Artifact) -> None:
    measured = ep.bench(fp32, target("webgpu", strict=True))
    assert set(measured.placement["nodes"]) == {NAMES["webgpu"]}
    assert measured.placement["macs_share"] == {NAMES["webgpu"]: 1.0}
    if measured.placement["functional_only"]:  # no GPU here
        assert "SwiftShader" in measured.placement["functional_only"]
        assert measured.value("latency_p50") is None
