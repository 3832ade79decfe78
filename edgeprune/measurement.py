"""What was measured of one ONNX file on one device, beside its dense network, with every raw sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.errors import ArtifactError, MeasurementError, UsageError
from edgeprune.files import read_json
from edgeprune.measurement_format import MEASUREMENT_FORMAT, MEMORY_FIGURES, format_fault
from edgeprune.metrics import METRICS, Estimate
from edgeprune.noise import latency_notes, machine_notes, memory_notes, placement_notes
from edgeprune.runners import Runner, open_runner
from edgeprune.statistics import (
    MIN_SAMPLES,
    median_estimate,
    min_samples,
    percentile_estimate,
    ratio_estimate,
)
from edgeprune.target import Runtime, Target

MEMORY_REPEATS = 3
SECONDS_PER_PROCESS = 3.0  # of timed runs, once there are enough for the 95th percentile

OnProgress = Callable[[int, int, str], None]
_LOG = logging.getLogger(__name__)  # for what a person must do at a device, where no command line tells it


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device.

    Attributes:
        target_name: Name of the target.
        target_sha256: Of the target file, hex.
        runtime: How it was run: the target's ``[runtime]``.
        artifact: The file's facts; its path is the file name alone, since folders move.
        environment: Versions, processor, governor, load before the first run.
        placement: ``source`` of the proof, ``nodes`` per provider, ``left_to_cpu`` by node, ``inputs``.
        memory: ``load_peak_bytes``, ``loaded_bytes``, ``run_peak_bytes`` and ``peak_bytes`` (the larger peak)
            over onnxruntime alone, medians over processes, or None and ``why``; ``method``; ``repeats``:
            the peak in each process.
        latency_samples_s: Every timed inference, by process. Sample k of a process and sample k of the same
            process of the baseline are a pair.
        load_s: Time to load the model, by process.
        first_inference_s: Time of the first inference, by process.
        notes: What makes the figures doubtful, each with a hint.
        baseline: The dense network, measured in the same processes.
    """

    target_name: str
    target_sha256: str
    runtime: dict[str, Any]
    artifact: Artifact
    environment: dict[str, Any]
    placement: dict[str, Any]
    memory: dict[str, Any]
    latency_samples_s: tuple[tuple[float, ...], ...]
    load_s: tuple[float, ...]
    first_inference_s: tuple[float, ...]
    notes: tuple[str, ...] = ()
    baseline: Measurement | None = None

    @property
    def pairs(self) -> list[list[tuple[float, float]]]:
        """(slim, dense) in seconds, by process; empty without a baseline."""
        if self.baseline is None:
            return []
        both = zip(self.latency_samples_s, self.baseline.latency_samples_s, strict=True)
        return [list(zip(slim, dense, strict=True)) for slim, dense in both]

    @property
    def latency_ratio(self) -> Estimate | None:
        """Latency of this network / latency of the baseline; None without a baseline."""
        return ratio_estimate(self.pairs) if self.baseline else None

    def value(self, metric: str) -> float | Estimate | None:
        """A metric of ``METRICS`` in SI units; None if it was not measured (``why_unmeasured`` says why)."""
        if METRICS[metric].relative and self.baseline is None:
            return None
        if metric in _READERS:
            return _READERS[metric](self)
        if metric.startswith("latency_p"):
            return percentile_estimate(self.latency_samples_s, _percentile(metric))
        assert self.baseline is not None, "a metric that no reader knows is a ratio"
        basis = metric.removesuffix("_ratio")
        slim, dense = _READERS[basis](self), _READERS[basis](self.baseline)
        return slim / dense if isinstance(slim, float) and isinstance(dense, float) and dense else None

    def why_unmeasured(self, metric: str) -> str | None:
        """Why ``value`` is None, as one sentence; None if it is not."""
        if self.value(metric) is not None:
            return None
        if METRICS[metric].relative and self.baseline is None:
            return "No dense network was measured beside it: give one as the baseline."
        if metric.startswith("instructions"):
            return "This version does not count instructions."
        if metric.startswith("latency_p"):
            count = sum(len(samples) for samples in self.latency_samples_s)
            return f"It takes {min_samples(_percentile(metric))} samples, and there are {count}."
        sides = [self] if self.baseline is None or not METRICS[metric].relative else [self, self.baseline]
        fact = metric.removesuffix("_ratio").removesuffix("_drop")
        lacking = [side for side in sides if side.value(fact) is None]
        if lacking and fact == "peak_memory":
            return f"{lacking[0].memory['why']}."
        if lacking:
            names = " and ".join(side.artifact.path.name for side in lacking)
            text = fact.replace("_", " ")
            return f"No sidecar tells the {text} of {names}: `edgeprune export` writes one."
        return "It is 0 for the dense network."

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        content = asdict(replace(self, baseline=None))
        content["artifact"]["path"] = self.artifact.path.name
        content["baseline"] = self.baseline.to_json() if self.baseline else None
        return {"format": MEASUREMENT_FORMAT, **content}

    @classmethod
    def from_json(cls, content: Any, where: str = "the measurement") -> Measurement:
        """Read what ``to_json`` gives, strictly.

        Args:
            content: The JSON value.
            where: What to call it in an error.

        Raises:
            ArtifactError: It is of another format, or a part of it is wrong.
        """
        fault = format_fault(content)
        if fault:
            raise ArtifactError(
                "could not read the measurement",
                where=where,
                value=fault,
                expected=f"format {MEASUREMENT_FORMAT} as `edgeprune bench` writes it",
                hint="Measure again.",
            )
        artifact, baseline = dict(content["artifact"]), content["baseline"]
        shape = artifact["input_shape"]
        artifact |= {"path": Path(artifact["path"]), "input_shape": None if shape is None else tuple(shape)}
        return cls(
            **{key: content[key] for key in ("target_name", "target_sha256", "runtime")},
            **{key: content[key] for key in ("environment", "placement", "memory")},
            artifact=Artifact(**artifact),
            latency_samples_s=tuple(tuple(samples) for samples in content["latency_samples_s"]),
            load_s=tuple(content["load_s"]),
            first_inference_s=tuple(content["first_inference_s"]),
            notes=tuple(content["notes"]),
            baseline=None if baseline is None else cls.from_json(baseline, where),
        )


