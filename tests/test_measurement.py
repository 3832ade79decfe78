"""The logic of a bench on a fake device, then the real one on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.errors import ArtifactError, MeasurementError, UsageError
from edgeprune.files import write_json
from edgeprune.measurement import Measurement, bench, load_measurement
from edgeprune.metrics import METRICS, Estimate
from edgeprune.runners import RUNNERS
from edgeprune.target import Runtime, Target

TARGET = Target("test device", 8, Runtime(), (), Path("test.toml"), "ab" * 32)
SLIM = Artifact(
    Path("run/slim.onnx"), "cd" * 32, 600, (1, 3, 8, 8), macs=50, params=30, parity_error=1e-6,
    accuracy={"val": 0.91, "test": 0.9}, provenance={"plan": "x"},
)  # fmt: skip
DENSE = replace(
    SLIM,
    path=Path("run/dense.onnx"),
    size_bytes=1000,
    macs=100,
    params=60,
    accuracy={"val": 0.94, "test": 0.95},
)


class FakeRunner:
    """A device where slim takes half of dense's 2 ms; each process is as much slower as ``slowness`` says."""

    environment: dict[str, Any] = {"load_average": 0.1, "cores": 4, "governor": None}  # noqa: RUF012
    slowness: Callable[[int], float] = staticmethod(lambda process: 1 + 0.001 * process)
    left_to_cpu: Sequence[dict[str, str]] = ()
    memory_why: str | None = None
    memory_step_bytes = 1000
    dense_shape = (1, 3, 8, 8)
    device_notes: Sequence[str] = ()
    closed = False

    def __init__(self, _: Runtime) -> None:
        self.calls: list[tuple[str, list[str], dict[str, Any]]] = []

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        self.calls.append((job, [path.stem for path in models], options))
        times = sum(1 for name, _, _ in self.calls if name == job)
        if job == "environment":
            return self.environment
        if job == "placement":
            shape = self.dense_shape if models[0].stem == "dense" else (1, 3, 8, 8)
            inputs = [{"name": "x", "type": "tensor(float)", "shape": list(shape)}]
            nodes = {"CPUExecutionProvider": 5}
            return {"source": "fake", "nodes": nodes, "left_to_cpu": list(self.left_to_cpu), "inputs": inputs}
        if job == "memory":
            peak = None if self.memory_why else (4 if models[0].stem == "dense" else 1) * 10**6
            peak = peak and peak + self.memory_step_bytes * times
            figures = dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes"), peak)
            return {**figures, "method": "fake", "why": self.memory_why}
        return {"models": [self._timed(path.stem, times - 1, options["runs"]) for path in models]}

    def notes(self) -> list[str]:
        return list(self.device_notes)

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def _timed(self, name: str, process: int, runs: int) -> dict[str, Any]:
        ns = round((2_000_000 if name == "dense" else 1_000_000) * self.slowness(process))
        return {"samples_ns": [ns + k for k in range(runs)], "load_ns": 3 * ns, "first_ns": 2 * ns}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    """The class of the runner, so that a test can set how the device behaves."""

    class Device(FakeRunner):
        last: FakeRunner

        def __init__(self, runtime: Runtime) -> None:
            super().__init__(runtime)
            Device.last = self

    monkeypatch.setitem(RUNNERS, "local", Device)
    return Device


@pytest.mark.usefixtures("device")
def test_values() -> None:
    measured = bench(SLIM, TARGET, baseline=DENSE)
    ratio = measured.latency_ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5, rel=1e-3)
    assert ratio.low < 0.5 < ratio.high
    p50 = measured.value("latency_p50")
    assert isinstance(p50, Estimate)
    assert p50.value == pytest.approx(1e-3, rel=0.01)
    throughput = measured.value("throughput")
    assert isinstance(throughput, Estimate)
    assert throughput.value == pytest.approx(1 / p50.value)
    assert throughput.low < throughput.value < throughput.high
    load = measured.value("load_time")
    assert isinstance(load, Estimate)
    assert load.value == pytest.approx(3e-3, rel=0.01)
    expected = {
        "size": 600, "size_ratio": 0.6, "params": 30, "params_ratio": 0.5, "macs": 50, "macs_ratio": 0.5,
        "accuracy": 0.9, "accuracy_drop": 0.05, "parity_error": 1e-6, "cpu_nodes": 0,
        "peak_memory": 1_002_000, "peak_memory_ratio": 1_002_000 / 4_005_000,
    }  # fmt: skip
    for metric, value in expected.items():
        assert measured.value(metric) == pytest.approx(value), metric
    assert measured.notes == ()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("baseline", [None, DENSE])
