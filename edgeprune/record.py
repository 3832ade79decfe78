"""What a committed file keeps of a measurement: facts, figures with intervals, no samples. No torch.

A measurement is some 100 kB of samples. For a comparison with a later one it is enough to know each figure
with its interval over the processes, alone and over the dense network of the same processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact, is_artifact, is_number
from edgeprune.errors import ReleaseError
from edgeprune.files import sha256_json
from edgeprune.measurement import Measurement
from edgeprune.metrics import METRICS, Estimate
from edgeprune.statistics import percentile_ratio_estimate, ratio_estimate

RECORDED = tuple(name for name, metric in METRICS.items() if not metric.relative)
"""The metrics that a record can hold: those of one network alone."""
DIGITS = 6
"""Significant digits of what has an interval."""

_OF_ONE_MACHINE = ("python", "perf_test", "web")  # paths
_BULKY = ("macs_by_node",)
_MOST_CLASSES = 20  # above that a file to be committed holds the worst class alone
_KEYS = {
    "target_name": str, "target_sha256": str, "runtime": dict, "artifact": dict, "environment": dict,
    "measurement_sha256": str, "processes": int, "values": dict, "over_dense": dict, "repeats": dict,
    "unmeasured": dict,
}  # fmt: skip
_OF_THE_BASELINE = {"artifact", "measurement_sha256", "values", "repeats", "unmeasured"}


@dataclass(frozen=True)
class Record:
    """A measurement reduced to what a committed file can hold.

    Attributes:
        target_name: Name of the target.
        target_sha256: Of the target file, hex.
        runtime: The target's ``[runtime]``, less the paths of the machine that measured.
        artifact: The file's facts, less the multiply-adds of each node, and of the accuracy by class the test
            split alone, without that if there are many classes.
        environment: Versions, processor, governor, load and what disturbed the timed runs.
        measurement_sha256: Of the whole measurement as canonical JSON, hex.
        processes: That were timed; 0: none.
        values: Metric -> value in SI units, if it was measured; times with their interval over processes.
        over_dense: Time metric -> the same over the dense network's, process by process; without the floor
            under which nothing is claimed, since that is for the comparison to apply.
        repeats: ``peak_memory`` and ``instructions`` as each process found them.
        unmeasured: Metric -> why it was not measured.
        baseline: The dense network of the same processes.
    """

    target_name: str
    target_sha256: str
    runtime: dict[str, Any]
    artifact: Artifact
    environment: dict[str, Any]
    measurement_sha256: str
    processes: int
    values: dict[str, float | Estimate]
    over_dense: dict[str, Estimate] = field(default_factory=dict)
    repeats: dict[str, list[int]] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    baseline: Record | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values, in a stable order."""
        content = {**asdict(replace(self, baseline=None)), "artifact": asdict(self.artifact)}
        content["artifact"]["path"] = self.artifact.path.name
        content["artifact"]["input_shape"] = self.artifact.input_shape and list(self.artifact.input_shape)
        for name in ("values", "over_dense"):
            content[name] = {key: _number_to_json(value) for key, value in getattr(self, name).items()}
        content["baseline"] = None
        if self.baseline:
            dense = self.baseline.to_json()
            content["baseline"] = {key: value for key, value in dense.items() if key in _OF_THE_BASELINE}
        return content

    @classmethod
    def from_json(cls, content: Any, where: str = "the record") -> Record:
        """Read what ``to_json`` gives, strictly.

        Args:
            content: The JSON value.
            where: What to call it in an error.

        Raises:
            ReleaseError: A part of it is absent, unknown or wrong.
        """
        fault = record_fault(content)
        if fault:
            raise ReleaseError(
                "could not read the record",
                where=where,
                value=fault,
                expected="what `edgeprune release` writes",
                hint="Take the file from git again, or release anew.",
            )
        facts, baseline = dict(content["artifact"]), _whole_baseline(content)
        shape = facts["input_shape"]
        facts |= {"path": Path(facts["path"]), "input_shape": None if shape is None else tuple(shape)}
        parsed: dict[str, Any] = {
            name: {key: _number_from_json(value) for key, value in content[name].items()}
            for name in ("values", "over_dense")
        }
        rest: dict[str, Any] = {key: content[key] for key in _KEYS if key not in (*parsed, "artifact")}
        return cls(
            **rest,
            **parsed,
            artifact=Artifact(**facts),
            baseline=None if baseline is None else cls.from_json(baseline, where),
        )


def record_of(measurement: Measurement) -> Record:
    """Reduce a measurement to its record.

    Example:
        >>> record_of(load_measurement("measurement.json")).over_dense["latency_p50"]  # doctest: +SKIP
        Estimate(value=0.612, low=0.606, high=0.618, confidence=0.95, more_runs=None)
    """
    dense = measurement.baseline
    one = _alone(measurement)
    if dense is None:
        return one
    return replace(one, over_dense=dict(_over_dense(measurement, dense)), baseline=_alone(dense))


def comparable_runtime(runtime: dict[str, Any]) -> dict[str, Any]:
    """How a network is run, less the paths of the machine that did it, as JSON values."""
    return {key: _plain(value) for key, value in runtime.items() if key not in _OF_ONE_MACHINE}


