"""Sessions of measuring on a simulated machine: processes differ, and the hours differ too."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.artifact import Artifact
from edgeprune.measurement import Measurement
from edgeprune.metrics import Estimate
from edgeprune.record import Record, record_of
from edgeprune.statistics import clustered

DATA = {"name": "digits", "identity": "ef" * 32, "images": {"val": 359, "test": 359}, "classes": 10}
SLIM = Artifact(
    Path("run/slim.onnx"), "cd" * 32, 100_000, (1, 3, 8, 8), macs=50, params=30, parity_error=1e-6,
    accuracy={"val": 0.91, "test": 0.9}, provenance={"role": "slim", "data": DATA, "macs_by_node": {"n": 50}},
    accuracy_by_class={"test": {"0": 0.8, "1": 1.0}},
)  # fmt: skip
DENSE = replace(SLIM, path=Path("run/dense.onnx"), sha256="ab" * 32, size_bytes=300_000, macs=100, params=60)
ENVIRONMENT = {
    "onnxruntime": "1.31.1", "cpu": "a processor", "machine": "x86_64", "emulator": None, "cores": 4,
    "cpu_quota": None, "governor": None, "platform": "a system", "providers": ["CPUExecutionProvider"],
}  # fmt: skip
RUNTIME: dict[str, Any] = {
    "runner": "local", "provider": "CPUExecutionProvider", "provider_options": {}, "host": None,
    "python": "python3", "perf_test": None, "web": None, "threads": 1, "precision": "fp32", "input": None,
    "inputs": {}, "dims": {}, "strict": False,
}  # fmt: skip
PROCESS_SPREAD, SESSION_SPREAD, HOUR_SPREAD = 0.01, 0.007, 0.05


def session(
    seed: int,
    slowdown: float = 1.0,
    *,
    processes: int = 20,
    runs: int = 10,
    spread: float = SESSION_SPREAD,
    hour: float = HOUR_SPREAD,
) -> Measurement:
    """A whole measurement: slim takes 1 ms, dense 2 ms; the hour makes both slower, and slim a bit more.

    Args:
        seed: Of all that is drawn.
        slowdown: Of the slim network alone.
        processes: Timed processes.
        runs: Pairs in each.
        spread: Standard deviation between sessions of log(slim / dense).
        hour: Of the log time of both.
    """
    rng = np.random.default_rng(seed)
    both, own = rng.normal(0, hour), rng.normal(0, spread)
    sides = []
    for base_s, shift in ((0.001 * slowdown, both + own), (0.002, both)):
        means = base_s * np.exp(shift + rng.normal(0, PROCESS_SPREAD, processes))
        samples = means[:, None] * np.exp(np.abs(rng.normal(0, 0.02, (processes, runs))))
        sides.append((samples, 3 * means, 2 * means))
    memory = {
        **dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes"), 5_000_000),
        "method": "fake", "why": None, "repeats": [4_990_000, 5_000_000, 5_020_000],
        "arena": {"peak_bytes": 1_000_000, "held_bytes": 1_000_000, "method": "fake", "why": None},
        "device": {"peak_bytes": None, "method": None, "why": "it has no GPU"},
    }  # fmt: skip
    slim, dense = (
        Measurement(
            target_name="test device", target_sha256="ab" * 32, runtime=RUNTIME, artifact=artifact,
            environment=ENVIRONMENT, placement={"left_to_cpu": [], "partitions": 1}, memory=memory,
            latency_samples_s=tuple(tuple(map(float, row)) for row in samples),
            load_s=tuple(map(float, load)), first_inference_s=tuple(map(float, first)),
            instructions={"count": 1000, "method": "fake", "why": None, "repeats": [1000, 1000, 1001]},
        )
        for artifact, (samples, load, first) in zip((SLIM, DENSE), sides, strict=True)
    )  # fmt: skip
    return replace(slim, baseline=dense)


TEMPLATE = record_of(session(0))


def quick_record(
    rng: np.random.Generator,
    slowdown: float = 1.0,
    *,
    processes: int = 20,
    spread: float = SESSION_SPREAD,
    process_spread: float = PROCESS_SPREAD,
) -> Record:
    """A record whose median latency alone is drawn: thousands of them in a second."""
    shift = rng.normal(0, spread) + math.log(slowdown)
    logs = shift + rng.normal(0, process_spread, processes)
    hour = math.exp(rng.normal(0, HOUR_SPREAD))
    ratio = clustered(float(np.exp(np.median(logs))), np.exp(logs))
    plain = Estimate(*(0.001 * hour * end for end in (ratio.value, ratio.low, ratio.high)))
    return replace(
        TEMPLATE,
        processes=processes,
        over_dense={**TEMPLATE.over_dense, "latency_p50": ratio},
        values={**TEMPLATE.values, "latency_p50": plain},
    )


def put(content: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """JSON with a value at a place, e.g. ``("values", "size")``; without keys the value alone."""
    if not keys:
        return value
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return content