@pytest.mark.parametrize("artifact", [SLIM, Artifact(Path("a.onnx"), "ef" * 32, 10)])
def test_every_metric_has_a_value_or_a_reason(artifact: Artifact, baseline: Artifact | None) -> None:
    measured = bench(artifact, TARGET, baseline=baseline, processes=2, runs=20)
    for metric in METRICS:
        assert (measured.value(metric) is None) != (measured.why_unmeasured(metric) is None), metric


def test_reasons(device: type[FakeRunner]) -> None:
    device.memory_why = "this system has no /proc"
    bare = replace(SLIM, path=Path("bare.onnx"), macs=None, accuracy={})
    measured = bench(bare, TARGET, baseline=replace(DENSE, params=None), processes=2, runs=20)
    for metric, reason in {
        "latency_p95": "It takes 130 samples, and there are 40.",
        "instructions": "This version does not count instructions.",
        "instructions_ratio": "This version does not count instructions.",
        "peak_memory": "this system has no /proc.",
        "peak_memory_ratio": "this system has no /proc.",
        "macs": "No sidecar tells the macs of bare.onnx: `edgeprune export` writes one.",
        "params_ratio": "No sidecar tells the params of dense.onnx: `edgeprune export` writes one.",
        "accuracy_drop": "No sidecar tells the accuracy of bare.onnx: `edgeprune export` writes one.",
    }.items():
        assert measured.why_unmeasured(metric) == reason
    nothing = bench(SLIM, TARGET, baseline=replace(DENSE, macs=0), processes=2, runs=20)
    assert nothing.why_unmeasured("macs_ratio") == "It is 0 for the dense network."
    alone = bench(SLIM, TARGET)
    assert alone.pairs == []
    assert alone.latency_ratio is None
    assert alone.why_unmeasured("size_ratio") == (
        "No dense network was measured beside it: give one as the baseline."
    )
    assert alone.why_unmeasured("size") is None
    with pytest.raises(KeyError):
        alone.value("nonesuch")


@pytest.mark.usefixtures("device")
def test_accuracy_is_that_of_the_test_split_alone() -> None:
    # The validation split has chosen the network: a budget must not pass on it.
    val_only = replace(SLIM, accuracy={"val": 0.9})
    measured = bench(val_only, TARGET, baseline=DENSE)
    for metric in ("accuracy", "accuracy_drop"):
        assert measured.value(metric) is None
        assert measured.why_unmeasured(metric) == (
            f"No sidecar tells the accuracy of {SLIM.path.name}: `edgeprune export` writes one."
        )
    assert bench(SLIM, TARGET, baseline=DENSE).value("accuracy") == SLIM.accuracy["test"]


def test_the_order_of_work(device: Any) -> None:
    steps: list[tuple[int, int, str]] = []
    bench(SLIM, TARGET, baseline=DENSE, processes=3, runs=70, on_progress=lambda *step: steps.append(step))
    calls = device.last.calls
    assert [(job, models) for job, models, _ in calls] == [
        ("environment", []),
        ("placement", ["slim"]),
        ("placement", ["dense"]),
        ("latency", ["slim", "dense"]),
        ("latency", ["dense", "slim"]),
        ("latency", ["slim", "dense"]),
        *[("memory", ["slim"])] * 3,
        *[("memory", ["dense"])] * 3,
    ]
    assert calls[3][2] == {"runs": 70, "min_runs": 44, "seconds": 3.0}  # 3 x 44 >= 130
    assert [done for done, _, _ in steps] == list(range(13))
    assert {total for _, total, _ in steps} == {12}
    assert steps[3][2] == "latency, process 1 of 3"


