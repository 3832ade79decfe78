"""What moved beyond noise: the rules, then how often they are right on simulated machines."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeprune import comparison
from edgeprune.comparison import change, changes, differences, has_common_dense, why_unknown
from edgeprune.metrics import Estimate
from edgeprune.record import RECORDED, Record, record_of
from tests.sessions import DATA, SLIM, TEMPLATE, quick_record, session

NOW, BEFORE = record_of(session(1)), record_of(session(2))
SLOWER = record_of(session(3, 1.3))


def state(metric: str, now: Record, before: Record) -> str:
    (row,) = changes(now, before, [metric])
    return row.state


def with_facts(record: Record, **facts: object) -> Record:
    return replace(record, artifact=replace(record.artifact, **facts))


def with_value(record: Record, metric: str, value: float | None) -> Record:
    values = {name: found for name, found in record.values.items() if name != metric}
    return replace(record, values=values if value is None else {**values, metric: value}, repeats={})


def test_the_hour_cancels_over_the_common_dense_network() -> None:
    slow_hour = record_of(session(4, hour=0.5))
    assert isinstance(slow_hour.values["latency_p50"], Estimate)
    assert isinstance(BEFORE.values["latency_p50"], Estimate)
    assert abs(math.log(slow_hour.values["latency_p50"].value / BEFORE.values["latency_p50"].value)) > 0.2
    (note,) = differences(slow_hour, BEFORE)
    assert re.fullmatch(r"The dense network took [+-]\d+\.\d %: that is the machine, and not in .*", note)
    moved = change("latency_p50", slow_hour, BEFORE)
    assert isinstance(moved, Estimate)
    assert abs(math.log(moved.value)) < 0.03
    assert moved.low < 1 < moved.high


def test_another_dense_network_means_plain_times_with_a_wide_interval() -> None:
    other = replace(NOW, baseline=with_facts(NOW.baseline, sha256="99" * 32))
    assert has_common_dense(NOW, BEFORE)
    assert not has_common_dense(other, BEFORE)
    narrow, wide = change("latency_p50", NOW, BEFORE), change("latency_p50", other, BEFORE)
    assert isinstance(narrow, Estimate)
    assert isinstance(wide, Estimate)
    assert wide.value == NOW.values["latency_p50"].value / BEFORE.values["latency_p50"].value
    assert narrow.high / narrow.value < 1.05
    assert wide.high / wide.value > 1.14
    assert any("plain times" in text for text in differences(other, BEFORE))
    assert not any("plain times" in text for text in differences(NOW, BEFORE))
    assert not differences(NOW, NOW)


def test_another_onnxruntime_moves_the_dense_network_too() -> None:
    other = replace(NOW, environment={**NOW.environment, "onnxruntime": "1.32.0"})
    assert not has_common_dense(other, BEFORE)
    assert "Another onnxruntime: 1.31.1 before, 1.32.0 now." in differences(other, BEFORE)


@pytest.mark.parametrize(
    ("part", "key", "value", "why"),
    [
        ("environment", "cpu", "another one", "Another processor: a processor before, another one now."),
        ("environment", "machine", "aarch64", "Another machine: x86_64 before, aarch64 now."),
        ("environment", "emulator", "qemu", "Another emulator: none before, qemu now."),
        ("runtime", "threads", 4, "Run in another way: threads 1 before, 4 now."),
        ("runtime", "dims", {"h": 9}, "Run in another way: dims {} before, {'h': 9} now."),
    ],
)
def test_times_of_another_machine_or_way_are_not_compared(part, key, value, why) -> None:
    other = replace(NOW, **{part: {**getattr(NOW, part), key: value}})
    for metric in ("latency_p50", "cold_start", "throughput", "peak_memory", "arena_memory", "instructions"):
        assert why_unknown(metric, other, BEFORE) == why
        assert change(metric, other, BEFORE) is None
        assert state(metric, other, BEFORE) == "not compared"
    assert state("size", other, BEFORE) == "no change"  # a byte is a byte
    assert why in differences(other, BEFORE)


def test_another_host_or_interpreter_is_no_other_way() -> None:
    elsewhere = session(1)
    elsewhere = replace(elsewhere, runtime={**elsewhere.runtime, "python": "/opt/bin/python"})
    assert why_unknown("latency_p50", record_of(elsewhere), BEFORE) is None


def test_what_is_worth_telling_although_it_is_compared() -> None:
    other = replace(
        NOW,
        target_name="b",
        target_sha256="00",
        environment={**NOW.environment, "governor": "powersave"},
        runtime={**NOW.runtime, "precision": "int8"},
    )
    texts = differences(other, BEFORE)
    assert "Another clock governor: none before, powersave now." in texts
    assert "Another precision: fp32 before, int8 now." in texts
    assert "Another target: test device before, b now." in texts
    assert "Another target: its file was edited." in differences(replace(NOW, target_sha256="00"), BEFORE)


def test_not_measured_says_on_which_side() -> None:
    assert "device_memory" not in NOW.values
    assert why_unknown("device_memory", NOW, BEFORE) == "Not measured now: it has no GPU."
    lacking = with_value(BEFORE, "accuracy", None)
    assert why_unknown("accuracy", NOW, lacking) == "Not measured before: nobody asked for it."


def test_accuracy_is_a_drop_and_five_images_are_chance() -> None:
    def at(right: int) -> Record:
        return with_value(NOW, "accuracy", right / 359)

    assert change("accuracy", at(320), at(330)) == pytest.approx(10 / 359)
    assert state("accuracy", at(325), at(330)) == "no change"
    assert state("accuracy", at(324), at(330)) == "worse"
    assert state("accuracy", at(336), at(330)) == "better"
    nobody_counted = {**SLIM.provenance, "data": {"name": "x", "identity": DATA["identity"]}}
    uncounted = with_facts(at(329), provenance=nobody_counted)
    assert state("accuracy", uncounted, at(330)) == "worse"
    # A class has a tenth of the images, so that one image is ten times as much.
    worst = with_value(NOW, "worst_class_accuracy", 0.7), with_value(NOW, "worst_class_accuracy", 0.8)
    assert state("worst_class_accuracy", *worst) == "no change"


def test_accuracy_on_other_images_is_not_compared() -> None:
    other = with_facts(NOW, provenance={**SLIM.provenance, "data": {**DATA, "identity": "00"}})
    assert why_unknown("accuracy", other, BEFORE) == "It is the accuracy on other data than before."
    assert state("accuracy", other, BEFORE) == "not compared"


@pytest.mark.parametrize(
    ("metric", "before", "now", "expected"),
    [
        ("size", 100_000, 100_400, "no change"),
        ("size", 100_000, 101_000, "worse"),
        ("size", 100_000, 99_000, "better"),
        ("macs", 50, 51, "worse"),
        ("params", 30, 30, "no change"),
        ("parity_error", 1e-7, 8e-7, "no change"),
        ("parity_error", 1e-7, 2e-6, "worse"),
        ("cpu_nodes", 0, 0, "no change"),
        ("cpu_nodes", 0, 1, "worse"),
        ("cpu_nodes", 2, 0, "better"),
    ],
)
def test_figures_without_an_interval(metric: str, before: float, now: float, expected: str) -> None:
    assert state(metric, with_value(NOW, metric, now), with_value(BEFORE, metric, before)) == expected


def test_something_of_nothing_is_infinite() -> None:
    assert change("cpu_nodes", with_value(NOW, "cpu_nodes", 1.0), BEFORE) == math.inf


def test_a_peak_of_nothing_is_compared() -> None:
    before = replace(with_value(BEFORE, "peak_memory", 0.0), repeats={"peak_memory": [0, 0]})
    now = replace(with_value(NOW, "peak_memory", 1e6), repeats={"peak_memory": [1_000_000]})
    assert state("peak_memory", now, before) == "worse"
    assert state("peak_memory", before, before) == "no change"


@pytest.mark.parametrize(
    "facts",
    [
        {"images": {"test": None}}, {"images": {"test": "many"}}, {"images": {"test": -3}}, {"images": 3},
        {"images": {"test": 100}, "classes": "ten"}, {"images": {"test": 100}, "classes": -1}, {},
    ],
)  # fmt: skip
def test_what_a_file_tells_of_its_images_may_be_anything(facts: dict[str, Any]) -> None:
    """Without a count of images every difference is one."""
    data = {"identity": "i", **facts}
    before, now = (
        with_facts(with_value(NOW, "worst_class_accuracy", share), provenance={"data": data})
        for share in (0.9, 0.88)
    )
    assert state("worst_class_accuracy", now, before) == "worse"


def test_memory_and_instructions_by_their_repeats() -> None:
    def at(peak: int, count: int) -> Record:
        values = {**NOW.values, "peak_memory": float(peak), "instructions": float(count)}
        repeats = {"peak_memory": [peak - 20_000, peak, peak + 20_000], "instructions": [count] * 3}
        return replace(NOW, values=values, repeats=repeats)

    before = at(5_000_000, 1000)
    assert state("peak_memory", at(5_100_000, 1000), before) == "no change"
    assert state("peak_memory", at(5_400_000, 1000), before) == "worse"
    assert state("instructions", at(5_000_000, 1004), before) == "no change"
    assert state("instructions", at(5_000_000, 1010), before) == "worse"
    # A tenth of a megabyte is much of a small peak.
    assert state("peak_memory", at(530_000, 1000), at(500_000, 1000)) == "cannot tell"


def test_nothing_under_the_minimal_claim_is_a_change() -> None:
    exact = replace(
        TEMPLATE, over_dense={**TEMPLATE.over_dense, "latency_p50": Estimate(0.5, 0.4999, 0.5001)}
    )
    moved = change("latency_p50", exact, exact)
    assert isinstance(moved, Estimate)
    assert moved.high == pytest.approx(1.03)
    assert moved.more_runs is None


def test_throughput_is_the_other_way_round() -> None:
    moved, time = (change(metric, SLOWER, BEFORE) for metric in ("throughput", "latency_p50"))
    assert isinstance(moved, Estimate)
    assert isinstance(time, Estimate)
    assert moved.value == pytest.approx(1 / time.value)
    assert moved.low < moved.value < moved.high
    assert state("throughput", SLOWER, BEFORE) == state("latency_p50", SLOWER, BEFORE) == "worse"
    assert state("throughput", BEFORE, SLOWER) == state("latency_p50", BEFORE, SLOWER) == "better"


def test_a_wide_interval_cannot_tell_and_says_what_would() -> None:
    for end, text in ((1.075, "about 190 processes each would"), (1.5, "other work disturbed a measurement")):
        wide = {**TEMPLATE.over_dense, "latency_p50": Estimate(0.5, 0.5 / end, 0.5 * end)}
        noisy = replace(TEMPLATE, over_dense=wide, processes=10)
        (row,) = changes(noisy, noisy, ["latency_p50"])
        assert row.state == "cannot tell"
        assert text in row.why
    other = replace(NOW, baseline=None)
    (row,) = changes(other, BEFORE, ["latency_p50"])
    assert row.state == "cannot tell"
    assert "more processes would not narrow it" in row.why


def test_a_tail_that_other_work_made_is_no_slowdown() -> None:
    def disturbed(height: float) -> Record:
        """A session in which each tenth inference of both networks took so much longer."""
        calm, sides = session(1), []
        for side in (calm, calm.baseline):
            assert side is not None
            longer = tuple((*times[:-1], times[-1] * height) for times in side.latency_samples_s)
            sides.append(replace(side, latency_samples_s=longer))
        # It hits the short network harder.
        hit = tuple((*times[:-1], times[-1] * height) for times in sides[0].latency_samples_s)
        return record_of(replace(sides[0], latency_samples_s=hit, baseline=sides[1]))

    for metric in ("latency_p90", "latency_p95"):
        assert state(metric, disturbed(3.0), BEFORE) == "cannot tell"
        assert state(metric, BEFORE, disturbed(3.0)) == "cannot tell"
        assert state(metric, record_of(session(5, 1.5)), BEFORE) == "worse"
    assert state("latency_p50", disturbed(3.0), BEFORE) == "no change"


def test_every_metric_has_a_rule_and_throughput_is_no_row_of_its_own() -> None:
    names = [row.metric for row in changes(NOW, BEFORE)]
    assert set(names) == {*NOW.values} - {"throughput"}
    for metric in RECORDED:
        known = change(metric, NOW, BEFORE) is not None
        assert known == (why_unknown(metric, NOW, BEFORE) is None)


# --- how often it is right ----------------------------------------------------------------------------------

REPEATS = 800


def states(slowdown: float, **machine: float) -> Counter[str]:
    """Verdicts on simulated pairs of sessions, in percent."""
    rng = np.random.default_rng(7)
    found: Counter[str] = Counter()
    for _ in range(REPEATS):
        before, now = quick_record(rng, **machine), quick_record(rng, slowdown, **machine)
        found[state("latency_p50", now, before)] += 1
    return Counter({name: round(100 * count / REPEATS) for name, count in found.items()})


def test_the_same_network_is_no_change_and_a_slowdown_is_found() -> None:
    assert states(1.0)["no change"] >= 98  # so that 19 of 20 hold nearly always
    assert states(1.05)["worse"] >= 95
    assert states(1 / 1.05)["better"] >= 95


def test_no_false_alarm_where_the_processes_differ_more() -> None:
    found = states(1.0, process_spread=0.04)
    assert found["worse"] + found["better"] <= 2


def test_without_the_spread_between_sessions_it_would_cry_wolf(monkeypatch: pytest.MonkeyPatch) -> None:
    # The negative control: intervals of processes alone, and a machine whose hours differ.
    monkeypatch.setitem(comparison.SESSION_SPREAD, "latency_p50", 0.0)
    monkeypatch.setattr(comparison, "_FLOOR", 1e-9)
    found = states(1.0)
    assert found["worse"] + found["better"] >= 15


def test_plain_times_do_not_take_the_hour_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    pairs = [[replace(quick_record(rng), baseline=None) for _ in range(2)] for _ in range(300)]

    def alarms() -> int:
        return sum(state("latency_p50", *pair) in ("worse", "better") for pair in pairs)

    assert alarms() <= 0.07 * len(pairs)
    monkeypatch.setattr(comparison, "PLAIN_SPREAD", 0.0)
    assert alarms() >= 0.3 * len(pairs)


@pytest.mark.parametrize("slowdown", [1.0, 1.05, 1.2])
def test_the_interval_of_a_change_covers_the_truth(slowdown: float) -> None:
    rng = np.random.default_rng(9)
    hits = 0
    for _ in range(REPEATS):
        moved = change("latency_p50", quick_record(rng, slowdown), quick_record(rng))
        assert isinstance(moved, Estimate)
        hits += moved.low <= slowdown <= moved.high
    assert hits >= 0.95 * REPEATS