def load_measurement(path: Path | str) -> Measurement:
    """Read a measurement from a file.

    Raises:
        ArtifactError: The file is absent, not JSON, or not a measurement.
    """
    return Measurement.from_json(read_json(Path(path), ArtifactError, "measurement"), str(path))


def bench(
    artifact: Artifact | Path | str,
    target: Target,
    *,
    baseline: Artifact | Path | str | None = None,
    processes: int = 10,
    runs: int = 70,
    on_progress: OnProgress | None = None,
    runner: Runner | None = None,
) -> Measurement:
    """Measure an ONNX file on a target, and its dense network in the same processes.

    Where each node runs is proven first. Then both networks are timed in turns inside each of ``processes``
    fresh processes, and memory is taken in further processes of its own.

    Args:
        artifact: The ONNX file.
        target: The device.
        baseline: The dense network; None: no ratios.
        processes: Fresh processes, at least 2. The process is the unit of the intervals.
        runs: Timed inferences of each network in each process; fewer if they take longer than
            ``SECONDS_PER_PROCESS``, but enough in all for the 95th percentile.
        on_progress: Called with (steps done, steps in all, what comes next).
        runner: One that is open; None: the target's, opened and closed here.

    Raises:
        UsageError: ``processes`` or ``runs`` is too small.
        ArtifactError: A file is at fault, or the two do not take the same input.
        MeasurementError: The provider, the interpreter or the device is absent, or took no part.

    Example:
        >>> target = load_target("local-cpu")
        >>> bench("slim.onnx", target, baseline="dense.onnx").latency_ratio  # doctest: +SKIP
        Estimate(value=0.61, low=0.59, high=0.63, confidence=0.95, more_runs=None)
    """
    for name, count, least in (("processes", processes, 2), ("runs", runs, 1)):
        if count < least:
            raise UsageError(
                "could not plan the measurement", where=name, value=count, expected=f">= {least}"
            )
    if target.runtime.precision != "fp32":
        raise MeasurementError(
            "could not measure in this precision",
            where="runtime.precision",
            value=f"'{target.runtime.precision}'",
            expected="'fp32'",
            hint="This version runs the ONNX file as it is and converts nothing.",
        )
    if runner is None:
        with open_runner(target.runtime, say=_LOG.warning) as opened:
            return bench(
                artifact, target, baseline=baseline, processes=processes, runs=runs,
                on_progress=on_progress, runner=opened,
            )  # fmt: skip
    artifacts = [_as_artifact(one) for one in (artifact, baseline) if one is not None]
    paths = [one.path for one in artifacts]
    progress = _Steps(1 + len(paths) * (1 + MEMORY_REPEATS) + processes, on_progress)

    progress.next("environment")
    environment = runner.run("environment")
    placements = []
    for path in paths:
        progress.next(f"placement of {path.name}")
        placements.append(runner.run("placement", [path]))
    _check_same_input(paths, placements)
    timings = _time(runner, paths, processes, runs, progress)
    memories = [_memory(runner, path, progress) for path in paths]
    progress.next("done")

    measurements = [
        Measurement(
            target_name=target.name,
            target_sha256=target.sha256,
            runtime=_as_json(target.runtime),
            artifact=replace(one, path=Path(one.path.name)),
            environment=environment,
            placement=placement,
            memory=memory,
            latency_samples_s=tuple(tuple(ns / 1e9 for ns in answer["samples_ns"]) for answer in timing),
            load_s=tuple(answer["load_ns"] / 1e9 for answer in timing),
            first_inference_s=tuple(answer["first_ns"] / 1e9 for answer in timing),
        )
        for one, placement, memory, timing in zip(artifacts, placements, memories, timings, strict=True)
    ]
    notes = machine_notes(environment, target.runtime)
    for one in measurements:
        name = one.artifact.path.name
        notes += latency_notes(name, one.latency_samples_s)
        notes += memory_notes(name, one.memory["repeats"])
        notes += placement_notes(name, target.runtime.provider, one.placement["left_to_cpu"])
        notes += one.placement.get("notes", [])
    dense = None if baseline is None else measurements[1]
    return replace(measurements[0], baseline=dense, notes=tuple(notes))


