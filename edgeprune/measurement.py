"""What was measured of one ONNX file on one device, beside its dense network, with every raw sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact
from edgeprune.errors import ArtifactError
from edgeprune.files import read_json
from edgeprune.instructions import NOT_COUNTED
from edgeprune.measurement_format import MEASUREMENT_FORMAT, format_fault
from edgeprune.metrics import METRICS, Estimate
from edgeprune.placement import functional_only
from edgeprune.precision import fp32_accuracy
from edgeprune.statistics import (
    median_estimate,
    min_samples,
    percentile_estimate,
    percentile_ratio_estimate,
    ratio_estimate,
)


@dataclass(frozen=True)
class Measurement:
    """One artifact on one device.

    Attributes:
        target_name: Name of the target.
        target_sha256: Of the target file, hex.
        runtime: How it was run: the target's ``[runtime]``.
        artifact: The file's facts; its path is the file name alone, since folders move.
        environment: Versions, processor, governor, load before the first run, and what disturbed the timed
            runs.
        placement: ``source`` of the proof, ``nodes`` per provider, ``left_to_cpu`` by node, ``assigned``
            (name and operator of each provider's nodes), ``partitions`` (how often an inference enters the
            provider), ``macs_share`` per provider or None and ``macs_share_why``, ``functional_only`` (why
            time and memory mean nothing here, or None), ``inputs``.
        memory: ``load_peak_bytes``, ``loaded_bytes``, ``run_peak_bytes`` and ``peak_bytes`` (the larger peak)
            over onnxruntime alone, medians over processes, or None and ``why``; ``method``; ``repeats``:
            the peak in each process. ``arena``: ``peak_bytes`` in use and ``held_bytes`` of onnxruntime's own
            pool, ``device``: ``peak_bytes`` on a GPU; each with ``method``, or None and ``why``.
        latency_samples_s: Every timed inference, by process. Sample k of a process and sample k of the same
            process of the baseline are a pair. Empty, as ``load_s`` and ``first_inference_s``, if nothing was
            timed.
        load_s: Time to load the model, by process, the file being in the system's cache.
        first_inference_s: Time of the first inference, by process; with loading it makes the cold start.
        notes: What makes the figures doubtful, each with a hint.
        instructions: ``count`` of one warm inference, the median over processes, or None and ``why``;
            ``method``; ``repeats``: the count in each process.
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
    instructions: dict[str, Any] = field(default_factory=lambda: dict(NOT_COUNTED))
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
        """Latency of this network / latency of the baseline; None without a baseline or times."""
        return ratio_estimate(self.pairs) if self.baseline and self.latency_samples_s else None

    @property
    def cold_start_s(self) -> tuple[float, ...]:
        """Loading and the first inference, by process."""
        return tuple(load + first for load, first in zip(self.load_s, self.first_inference_s, strict=True))

    def value(self, metric: str) -> float | Estimate | None:
        """A metric of ``METRICS`` in SI units; None if it was not measured (``why_unmeasured`` says why)."""
        if (METRICS[metric].relative and self.baseline is None) or self.is_out_of_reach(metric):
            return None
        if metric in _TIMES and not self.latency_samples_s:
            return None
        if metric in _READERS:
            return _READERS[metric](self)
        if metric.startswith("latency_p") and not METRICS[metric].relative:
            return percentile_estimate(self.latency_samples_s, _percentile(metric))
        assert self.baseline is not None, "a metric that no reader knows is a ratio"
        basis = metric.removesuffix("_ratio")
        if metric.startswith("latency_p"):
            sides = self.latency_samples_s, self.baseline.latency_samples_s
            return percentile_ratio_estimate(*sides, _percentile(basis))
        return _ratio(_READERS[basis](self), _READERS[basis](self.baseline))

    def is_out_of_reach(self, metric: str) -> bool:
        """Whether this device cannot measure a metric whatever is done: a simulator's time is nobody's."""
        return functional_only(self.placement) is not None and metric.startswith(_OF_THE_DEVICE)

    def why_unmeasured(self, metric: str) -> str | None:
        """Why ``value`` is None, as one sentence; None if it is not."""
        if self.value(metric) is not None:
            return None
        if METRICS[metric].relative and self.baseline is None:
            return "No dense network was measured beside it: give one as the baseline."
        if self.is_out_of_reach(metric):
            return f"{functional_only(self.placement)}."
        if metric in _TIMES and not self.latency_samples_s:
            player = self.environment.get("emulator")
            return f"{player} plays the processor: times mean nothing." if player else "Nothing was timed."
        if metric.startswith("latency_p"):
            count = sum(len(samples) for samples in self.latency_samples_s)
            least = min_samples(_percentile(metric.removesuffix("_ratio")))
            return f"It takes {least} samples, and there are {count}."
        sides = [self] if self.baseline is None or not METRICS[metric].relative else [self, self.baseline]
        fact = metric.removesuffix("_ratio").removesuffix("_drop")
        lacking = [side for side in sides if side.value(fact) is None]
        if lacking and fact == "partitions":
            return "The runner does not tell the order in which the nodes run."
        if lacking and fact == "peak_memory":
            return f"{lacking[0].memory['why']}."
        if lacking and fact in _MEMORY_PARTS:
            return f"{lacking[0].memory[_MEMORY_PARTS[fact]]['why']}."
        if lacking and fact == "instructions":
            return f"{lacking[0].instructions['why']}."
        known = [side.artifact for side in lacking if "test" in side.artifact.accuracy]
        if fact == "accuracy_top5" and known:
            return f"{known[0].path.name} tells five classes apart, or fewer."
        if lacking:
            names = " and ".join(side.artifact.path.name for side in lacking)
            text = _SIDECAR_TEXTS.get(fact, fact.replace("_", " "))
            return f"No sidecar tells the {text} of {names}: `edgeprune export` writes one."
        if metric.endswith("_drop"):
            name = sides[-1].artifact.path.name
            if "test" in fp32_accuracy(sides[-1].artifact, _ACCURACIES[fact]):
                return f"{sides[0].artifact.path.name} and {name} were tested on different classes."
            text = _SIDECAR_TEXTS.get(fact, fact)
            return f"Nothing tells the {text} of the float32 file that {name} was made of."
        return "It is 0 for the dense network, and not for this one."

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
            **{key: content[key] for key in ("environment", "placement", "memory", "instructions")},
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
    content = read_json(Path(path), ArtifactError, "measurement", "`edgeprune bench` writes one.")
    return Measurement.from_json(content, str(path))


