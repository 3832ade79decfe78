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
from edgeprune.benchmark import bench
from edgeprune.errors import ArtifactError, MeasurementError, UsageError
from edgeprune.files import write_json
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.metrics import METRICS, Estimate
from edgeprune.report import make_report, report_html, report_markdown
from edgeprune.runners import RUNNERS
from edgeprune.target import Budget, Runtime, Target
from edgeprune.verdict import exit_code, gate

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
    machine: dict[str, Any] = {}  # noqa: RUF012
    left_to_cpu: Sequence[dict[str, str]] = ()
    memory_why: str | None = None
    memory_step_bytes = 1000
    count_step = 0
    dense_shape = (1, 3, 8, 8)
    of_placement: dict[str, Any] = {}  # noqa: RUF012
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
            found = {
                "source": "fake",
                "nodes": nodes,
                "left_to_cpu": list(self.left_to_cpu),
                "inputs": inputs,
            }
            return found | self.of_placement
        if job == "instructions":
            count = 4000 if models[0].stem == "dense" else 1000
            return {"count": count + self.count_step * (times % 3), "method": "fake counter"}
        if job == "memory":
            peak = None if self.memory_why else (4 if models[0].stem == "dense" else 1) * 10**6
            peak = peak and peak + self.memory_step_bytes * times
            figures = dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes"), peak)
            answer = {**figures, "method": "fake", "why": self.memory_why, "arena": None, "device": None}
            if options["arena"]:
                share = peak and peak // 4
                told = {"method": share and "fake", "why": self.memory_why}
                answer |= {"arena": {"peak_bytes": share, "held_bytes": share, **told}}
                answer |= {"device": {"peak_bytes": None, "method": None, "why": "it has no GPU"}}
            return answer
        models_ = [self._timed(path.stem, times - 1, options["runs"]) for path in models]
        return {"models": models_, "machine": self.machine}

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
    assert measured.cold_start_s == pytest.approx([5 * p50.value] * 20, rel=0.01)
    for metric, value in {"first_inference": 2e-3, "cold_start": 5e-3, "cold_start_ratio": 0.5}.items():
        found = measured.value(metric)
        assert isinstance(found, Estimate)
        assert found.value == pytest.approx(value, rel=0.01)
        assert found.low < found.value < found.high
    expected = {
        "size": 600, "size_ratio": 0.6, "params": 30, "params_ratio": 0.5, "macs": 50, "macs_ratio": 0.5,
        "accuracy": 0.9, "accuracy_drop": 0.05, "parity_error": 1e-6, "cpu_nodes": 0,
        "peak_memory": 1_002_000, "peak_memory_ratio": 1_002_000 / 4_005_000,
        "arena_memory": 250_250, "arena_memory_ratio": 250_250 / 1_001_000,
    }  # fmt: skip
    for metric, value in expected.items():
        assert measured.value(metric) == pytest.approx(value), metric
    assert measured.notes == ()


def test_a_simulator_has_neither_time_nor_memory(device: type[FakeRunner]) -> None:
    device.of_placement = {"functional_only": "a simulator runs it", "partitions": 1, "assigned": {"CPU": []}}
    measured = bench(SLIM, TARGET, baseline=DENSE)
    assert {job for job, _, _ in device.last.calls} == {"environment", "placement"}
    for metric in METRICS:
        of_the_device = metric.startswith(
            ("latency", "throughput", "load", "first", "cold", "peak", "arena", "device", "instructions")
        )
        assert measured.is_out_of_reach(metric) == of_the_device
        if of_the_device:
            assert measured.value(metric) is None
            assert measured.why_unmeasured(metric) == "a simulator runs it."
    assert measured.value("size_ratio") == 0.6
    assert measured.value("partitions") == 1.0
    assert measured.latency_samples_s == measured.load_s == measured.first_inference_s == ()
    assert measured.memory["peak_bytes"] is None
    assert measured.memory["why"] == "a simulator runs it"
    assert measured.notes == ("Neither latency nor memory was measured: a simulator runs it.",)
    content = json.loads(json.dumps(measured.to_json()))
    assert Measurement.from_json(content) == measured
    content["latency_samples_s"] = [[1e-3], [1e-3]]  # a figure that cannot be
    with pytest.raises(ArtifactError, match="wrong in 'latency_samples_s'"):
        Measurement.from_json(content)
    (verdict,) = gate([Budget("max_latency_p50", "latency_p50", True, 1.0, "1 s")], measured)
    assert (verdict.state, exit_code([verdict])) == ("cannot tell", 3)
    page = report_html(make_report(measured, [verdict], command=""))
    assert "Every timed inference" not in page
    assert "Functional only, neither time nor memory: a simulator runs it." in page


