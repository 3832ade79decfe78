"""What the tests of the gate share: measurements that have every metric, and one that has next to none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact
from edgeprune.instructions import NOT_COUNTED
from edgeprune.measurement import Measurement
from edgeprune.target import Runtime
from tests.goldens import golden


def golden_lines(name: str, lines: Iterable[str]) -> None:
    """Compare lines with a golden file."""
    golden(name, "".join(f"{line}\n" for line in lines))


def samples(base_s: float) -> tuple[tuple[float, ...], ...]:
    """Ten processes of 70 runs that lie up to 6 % above ``base_s``: enough for a p99."""
    return tuple(
        tuple(
            base_s * (1 + 0.01 * (process % 3) + 0.04 * ((37 * run + 11 * process) % 17) / 17)
            for run in range(70)
        )
        for process in range(10)
    )


def measured(name: str, scale: float, loss: float) -> Measurement:
    """A network of ``scale`` times the size and time of a ResNet-20, and that much less accurate."""
    peak = round(5_800_000 * scale)
    figures = dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes"), peak)
    told = {"method": "fake", "why": None}
    return Measurement(
        target_name="test",
        target_sha256="7" * 64,
        runtime=asdict(Runtime()),
        artifact=Artifact(
            path=Path(f"{name}.onnx"),
            sha256=name[0] * 64,
            size_bytes=round(1_103_221 * scale),
            input_shape=(1, 3, 32, 32),
            macs=round(40_813_184 * scale),
            params=round(269_722 * scale),
            parity_error=3.1e-7 / scale,
            accuracy={"val": 0.93 - loss, "test": 0.92 - loss},
            accuracy_top5={"val": 0.95 - loss / 2, "test": 0.94 - loss / 2},
            accuracy_by_class={"test": {"cat": 0.85 - 2 * loss, "dog": 0.95 + loss}},
        ),
        environment={"onnxruntime": "1.31.1", "cpu": "Some CPU", "cores": 4, "governor": None},
        placement={
            "source": "assignment",
            "nodes": {"CPUExecutionProvider": 61},
            "left_to_cpu": [{"name": "a", "op_type": "Gather"}] * round(4 / scale),
            "partitions": round(6 / scale),
            "inputs": [],
        },
        memory={
            **figures,
            **told,
            "repeats": [peak] * 3,
            "arena": {"peak_bytes": peak // 4, "held_bytes": peak // 2, **told},
            "device": {"peak_bytes": peak * 20, **told},
        },
        latency_samples_s=samples(2.4e-3 * scale),
        load_s=(0.0151 * scale, 0.0148 * scale) * 5,
        first_inference_s=(0.0042 * scale,) * 10,
        instructions={"count": round(91_234_567 * scale), "repeats": [round(91_234_567 * scale)] * 3, **told},
    )


SLIM = replace(measured("slim", 0.5, 0.02), baseline=measured("dense", 1.0, 0.0))
BEFORE = replace(measured("earlier", 0.6, 0.01), baseline=measured("dense", 1.0, 0.0))

_WHY: dict[str, Any] = {"method": None, "why": "this system has no /proc"}
NOTHING = replace(
    SLIM,
    artifact=Artifact(Path("bare.onnx"), "b" * 64, 5_000),
    placement={**SLIM.placement, "partitions": None},
    memory={
        **dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")), **_WHY,
        "repeats": [],
        "arena": {"peak_bytes": None, "held_bytes": None, **_WHY}, "device": {"peak_bytes": None, **_WHY},
    },
    latency_samples_s=(),
    load_s=(),
    first_inference_s=(),
    instructions=dict(NOT_COUNTED),
    baseline=None,
)  # fmt: skip