Reader = Callable[[Measurement], float | Estimate | None]

# --- metrics ------------------------------------------------------------------------------------------------


def _percentile(metric: str) -> float:
    return float(metric.removeprefix("latency_p"))


def _as_float(fact: int | float | None) -> float | None:
    return None if fact is None else float(fact)


def _ratio(slim: float | Estimate | None, dense: float | Estimate | None) -> float | None:
    """Of two figures without an interval; nothing of nothing is as much."""
    if not isinstance(slim, float) or not isinstance(dense, float):
        return None
    if dense == 0:
        return 1.0 if slim == 0 else None
    return slim / dense


def _throughput(one: Measurement) -> Estimate | None:
    time = percentile_estimate(one.latency_samples_s, 50)
    return time and Estimate(1 / time.value, 1 / time.high, 1 / time.low, time.confidence, time.more_runs)


def _accuracy(fact: str) -> Reader:
    """On the test split alone: the validation split has chosen the network, so it flatters it."""

    def read(one: Measurement) -> float | None:
        found = getattr(one.artifact, fact).get("test")
        return min(found.values(), default=None) if isinstance(found, dict) else found

    return read


def _accuracy_drop(fact: str) -> Reader:
    """Against the dense network in float32, so that it holds what the precision costs too."""

    def read(one: Measurement) -> float | None:
        assert one.baseline is not None
        slim, dense = (
            getattr(one.artifact, fact).get("test"),
            fp32_accuracy(one.baseline.artifact, fact).get("test"),
        )
        if isinstance(slim, dict) and isinstance(dense, dict):  # by class: the largest loss of any
            return (
                max((dense[name] - slim[name] for name in slim), default=None)
                if set(slim) == set(dense)
                else None
            )
        return None if slim is None or dense is None else float(dense - slim)

    return read


def _throughput_ratio(one: Measurement) -> Estimate | None:
    time = one.latency_ratio
    return time and Estimate(1 / time.value, 1 / time.high, 1 / time.low, time.confidence, time.more_runs)


def _start(times: str) -> Reader:
    return lambda one: median_estimate(getattr(one, times))


def _start_ratio(times: str) -> Reader:
    """Both networks start in each process, and take turns in being the first."""

    def read(one: Measurement) -> Estimate | None:
        assert one.baseline is not None
        both = zip(getattr(one, times), getattr(one.baseline, times), strict=True)
        return ratio_estimate([[pair] for pair in both])

    return read


# Metric -> field of the artifact.
_ACCURACIES = {
    "accuracy": "accuracy",
    "accuracy_top5": "accuracy_top5",
    "worst_class_accuracy": "accuracy_by_class",
}
# What the sidecar tells, where the name of the metric does not say it.
_SIDECAR_TEXTS = {"accuracy_top5": "top-5 accuracy", "worst_class_accuracy": "accuracy by class"}
# Metric -> part of the memory's figures.
_MEMORY_PARTS = {"arena_memory": "arena", "device_memory": "device"}
# Metric -> property that has it by process.
_STARTS = {"load_time": "load_s", "first_inference": "first_inference_s", "cold_start": "cold_start_s"}
_TIMES = tuple(name for name in METRICS if name.startswith(("latency", "throughput", *_STARTS)))
# Percentiles and ratios of these follow by name.
_READERS: dict[str, Reader] = {
    "latency_ratio": lambda one: one.latency_ratio,
    "throughput": _throughput,
    "throughput_ratio": _throughput_ratio,
    **{metric: _start(times) for metric, times in _STARTS.items()},
    **{f"{metric}_ratio": _start_ratio(times) for metric, times in _STARTS.items()},
    "size": lambda one: float(one.artifact.size_bytes),
    "peak_memory": lambda one: _as_float(one.memory["peak_bytes"]),
    "arena_memory": lambda one: _as_float(one.memory["arena"]["peak_bytes"]),
    "device_memory": lambda one: _as_float(one.memory["device"]["peak_bytes"]),
    "params": lambda one: _as_float(one.artifact.params),
    "macs": lambda one: _as_float(one.artifact.macs),
    "instructions": lambda one: _as_float(one.instructions["count"]),
    **{metric: _accuracy(fact) for metric, fact in _ACCURACIES.items()},
    **{f"{metric}_drop": _accuracy_drop(fact) for metric, fact in _ACCURACIES.items()},
    "parity_error": lambda one: one.artifact.parity_error,
    "cpu_nodes": lambda one: float(len(one.placement["left_to_cpu"])),
    "partitions": lambda one: _as_float(one.placement.get("partitions")),
}
_OF_THE_DEVICE = (
    "latency", "throughput", *_STARTS,
    "peak_memory", "arena_memory", "device_memory", "instructions",
)  # fmt: skip