def test_share_of_macs_comes_from_the_sidecar(device: type[FakeRunner]) -> None:
    device.of_placement = {"assigned": {"CPUExecutionProvider": [["a", "Conv"]], "Npu": [["b", "Conv"]]}}
    known = replace(SLIM, provenance={"macs_by_node": {"a": 10, "b": 30}})
    measured = bench(known, TARGET, processes=2, runs=20)
    assert measured.placement["macs_share"] == {"CPUExecutionProvider": 0.25, "Npu": 0.75}
    text = report_markdown(make_report(measured, (), command=""))
    assert "Multiply-adds by provider: Npu 75.00 %, CPUExecutionProvider 25.00 %." in text
    unknown = bench(SLIM, TARGET, processes=2, runs=20)
    assert unknown.placement["macs_share"] is None
    text = report_markdown(make_report(unknown, (), command=""))
    assert "Multiply-adds by provider: not known. No sidecar tells" in text


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
        "instructions": "Instructions were not counted: `edgeprune bench --instructions` does that.",
        "instructions_ratio": "Instructions were not counted: `edgeprune bench --instructions` does that.",
        "peak_memory": "this system has no /proc.",
        "peak_memory_ratio": "this system has no /proc.",
        "arena_memory": "this system has no /proc.",
        "device_memory_ratio": "it has no GPU.",
        "macs": "No sidecar tells the macs of bare.onnx: `edgeprune export` writes one.",
        "params_ratio": "No sidecar tells the params of dense.onnx: `edgeprune export` writes one.",
        "accuracy_drop": "No sidecar tells the accuracy of bare.onnx: `edgeprune export` writes one.",
    }.items():
        assert measured.why_unmeasured(metric) == reason
    nothing = bench(SLIM, TARGET, baseline=replace(DENSE, macs=0), processes=2, runs=20)
    assert nothing.why_unmeasured("macs_ratio") == ("It is 0 for the dense network, and not for this one.")
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
def test_ratios_against_the_dense_network() -> None:
    measured = bench(SLIM, TARGET, baseline=DENSE, processes=10)
    time = measured.value("latency_ratio")
    assert isinstance(time, Estimate)
    assert measured.value("throughput_ratio") == Estimate(
        1 / time.value, 1 / time.high, 1 / time.low, time.confidence, time.more_runs
    )
    for metric in ("latency_p90", "latency_p95", "latency_p99", "load_time", "first_inference", "cold_start"):
        ratio = measured.value(f"{metric}_ratio")
        assert isinstance(ratio, Estimate)
        assert ratio.value == pytest.approx(0.5, rel=1e-3)
        assert ratio.low <= 0.5 / 1.029  # nothing under 3 % is claimed
        assert ratio.high >= 0.5 * 1.029
    few = bench(SLIM, TARGET, baseline=DENSE, processes=2)
    assert few.why_unmeasured("latency_p99_ratio") == "It takes 662 samples, and there are 140."


@pytest.mark.parametrize(("slim", "dense", "ratio"), [(0, 0, 1.0), (2, 4, 0.5), (0, 2, 0.0), (2, 0, None)])
@pytest.mark.usefixtures("device")
def test_a_ratio_of_what_may_be_nothing(slim: int, dense: int, ratio: float | None) -> None:
    measured = bench(SLIM, TARGET, baseline=DENSE, processes=2)
    assert measured.baseline is not None
    node = {"name": "a", "op_type": "Gather"}
    sides = [
        replace(one, placement=one.placement | {"left_to_cpu": [node] * count, "partitions": count})
        for one, count in ((measured, slim), (measured.baseline, dense))
    ]
    both = replace(sides[0], baseline=sides[1])
    for metric in ("cpu_nodes_ratio", "partitions_ratio"):
        assert both.value(metric) == ratio
        why = "It is 0 for the dense network, and not for this one."
        assert both.why_unmeasured(metric) == (why if ratio is None else None)
    unknown = replace(sides[0], baseline=measured.baseline)
    assert unknown.why_unmeasured("partitions_ratio") == (
        "The runner does not tell the order in which the nodes run."
    )


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
        *[("memory", ["slim"])] * 3,
        *[("memory", ["dense"])] * 3,
        ("latency", ["slim", "dense"]),
        ("latency", ["dense", "slim"]),
        ("latency", ["slim", "dense"]),
    ]
    assert [options["arena"] for job, _, options in calls if job == "memory"] == [True, False, False] * 2
    assert calls[9][2] == {"runs": 70, "min_runs": 44, "seconds": 3.0}  # 3 x 44 >= 130
    assert [done for done, _, _ in steps] == list(range(13))
    assert {total for _, total, _ in steps} == {12}
    assert steps[9][2] == "latency, process 1 of at most 3"