# --- steps of bench -----------------------------------------------------------------------------------------


class _Steps:
    """Counts steps for a progress display."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = -1, total, on_progress

    def next(self, text: str) -> None:
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, self.total, text)


def _as_artifact(given: Artifact | Path | str) -> Artifact:
    return given if isinstance(given, Artifact) else load_artifact(given)


def _as_json(runtime: Runtime) -> dict[str, Any]:
    return asdict(runtime) | {"input": None if runtime.input is None else list(runtime.input)}


def _check_same_input(paths: list[Path], placements: list[dict[str, Any]]) -> None:
    """Two networks that take different inputs are not dense and slim of one another."""
    texts = [
        ", ".join(f"{value['type']} {'x'.join(map(str, value['shape']))}" for value in placement["inputs"])
        for placement in placements
    ]
    if len(set(texts)) > 1:
        raise ArtifactError(
            "could not compare the networks",
            where=f"the input of {paths[1].name}",
            value=texts[1],
            expected=f"{texts[0]} as of {paths[0].name}",
        )


def _time(
    runner: Runner, paths: list[Path], processes: int, runs: int, progress: _Steps
) -> list[list[dict[str, Any]]]:
    """Latency jobs: for each model the worker's answer of each process."""
    enough = math.ceil(MIN_SAMPLES[95] / processes)
    answers: list[list[dict[str, Any]]] = [[] for _ in paths]
    for process in range(processes):
        progress.next(f"latency, process {process + 1} of {processes}")
        # Who loads and starts first changes from process to process.
        step = 1 if process % 2 == 0 else -1
        options = {"runs": runs, "min_runs": min(runs, enough), "seconds": SECONDS_PER_PROCESS}
        found = runner.run("latency", paths[::step], **options)["models"][::step]
        for answer, one in zip(answers, found, strict=True):
            answer.append(one)
    return answers


def _memory(runner: Runner, path: Path, progress: _Steps) -> dict[str, Any]:
    """Memory jobs of one model: medians over fresh processes."""
    found = []
    for repeat in range(MEMORY_REPEATS):
        progress.next(f"memory of {path.name}, process {repeat + 1} of {MEMORY_REPEATS}")
        found.append(runner.run("memory", [path]))
    why = found[0]["why"]
    middle = {name: None if why else int(median(one[name] for one in found)) for name in MEMORY_FIGURES}
    repeats = [] if why else [one["peak_bytes"] for one in found]
    return {**middle, "method": found[0]["method"], "why": why, "repeats": repeats}


# --- metrics ------------------------------------------------------------------------------------------------


def _percentile(metric: str) -> float:
    return float(metric.removeprefix("latency_p"))


def _as_float(fact: int | float | None) -> float | None:
    return None if fact is None else float(fact)


def _throughput(one: Measurement) -> Estimate | None:
    time = percentile_estimate(one.latency_samples_s, 50)
    return time and Estimate(1 / time.value, 1 / time.high, 1 / time.low, time.confidence, time.more_runs)


def _accuracy(one: Measurement) -> float | None:
    """On the test split alone: the validation split has chosen the network, so it flatters it."""
    return one.artifact.accuracy.get("test")


def _accuracy_drop(one: Measurement) -> float | None:
    assert one.baseline is not None
    slim, dense = _accuracy(one), _accuracy(one.baseline)
    return None if slim is None or dense is None else dense - slim


# Percentiles and ratios of these follow by name.
_READERS: dict[str, Callable[[Measurement], float | Estimate | None]] = {
    "latency_ratio": lambda one: one.latency_ratio,
    "throughput": _throughput,
    "load_time": lambda one: median_estimate(one.load_s),
    "size": lambda one: float(one.artifact.size_bytes),
    "peak_memory": lambda one: _as_float(one.memory["peak_bytes"]),
    "params": lambda one: _as_float(one.artifact.params),
    "macs": lambda one: _as_float(one.artifact.macs),
    "instructions": lambda _: None,
    "accuracy": _accuracy,
    "accuracy_drop": _accuracy_drop,
    "parity_error": lambda one: one.artifact.parity_error,
    "cpu_nodes": lambda one: float(len(one.placement["left_to_cpu"])),
}