def test_samples_stay_with_their_model_and_process(device: type[FakeRunner]) -> None:
    device.slowness = staticmethod(lambda process: 1.0 + process)
    measured = bench(SLIM, TARGET, baseline=DENSE, processes=3, runs=20)
    assert [samples[0] for samples in measured.latency_samples_s] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [pairs[0] for pairs in measured.pairs] == [
        pytest.approx((1e-3, 2e-3)), pytest.approx((2e-3, 4e-3)), pytest.approx((3e-3, 6e-3))
    ]  # fmt: skip
    assert measured.first_inference_s == pytest.approx((2e-3, 4e-3, 6e-3))


def test_notes_of_both_networks(device: type[FakeRunner]) -> None:
    device.environment = {"load_average": 9.0, "cores": 4, "governor": None}
    device.slowness = staticmethod(lambda process: 1 + 0.02 * process)
    device.memory_step_bytes = 600_000
    device.left_to_cpu = [{"name": "a", "op_type": "Relu"}]
    notes = bench(SLIM, TARGET, baseline=DENSE).notes
    assert [note.partition(":")[0] for note in notes] == [
        "The load average was 9.0 on 4 cores", *["slim.onnx"] * 3, *["dense.onnx"] * 3
    ]  # fmt: skip


# --- JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_why", [None, "no /proc"])
@pytest.mark.parametrize("baseline", [None, DENSE])
def test_json_round_trip(
    device: type[FakeRunner], tmp_path: Path, baseline: Artifact | None, memory_why: str | None
) -> None:
    device.memory_why = memory_why
    target = replace(TARGET, runtime=Runtime(input=(1, 3, 8, 8)))
    measured = bench(SLIM, target, baseline=baseline, processes=2, runs=10)
    write_json(tmp_path / "measurement.json", measured.to_json())
    again = load_measurement(tmp_path / "measurement.json")
    assert again == measured
    assert again.artifact.path == Path("slim.onnx")
    assert again.target_sha256 == TARGET.sha256


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(key)


def _with(value: Any, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(2, "format"), "of another format"),
        (_without("format"), "of another format"),
        (_without("notes"), "with notes missing or unknown"),
        (_with(1, "extra"), "with extra missing or unknown"),
        (_with(1, "target_name"), "wrong in 'target_name'"),
        (_with([[1.0], []], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [-1.0]], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [float("nan")]], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [float("inf")]], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [1.0]], "latency_samples_s"), "without a partner for each sample"),
        (_with([1.0], "load_s"), "wrong in 'load_s'"),
        (_with(None, "memory", "peak_bytes"), "wrong in 'memory'"),
        (_with({}, "memory"), "wrong in 'memory'"),
        (_with([1], "placement", "left_to_cpu"), "wrong in 'placement'"),
        (_with("many", "artifact", "macs"), "wrong in 'artifact'"),
        (_with({"test": "good"}, "artifact", "accuracy"), "wrong in 'artifact'"),
        (_with({}, "artifact"), "wrong in 'artifact'"),
        (_with([1], "notes"), "wrong in 'notes'"),
        (_with({}, "baseline"), "of another format of its baseline"),
        (_with(True, "baseline", "artifact", "size_bytes"), "wrong in 'artifact' of its baseline"),
        (_with({"format": 1}, "baseline", "baseline"), "with a baseline of its baseline"),
    ],
)
@pytest.mark.usefixtures("device")
def test_strict_reading(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    content = json.loads(json.dumps(bench(SLIM, TARGET, baseline=DENSE, processes=2, runs=10).to_json()))
    Measurement.from_json(content)
    change(content)
    path = tmp_path / "measurement.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        ArtifactError, match=f"could not read the measurement: .*measurement.json is {message}"
    ):
        load_measurement(path)