COUNTING = replace(TARGET, budgets=(Budget("max_instructions", "instructions", True, 2000.0, "2000"),))


@pytest.mark.parametrize(("target", "asked"), [(TARGET, True), (COUNTING, False)])
def test_instructions_are_counted_if_asked_for_or_needed(device: Any, target: Target, asked: bool) -> None:
    device.count_step = 1
    steps: list[tuple[int, int, str]] = []
    measured = bench(
        SLIM, target, baseline=DENSE, processes=2, instructions=asked,
        on_progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert measured.value("instructions") == 1001.0
    assert measured.value("instructions_ratio") == 1001 / 4001
    assert measured.instructions == {
        "count": 1001, "method": "fake counter", "why": None, "repeats": [1001, 1002, 1000]
    }  # fmt: skip
    assert [models for job, models, _ in device.last.calls if job == "instructions"] == [
        *[["slim"]] * 3,
        *[["dense"]] * 3,
    ]
    assert [step[:2] for step in steps] == [(k, 17) for k in range(18)]
    assert not any("instructions" in note for note in measured.notes)


def test_counts_that_differ_are_noted(device: Any) -> None:
    device.count_step = 5
    notes = bench(SLIM, COUNTING, baseline=DENSE).notes
    assert notes == (
        "slim.onnx: instructions differ by 1.00% between processes: take them as no more exact than that.",
    )


def test_without_latency_nothing_is_timed(device: Any, tmp_path: Path) -> None:
    device.environment = {"load_average": 9.0, "cores": 4, "governor": None}
    steps: list[tuple[int, int, str]] = []
    measured = bench(
        SLIM, COUNTING, baseline=DENSE, latency=False, on_progress=lambda *step: steps.append(step)
    )
    assert {job for job, _, _ in device.last.calls} == {"environment", "placement", "instructions", "memory"}
    assert [step[:2] for step in steps] == [(k, 15) for k in range(16)]
    for metric in ("latency_p50", "latency_p95", "latency_ratio", "throughput", "load_time"):
        assert measured.value(metric) is None
        assert measured.why_unmeasured(metric) == "Nothing was timed."
    assert measured.value("peak_memory") is not None
    assert measured.value("instructions_ratio") == 0.25
    assert measured.notes == ()  # a load average concerns times alone
    write_json(tmp_path / "measurement.json", measured.to_json())
    assert load_measurement(tmp_path / "measurement.json") == measured


def test_an_emulated_processor_is_neither_timed_nor_weighed(device: Any) -> None:
    device.environment = device.environment | {"emulator": "qemu-x 7"}
    steps: list[tuple[int, int, str]] = []
    measured = bench(SLIM, COUNTING, baseline=DENSE, on_progress=lambda *step: steps.append(step))
    assert {job for job, _, _ in device.last.calls} == {"environment", "placement", "instructions"}
    assert (steps[0][:2], steps[-1][:2]) == ((0, 45), (9, 9))
    assert measured.why_unmeasured("latency_ratio") == "qemu-x 7 plays the processor: times mean nothing."
    assert measured.why_unmeasured("peak_memory_ratio") == (
        "qemu-x 7 plays the processor: memory would be its own."
    )
    assert measured.value("instructions_ratio") == 0.25
    assert Measurement.from_json(json.loads(json.dumps(measured.to_json()))) == measured


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


def _both(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(dict.fromkeys(keys, value))


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
        (_with(1, "format"), "of another format"),
        (_without("format"), "of another format"),
        (_without("notes"), "with notes missing or unknown"),
        (_with(1, "extra"), "with extra missing or unknown"),
        (_with(1, "target_name"), "wrong in 'target_name'"),
        (_with([[1.0], []], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [-1.0]], "latency_samples_s"), "wrong in 'latency_samples_s'"),
        (_with([[1.0], [float("nan")]], "latency_samples_s"), "not JSON .NaN is no number"),
        (_with([[1.0], [float("inf")]], "latency_samples_s"), "not JSON .Infinity is no number"),
        (_with([[1.0], [1.0]], "latency_samples_s"), "without a partner for each sample"),
        (_with([1.0], "load_s"), "wrong in 'load_s'"),
        (_with(None, "memory", "peak_bytes"), "wrong in 'memory'"),
        (_with([1.0, 1.0, 1.0], "load_s"), "with a part of its times"),
        (_both([1.0, 1.0, 1.0], "load_s", "first_inference_s"), "without a partner for each sample"),
        (_with(True, "placement", "nodes"), "wrong in 'placement'"),
        (_with([], "placement", "source"), "wrong in 'placement'"),
        (_with(None, "placement", "inputs"), "wrong in 'placement'"),
        (_with([{}], "placement", "inputs"), "wrong in 'placement'"),
        (_with([{"name": "x", "type": "t", "shape": 3}], "placement", "inputs"), "wrong in 'placement'"),
        (_with({}, "memory"), "wrong in 'memory'"),
        (_with(-1, "memory", "peak_bytes"), "wrong in 'memory'"),
        (_with(3, "memory", "repeats"), "wrong in 'memory'"),
        (_with(["much"], "memory", "repeats"), "wrong in 'memory'"),
        (_with({}, "memory", "arena"), "wrong in 'memory'"),
        (_with(None, "memory", "arena", "held_bytes"), "wrong in 'memory'"),
        (_with(None, "memory", "device"), "wrong in 'memory'"),
        (_with([1], "placement", "left_to_cpu"), "wrong in 'placement'"),
        (_with(-1, "placement", "partitions"), "wrong in 'placement'"),
        (_with({"CPU": [1]}, "placement", "assigned"), "wrong in 'placement'"),
        (_with({"CPU": "all"}, "placement", "macs_share"), "wrong in 'placement'"),
        (_with(True, "placement", "functional_only"), "wrong in 'placement'"),
        (_with("a simulator", "placement", "functional_only"), "wrong in 'latency_samples_s'"),
        (_with("many", "artifact", "macs"), "wrong in 'artifact'"),
        (_with({"test": "good"}, "artifact", "accuracy"), "wrong in 'artifact'"),
        (_with({"test": "good"}, "artifact", "accuracy_top5"), "wrong in 'artifact'"),
        (_with({"test": 0.5}, "artifact", "accuracy_by_class"), "wrong in 'artifact'"),
        (_with({"test": {"cat": "good"}}, "artifact", "accuracy_by_class"), "wrong in 'artifact'"),
        (_with({}, "artifact"), "wrong in 'artifact'"),
        (_with([1], "notes"), "wrong in 'notes'"),
        (_with({}, "baseline"), "of another format of its baseline"),
        (_with(True, "baseline", "artifact", "size_bytes"), "wrong in 'artifact' of its baseline"),
        (_with({"format": 2}, "baseline", "baseline"), "with a baseline of its baseline"),
        (_without("instructions"), "with instructions missing or unknown"),
        (_with({}, "instructions"), "wrong in 'instructions'"),
        (_with(5, "instructions", "count"), "wrong in 'instructions'"),
        (_with([], "latency_samples_s"), "with a part of its times"),
        (_with([], "load_s"), "with a part of its times"),
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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, r"not there, expected a file\. `edgeprune bench` writes one"),
        (b"\x08\x9e", r"not text, expected JSON\. `edgeprune bench` writes one"),
        (b"{", r"not JSON \(Expecting property name"),
        (b"[]", "of another format"),
        (b"1", "of another format"),
    ],
)
def test_files_that_are_no_measurement(tmp_path: Path, content: bytes | None, fault: str) -> None:
    path = tmp_path / "measurement.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"could not read the measurement: .*measurement.json is {fault}"):
        load_measurement(path)


