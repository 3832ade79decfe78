"""What can be measured and gated, and how an uncertain figure is written. Device side: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.units import Quantity


@dataclass(frozen=True)
class Estimate:
    """A measured value with the interval that holds the truth with the stated confidence.

    Attributes:
        value: Point estimate.
        low: Lower end.
        high: Upper end.
        confidence: Of the interval, e.g. 0.95.
        more_runs: About how many processes in all would narrow the interval to the minimal claim; None if
            the interval is narrow already.
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95
    more_runs: int | None = None


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Attributes:
        name: Key without ``max_``/``min_``.
        quantity: Decides the unit that a target file must write.
        text: What it is, for people.
        relative: True if it compares with the dense network, so that a baseline is needed.
    """

    name: str
    quantity: Quantity
    text: str
    relative: bool = False


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("latency_p50", "time", "median latency"),
        Metric("latency_p90", "time", "latency p90"),
        Metric("latency_p95", "time", "latency p95"),
        Metric("latency_p99", "time", "latency p99"),
        Metric("latency_ratio", "ratio", "latency, slim / dense", relative=True),
        Metric("throughput", "rate", "inferences/s"),
        Metric("load_time", "time", "load time"),
        Metric("first_inference", "time", "first inference"),
        Metric("cold_start", "time", "cold start"),
        Metric("cold_start_ratio", "ratio", "cold start, slim / dense", relative=True),
        Metric("size", "size", "ONNX file"),
        Metric("size_ratio", "ratio", "bytes, slim / dense", relative=True),
        Metric("peak_memory", "size", "peak memory"),
        Metric("peak_memory_ratio", "ratio", "peak memory, slim / dense", relative=True),
        Metric("arena_memory", "size", "arena peak"),
        Metric("arena_memory_ratio", "ratio", "arena peak, slim / dense", relative=True),
        Metric("device_memory", "size", "GPU memory"),
        Metric("device_memory_ratio", "ratio", "GPU memory, slim / dense", relative=True),
        Metric("params", "count", "parameters"),
        Metric("params_ratio", "ratio", "parameters, slim / dense", relative=True),
        Metric("macs", "count", "multiply-adds"),
        Metric("macs_ratio", "ratio", "multiply-adds, slim / dense", relative=True),
        Metric("instructions", "count", "instructions"),
        Metric("instructions_ratio", "ratio", "instructions, slim / dense", relative=True),
        Metric("accuracy", "fraction", "test accuracy"),
        Metric("accuracy_drop", "drop", "accuracy lost", relative=True),
        Metric("accuracy_top5", "fraction", "top-5 accuracy"),
        Metric("accuracy_top5_drop", "drop", "top-5 accuracy lost", relative=True),
        Metric("worst_class_accuracy", "fraction", "worst class"),
        Metric("worst_class_accuracy_drop", "drop", "largest loss of a class", relative=True),
        Metric("parity_error", "error", "parity error"),
        Metric("cpu_nodes", "count", "nodes on CPU"),
        Metric("partitions", "count", "partitions"),
    )
}