def _alone(one: Measurement) -> Record:
    values = {name: one.value(name) for name in RECORDED}
    provenance = {key: value for key, value in one.artifact.provenance.items() if key not in _BULKY}
    test = one.artifact.accuracy_by_class.get("test", {})
    by_class = {"test": test} if 0 < len(test) <= _MOST_CLASSES else {}
    facts: dict[str, Any] = {
        "path": Path(one.artifact.path.name),
        "provenance": provenance,
        "accuracy_by_class": by_class,
    }
    repeats = {"peak_memory": one.memory["repeats"], "instructions": one.instructions["repeats"]}
    return Record(
        target_name=one.target_name,
        target_sha256=one.target_sha256,
        runtime=comparable_runtime(one.runtime),
        artifact=replace(one.artifact, **facts),
        environment={key: value for key, value in one.environment.items() if key != "providers"},
        measurement_sha256=sha256_json(one.to_json()),
        processes=len(one.latency_samples_s),
        values={name: _rounded(value) for name, value in values.items() if value is not None},
        repeats={name: list(found) for name, found in repeats.items() if found},
        unmeasured={name: one.why_unmeasured(name) or "" for name, value in values.items() if value is None},
    )


def _over_dense(slim: Measurement, dense: Measurement) -> Iterator[tuple[str, Estimate]]:
    """Times over the dense network's, process by process, so that what disturbs both cancels."""
    if not slim.latency_samples_s:
        return
    # Without a floor: it is for the comparison of two of these to apply.
    yield "latency_p50", _rounded(ratio_estimate(slim.pairs, floor=0.0))
    sides = (slim.latency_samples_s, dense.latency_samples_s)
    for name in RECORDED:
        if name.startswith("latency_p") and name != "latency_p50" and slim.value(name) is not None:
            q = float(name.removeprefix("latency_p"))
            yield name, _rounded(percentile_ratio_estimate(*sides, q, floor=0.0))
    for name, ours, theirs in (
        ("load_time", slim.load_s, dense.load_s),
        ("first_inference", slim.first_inference_s, dense.first_inference_s),
        ("cold_start", slim.cold_start_s, dense.cold_start_s),
    ):
        pairs = zip(ours, theirs, strict=True)
        yield name, _rounded(ratio_estimate([[pair] for pair in pairs], floor=0.0))


def _rounded(value: Any) -> Any:
    """An estimate to ``DIGITS`` digits, so that a line stays short; all else as it is."""
    if not isinstance(value, Estimate):
        return value
    middle, low, high = (float(f"{end:.{DIGITS}g}") for end in (value.value, value.low, value.high))
    return Estimate(middle, low, high)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple | list) else value


def _number_to_json(value: float | Estimate) -> Any:
    if isinstance(value, Estimate):
        return {"value": value.value, "low": value.low, "high": value.high}
    return value


def _number_from_json(value: Any) -> Any:
    return Estimate(**value) if isinstance(value, dict) else value


# --- reading strictly ---------------------------------------------------------------------------------------


def record_fault(content: Any) -> str | None:
    """What is wrong with a record's JSON, to follow "is"; None if nothing is."""
    if not isinstance(content, dict):
        return "not a table"
    odd = set(content) ^ {*_KEYS, "baseline"}
    if odd:
        return f"with {', '.join(sorted(odd))} missing or unknown"
    for key, kind in _KEYS.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            return f"wrong in '{key}'"
    checks = {
        "artifact": is_artifact(content["artifact"]),
        "processes": content["processes"] >= 0,
        "values": _is_figures(content["values"], RECORDED),
        "over_dense": _is_figures(content["over_dense"], RECORDED)
        and all(isinstance(value, dict) for value in content["over_dense"].values()),
        "repeats": set(content["repeats"]) <= {"peak_memory", "instructions"}
        and all(_is_numbers(found) and min(found) >= 0 for found in content["repeats"].values()),
        "unmeasured": set(content["unmeasured"]) <= set(RECORDED) - set(content["values"])
        and all(isinstance(why, str) for why in content["unmeasured"].values()),
    }
    wrong = [key for key, is_right in checks.items() if not is_right]
    if wrong:
        return f"wrong in '{wrong[0]}'"
    baseline = content["baseline"]
    if baseline is None:
        return None if not content["over_dense"] else "compared with a dense network that it does not hold"
    if not isinstance(baseline, dict) or set(baseline) != _OF_THE_BASELINE:
        return "wrong in 'baseline'"
    fault = record_fault(_whole_baseline(content))
    return f"{fault} of its baseline" if fault else None


def _whole_baseline(content: dict[str, Any]) -> dict[str, Any] | None:
    """The dense network's record with what it shares with the slim one's, which a file holds once."""
    own = content["baseline"]
    return None if own is None else {**content, "over_dense": {}, "baseline": None, **own}


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(is_number, values))


def _is_figures(values: dict[str, Any], known: Sequence[str]) -> bool:
    """Times have intervals, nothing else has, nothing is below 0, and the height of a tail is known."""
    return (
        set(values) <= set(known)
        and all(
            _is_estimate(one) if METRICS[name].quantity in ("time", "rate") else is_number(one) and one >= 0
            for name, one in values.items()
        )
        and ("latency_p50" in values or not any(name.startswith("latency_p") for name in values))
    )


def _is_estimate(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"value", "low", "high"}:
        return False
    return _is_numbers(list(value.values())) and 0 < value["low"] <= value["value"] <= value["high"]