# --- bad input ----------------------------------------------------------------------------------------------


def test_precision_that_nothing_tells() -> None:
    target = replace(TARGET, runtime=Runtime(precision="int8"))
    with pytest.raises(ArtifactError, match=r"slim.onnx is of a precision that nothing tells, expected int8"):
        bench(SLIM, target)


def in_int8(one: Artifact, **source: float) -> Artifact:
    noted = {
        "name": "int8",
        "provider": "CPUExecutionProvider",
        "source": {"accuracy": source, "accuracy_top5": {}, "accuracy_by_class": {}},
    }
    return replace(one, provenance={"precision": noted})


@pytest.mark.usefixtures("device")
def test_accuracy_lost_is_told_against_the_dense_network_in_fp32() -> None:
    slim = replace(in_int8(SLIM, test=0.93), accuracy={"test": 0.9})
    dense = replace(in_int8(DENSE, test=0.95), accuracy={"test": 0.91})
    measured = bench(slim, TARGET, baseline=dense, processes=2)
    assert measured.value("accuracy_drop") == pytest.approx(0.05)
    assert measured.value("accuracy") == 0.9
    assert Measurement.from_json(measured.to_json()).value("accuracy_drop") == pytest.approx(0.05)
    unknown = bench(slim, TARGET, baseline=in_int8(DENSE), processes=2)
    assert unknown.value("accuracy_drop") is None
    why = unknown.why_unmeasured("accuracy_drop")
    assert why == "Nothing tells the accuracy of the float32 file that dense.onnx was made of."


