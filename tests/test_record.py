from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeprune.errors import ReleaseError
from edgeprune.files import sha256_json
from edgeprune.metrics import METRICS, Estimate
from edgeprune.record import RECORDED, Record, record_of
from tests.sessions import SLIM, put, session

MEASUREMENT = session(1, processes=25)
RECORD = record_of(MEASUREMENT)


def through_json(record: Record) -> Record:
    return Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def test_it_comes_back_from_json_as_it_was() -> None:
    assert through_json(RECORD) == RECORD
    alone = record_of(replace(MEASUREMENT, baseline=None))
    assert alone.over_dense == {}
    assert through_json(alone) == alone


def test_values_are_those_of_the_measurement() -> None:
    for side, record in ((MEASUREMENT, RECORD), (MEASUREMENT.baseline, RECORD.baseline)):
        assert side is not None
        assert record is not None
        for name in RECORDED:
            value, kept = side.value(name), record.values.get(name)
            if isinstance(value, Estimate):
                assert isinstance(kept, Estimate)
                assert [kept.value, kept.low, kept.high] == pytest.approx(
                    [value.value, value.low, value.high], rel=1e-5
                )
            else:
                assert kept == value
            assert (name in record.unmeasured) == (value is None)
    assert not any(METRICS[name].relative for name in RECORDED)


def test_what_is_over_the_dense_network() -> None:
    ratio = MEASUREMENT.latency_ratio
    assert ratio is not None
    kept = RECORD.over_dense["latency_p50"]
    assert kept.value == pytest.approx(ratio.value, rel=1e-5)
    assert kept.high < ratio.high  # no floor yet
    tail = MEASUREMENT.value("latency_p90_ratio")
    assert isinstance(tail, Estimate)
    assert RECORD.over_dense["latency_p90"].value == pytest.approx(tail.value, rel=1e-5)
    assert set(RECORD.over_dense) == {
        "latency_p50", "latency_p90", "latency_p95", "load_time", "first_inference", "cold_start",
    }  # fmt: skip


def test_a_single_disturbed_process_does_not_decide_a_tail() -> None:
    """Over all runs together it would."""
    first, *rest = MEASUREMENT.latency_samples_s
    disturbed = replace(MEASUREMENT, latency_samples_s=(tuple(time * 20 for time in first), *rest))
    for name in ("latency_p90", "latency_p95"):
        calm, now = RECORD.over_dense[name], record_of(disturbed).over_dense[name]
        assert now.value == pytest.approx(calm.value, rel=0.02)
    pooled = [np.percentile(np.concatenate(one.latency_samples_s), 97) for one in (MEASUREMENT, disturbed)]
    assert pooled[1] > 5 * pooled[0]


def test_nothing_of_the_machine_and_nothing_bulky_is_kept() -> None:
    text = json.dumps(RECORD.to_json())
    assert not any(word in text for word in ("python3", "perf_test", "macs_by_node", "providers", "run/"))
    assert len(text) < 8000
    assert RECORD.measurement_sha256 == sha256_json(MEASUREMENT.to_json())
    many = {"test": {str(number): 0.5 for number in range(21)}}
    crowded = record_of(replace(MEASUREMENT, artifact=replace(SLIM, accuracy_by_class=many)))
    assert crowded.artifact.accuracy_by_class == {}
    assert RECORD.artifact.accuracy_by_class == SLIM.accuracy_by_class


def test_a_network_that_was_not_timed() -> None:
    untimed = [
        replace(one, latency_samples_s=(), load_s=(), first_inference_s=())
        for one in (MEASUREMENT, MEASUREMENT.baseline)
        if one is not None
    ]
    record = record_of(replace(untimed[0], baseline=untimed[1]))
    assert record.over_dense == {}
    assert record.processes == 0
    assert record.unmeasured["latency_p50"] == "Nothing was timed."
    assert through_json(record) == record


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        ((), [], "not a table"),
        (("processes",), -1, "wrong in 'processes'"),
        (("processes",), True, "wrong in 'processes'"),
        (("target_name",), 3, "wrong in 'target_name'"),
        (("extra",), 3, "with extra missing or unknown"),
        (("artifact", "size_bytes"), "big", "wrong in 'artifact'"),
        (("values", "size"), "big", "wrong in 'values'"),
        (("values", "size"), -1, "wrong in 'values'"),
        (("values", "size"), {"value": 1.0, "low": 1.0, "high": 1.0}, "wrong in 'values'"),
        (("values", "latency_p50"), 0.01, "wrong in 'values'"),
        (("values", "throughput"), 100.0, "wrong in 'values'"),
        (("values", "latency_p50"), None, "wrong in 'values'"),
        (("artifact", "size_bytes"), -1, "wrong in 'artifact'"),
        (("artifact", "accuracy"), {"test": 1.2}, "wrong in 'artifact'"),
        (("repeats", "peak_memory"), [-5], "wrong in 'repeats'"),
        (("values", "sise"), 1.0, "wrong in 'values'"),
        (("values", "latency_p50", "low"), 9.0, "wrong in 'values'"),
        (("over_dense", "latency_p50"), 1.0, "wrong in 'over_dense'"),
        (("over_dense", "latency_p50", "value"), float("nan"), "wrong in 'over_dense'"),
        (("repeats", "size"), [1], "wrong in 'repeats'"),
        (("repeats", "peak_memory"), ["x"], "wrong in 'repeats'"),
        (("unmeasured", "size"), "why", "wrong in 'unmeasured'"),
        (("baseline",), None, "compared with a dense network that it does not hold"),
        (("baseline", "values", "size"), "big", "wrong in 'values' of its baseline"),
        (("baseline", "baseline"), None, "wrong in 'baseline'"),
        (("baseline",), [], "wrong in 'baseline'"),
    ],
)
def test_a_wrong_part_is_named(keys: tuple[str, ...], value: Any, fault: str) -> None:
    content: Any = json.loads(json.dumps(RECORD.to_json()))
    content = put(content, keys, value)
    with pytest.raises(ReleaseError, match=fault):
        Record.from_json(content, "release.json")


@pytest.mark.parametrize("part", ["values", "over_dense"])
def test_a_tail_without_its_median_is_refused(part: str) -> None:
    content = json.loads(json.dumps(RECORD.to_json()))
    del content[part]["latency_p50"]
    with pytest.raises(ReleaseError, match=f"wrong in '{part}'"):
        Record.from_json(content)