@pytest.mark.parametrize("text", [None, "{", "[]", "1"])
def test_files_that_are_no_measurement(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "measurement.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=r"could not read the measurement: .*measurement.json is "):
        load_measurement(path)


# --- bad input ----------------------------------------------------------------------------------------------


def test_precision_that_this_version_cannot_measure() -> None:
    target = replace(TARGET, runtime=Runtime(precision="int8"))
    with pytest.raises(
        MeasurementError, match=r"runtime.precision is 'int8', expected 'fp32'\..*runs the ONNX file as it is"
    ):
        bench(SLIM, target)


@pytest.mark.parametrize(("option", "least"), [("processes", 2), ("runs", 1)])
def test_too_few_processes_or_runs(option: str, least: int) -> None:
    with pytest.raises(
        UsageError, match=f"could not plan the measurement: {option} is {least - 1}, expected >= {least}"
    ):
        bench(SLIM, TARGET, **{option: least - 1})  # type: ignore[arg-type]


def test_dense_network_with_another_input(device: type[FakeRunner]) -> None:
    device.dense_shape = (1, 3, 16, 16)
    expected = (
        r"input of dense.onnx is tensor\(float\) 1x3x16x16, expected tensor\(float\) 1x3x8x8 as of slim.onnx"
    )
    with pytest.raises(ArtifactError, match=expected):
        bench(SLIM, TARGET, baseline=DENSE)


# --- the real device ----------------------------------------------------------------------------------------


def _conv(path: Path, width: int) -> Path:
    """Three convolutions of ``width`` channels on 1x3x24x24."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "x", 3
    for layer in range(3):
        weight = rng.standard_normal((width, channels, 3, 3), dtype=np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"y{layer}"], pads=[1] * 4))
        last, channels = f"y{layer}", width
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 24, 24])
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name=last)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_real_slim_network_is_found_faster_and_smaller(tmp_path: Path) -> None:
    slim, dense = _conv(tmp_path / "slim.onnx", 32), _conv(tmp_path / "dense.onnx", 128)
    replace(load_artifact(slim), macs=1).write_sidecar()
    measured = bench(slim, TARGET, baseline=dense, processes=4, runs=20)
    ratio = measured.latency_ratio
    assert ratio is not None
    assert ratio.high < 0.7
    size = measured.value("peak_memory_ratio")
    assert isinstance(size, float)
    assert size < 0.7
    assert measured.placement["nodes"] == {"CPUExecutionProvider": 3}
    assert measured.value("macs") == 1
    assert measured.baseline is not None
    assert measured.baseline.environment["onnxruntime"]
    assert Measurement.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_real_identical_networks_are_not_called_different(tmp_path: Path) -> None:
    same = [_conv(tmp_path / name, 32) for name in ("a.onnx", "b.onnx")]
    ratio = bench(same[0], TARGET, baseline=str(same[1]), processes=4, runs=20).latency_ratio
    assert ratio is not None
    assert ratio.low < 1 < ratio.high


def test_real_broken_dense_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "dense.onnx").write_bytes(_conv(tmp_path / "slim.onnx", 8).read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"could not run the ONNX file: .*dense.onnx is not a model"):
        bench(tmp_path / "slim.onnx", TARGET, baseline=tmp_path / "dense.onnx", processes=2)


def test_real_absent_provider_is_not_measured(tmp_path: Path) -> None:
    target = replace(TARGET, runtime=Runtime(provider="CUDAExecutionProvider"))
    with pytest.raises(MeasurementError, match=r"CUDAExecutionProvider is absent .*onnxruntime-gpu"):
        bench(_conv(tmp_path / "slim.onnx", 8), target)


def test_the_runner_is_left_alone_in_the_end(device: type[FakeRunner]) -> None:
    device.device_notes = ("it is hot",)
    assert "it is hot" in bench(SLIM, TARGET, processes=2).notes
    assert device.last.closed
    device.dense_shape = (1, 3, 9, 9)
    with pytest.raises(ArtifactError, match="could not compare"):
        bench(SLIM, TARGET, baseline=DENSE, processes=2)
    assert device.last.closed