@pytest.mark.usefixtures("device")
def test_top_five_and_single_classes() -> None:
    slim = replace(SLIM, accuracy_top5={"test": 0.97}, accuracy_by_class={"test": {"cat": 0.5, "dog": 0.9}})
    dense = replace(DENSE, accuracy_top5={"test": 0.99}, accuracy_by_class={"test": {"cat": 0.6, "dog": 0.8}})
    measured = bench(slim, TARGET, baseline=dense, processes=2)
    assert Measurement.from_json(measured.to_json()) == replace(
        measured, artifact=replace(slim, path=Path("slim.onnx")),
        baseline=replace(measured.baseline, artifact=replace(dense, path=Path("dense.onnx"))),
    )  # type: ignore[type-var]  # fmt: skip
    for metric, value in {
        "accuracy_top5": 0.97,
        "accuracy_top5_drop": 0.02,
        "worst_class_accuracy": 0.5,
        "worst_class_accuracy_drop": 0.1,  # of the cat; the dog has gained
    }.items():
        assert measured.value(metric) == pytest.approx(value), metric
    others = replace(slim, accuracy_by_class={"test": {"cat": 0.5, "cow": 0.9}})
    measured = bench(others, TARGET, baseline=dense, processes=2)
    assert measured.why_unmeasured("worst_class_accuracy_drop") == (
        "slim.onnx and dense.onnx were tested on different classes."
    )
    measured = bench(SLIM, TARGET, baseline=dense, processes=2)
    assert measured.why_unmeasured("accuracy_top5") == "slim.onnx tells five classes apart, or fewer."
    assert measured.why_unmeasured("worst_class_accuracy_drop") == (
        "No sidecar tells the accuracy by class of slim.onnx: `edgeprune export` writes one."
    )
    measured = bench(slim, TARGET, baseline=replace(in_int8(dense), accuracy={}), processes=2)
    for metric, text in (
        ("accuracy_top5_drop", "top-5 accuracy"),
        ("worst_class_accuracy_drop", "accuracy by class"),
    ):
        assert measured.why_unmeasured(metric) == (
            f"Nothing tells the {text} of the float32 file that dense.onnx was made of."
        )


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    "noted", ["int8", {}, {"name": "int8", "provider": "x", "source": {"accuracy": {"test": "0"}}}]
)
def test_a_note_on_the_precision_that_is_broken(noted: object) -> None:
    content = bench(SLIM, TARGET, processes=2).to_json()
    content["artifact"]["provenance"]["precision"] = noted
    with pytest.raises(ArtifactError, match="wrong in 'artifact'"):
        Measurement.from_json(content)


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
    with pytest.raises(ArtifactError, match=r"could not open the ONNX file: .*dense.onnx is broken at byte"):
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
