import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import RunError
from edgeprune.metrics import METRICS, Estimate
from edgeprune.target import Budget
from edgeprune.verdict import exit_code, gate, verdicts_from_json, verdicts_to_json

NAN, INF = math.nan, math.inf


class Measured:
    """A measurement that holds what it is given."""

    out_of_reach: tuple[str, ...] = ()

    def __init__(self, **values: float | Estimate | None) -> None:
        self.values = values

    def value(self, metric_name: str) -> float | Estimate | None:
        return self.values[metric_name]

    def why_unmeasured(self, metric_name: str) -> str:
        return f"Nobody looked at {metric_name}."

    def is_out_of_reach(self, metric_name: str) -> bool:
        return metric_name in self.out_of_reach


def budget(key: str, limit: float) -> Budget:
    return Budget(key, key[4:], key.startswith("max"), limit, str(limit))


def test_what_no_measurement_here_could_have_is_no_failure_and_no_pass() -> None:
    measured = Measured(latency_p50=None, size=10.0)
    measured.out_of_reach = ("latency_p50",)
    verdicts = gate([budget("max_latency_p50", 1.0), budget("max_size", 20.0)], measured)
    assert [verdict.state for verdict in verdicts] == ["cannot tell", "passed"]
    assert verdicts[0].text == "could not measure: Nobody looked at latency_p50"
    assert exit_code(verdicts) == 3
    assert verdicts_from_json(json.loads(json.dumps(verdicts_to_json(verdicts)))) == verdicts
    failing = gate([budget("max_latency_p50", 1.0), budget("max_size", 5.0)], measured)
    assert exit_code(failing) == 1


def judge(key: str, limit: float, measured: float | Estimate | None):
    (verdict,) = gate([budget(key, limit)], Measured(**{key[4:]: measured}))
    return verdict


@pytest.mark.parametrize(
    ("key", "limit", "measured", "state", "margin", "text"),
    [
        # plain numbers
        ("max_latency_p50", 0.012, 0.01169, "passed", 0.00031, "0.31 ms (2.6 %) to spare"),
        ("max_latency_p50", 0.012, 0.01231, "failed", -0.00031, "missed by 0.31 ms (2.6 %)"),
        ("max_latency_p50", 0.012, 0.012, "passed", 0.0, "at the limit"),
        ("min_throughput", 30.0, 36.0, "passed", 6.0, "6.0 /s (20.0 %) to spare"),
        ("min_throughput", 30.0, 27.0, "failed", -3.0, "missed by 3.0 /s (10.0 %)"),
        ("min_throughput", 30.0, 30.0, "passed", 0.0, "at the limit"),
        ("max_size", 1e6, 1_000_001, "failed", -1.0, "missed by 1 B"),
        ("max_size", 1e6, 1_000_000, "passed", 0.0, "at the limit"),
        ("min_accuracy", 0.9, 0.915, "passed", 0.015, "1.50 pp to spare"),
        ("max_accuracy_drop", 0.005, 0.0081, "failed", -0.0031, "missed by 0.31 pp"),
        ("max_accuracy_drop", 0.005, 0.00501, "failed", -0.00001, "missed by less than 0.01 pp"),
        ("max_accuracy_drop", 0.005, -0.002, "passed", 0.007, "0.70 pp to spare"),
        ("max_accuracy_drop", -0.001, 0.0, "failed", -0.001, "missed by 0.10 pp"),
        ("max_cpu_nodes", 0, 2, "failed", -2.0, "missed by 2"),
        ("max_cpu_nodes", 0, 0, "passed", 0.0, "at the limit"),
        ("max_macs_ratio", 0.65, 0.598, "passed", 0.052, "0.052 (8.0 %) to spare"),
        ("max_parity_error", 1e-4, 3e-7, "passed", 9.97e-5, "0.0001 (99.7 %) to spare"),
        # the interval's bad end decides about passing, its good end about failing
        ("max_latency_ratio", 0.95, Estimate(0.6, 0.57, 0.63), "passed", 0.35, "0.35 (36.8 %) to spare"),
        ("max_latency_ratio", 0.95, Estimate(0.9, 0.85, 0.95), "passed", 0.05, "0.050 (5.3 %) to spare"),
        ("max_latency_ratio", 0.95, Estimate(1.2, 1.1, 1.3), "failed", -0.25, "missed by 0.25 (26.3 %)"),
        ("min_throughput", 30.0, Estimate(40, 35, 45), "passed", 10.0, "10 /s (33.3 %) to spare"),
        ("min_throughput", 30.0, Estimate(32, 30, 34), "passed", 2.0, "2.0 /s (6.7 %) to spare"),
        ("min_throughput", 30.0, Estimate(20, 15, 25), "failed", -10.0, "missed by 10 /s (33.3 %)"),
        (
            "max_latency_ratio", 0.95, Estimate(0.85, 0.75, 0.97, more_runs=24), "cannot tell", 0.1,
            "the limit lies inside the interval; about 24 processes in all would tell",
        ),
        (
            "max_latency_ratio", 0.95, Estimate(1.05, 0.95, 1.15, more_runs=24), "cannot tell", -0.1,
            "the limit lies inside the interval; about 24 processes in all would tell",
        ),
        (
            "min_throughput", 30.0, Estimate(32, 29, 35, more_runs=50), "cannot tell", 2.0,
            "the limit lies inside the interval; about 50 processes in all would tell",
        ),
        (
            "max_latency_ratio", 0.95, Estimate(0.94, 0.8, 1.1, more_runs=90), "cannot tell", 0.01,
            "the limit lies inside the interval, and about 90 processes in all may still be too few: "
            "it is very close",
        ),
        (
            "max_latency_ratio", 0.95, Estimate(0.94, 0.92, 0.97), "cannot tell", 0.01,
            "the limit lies inside the interval, which is as narrow as is ever claimed: too close to tell",
        ),
        # open and odd intervals
        (
            "max_latency_p50", 0.012, Estimate(0.01, 0.009, INF, more_runs=9), "cannot tell", 0.002,
            "the limit lies inside the interval; about 9 processes in all would tell",
        ),
        ("max_load_time", 0.012, Estimate(0.018, 0.017, INF), "failed", -6e-3, "missed by 6.0 ms (50.0 %)"),
        (
            "max_latency_p50", 0.012, Estimate(0.013, 0.009, 0.010, more_runs=9), "cannot tell", -0.001,
            "the limit lies inside the interval; about 9 processes in all would tell",
        ),
    ],
)  # fmt: skip
def test_states_margins_and_texts(key, limit, measured, state, margin, text):
    verdict = judge(key, limit, measured)
    assert (verdict.state, verdict.text) == (state, text)
    assert verdict.margin == pytest.approx(margin, rel=1e-6, abs=1e-15)
    assert (verdict.measured, verdict.metric, verdict.limit) == (measured, key[4:], limit)


@pytest.mark.parametrize(
    ("slim", "limit"), [(0.91, 0.01), (0.9200 - 0.0001, 0.0001), (0.92, 0.0), (0.895, 0.025)]
)
def test_a_drop_exactly_at_its_limit_passes_in_spite_of_rounding(slim, limit):
    drop = 0.92 - slim
    assert judge("max_accuracy_drop", limit, drop).state == "passed"
    assert judge("max_accuracy_drop", limit, drop + 1e-6).state == "failed"  # one image in a million
    assert judge("min_accuracy_drop", limit, drop).state == "passed"


@pytest.mark.parametrize("end", ["max", "min"])
@pytest.mark.parametrize(
    "measured",
    [
        NAN,
        INF,
        -INF,
        Estimate(NAN, 0.1, 0.2),
        Estimate(0.1, NAN, 0.2),
        Estimate(0.1, 0.0, NAN),
        Estimate(INF, 0, INF),
    ],
)
def test_what_is_not_a_number_never_passes(end, measured):
    verdict = judge(f"{end}_latency_ratio", 0.5, measured)
    assert (verdict.state, verdict.measured, verdict.margin) == ("unmeasured", None, None)
    assert verdict.text == "the measured value is not a number"
    assert exit_code([verdict]) == 1


def test_unmeasured_fails_and_says_why():
    verdict = judge("max_peak_memory", 1e6, None)
    assert (verdict.state, verdict.margin) == ("unmeasured", None)
    assert verdict.text == "not measured: Nobody looked at peak_memory"
    assert verdict.measured_text == "not measured"
    assert exit_code([verdict]) == 1


numbers = st.floats(1e-6, 1e6)


@settings(deadline=None)
@given(numbers, st.lists(numbers, min_size=3, max_size=3).map(sorted), st.sampled_from(["max", "min"]))
def test_the_rule_of_the_interval(limit, ends, end):
    low, value, high = ends
    state = judge(f"{end}_latency_ratio", limit, Estimate(value, low, high)).state
    keeps = [edge <= limit if end == "max" else edge >= limit for edge in ends]
    assert (state == "passed") == all(keeps)
    assert (state == "failed") == (not any(keeps))
    assert (state == "cannot tell") == (any(keeps) and not all(keeps))


@settings(deadline=None)
@given(numbers, numbers, st.sampled_from(["max", "min"]))
def test_a_verdict_does_not_contradict_its_margin(limit, value, end):
    verdict = judge(f"{end}_latency_ratio", limit, value)
    assert verdict.margin is not None
    assert (verdict.state == "passed") == (verdict.margin >= 0)


PASSED = judge("max_size", 2.0, 1.0)
FAILED = judge("max_size", 1.0, 2.0)
UNMEASURED = judge("max_size", 1.0, None)
UNSURE = judge("max_latency_ratio", 0.95, Estimate(0.9, 0.8, 1.0, more_runs=20))
OPEN = judge("max_latency_p50", 0.95, Estimate(0.9, -INF, INF, 0.9))


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        ([PASSED], 0),
        ([PASSED, FAILED], 1),
        ([PASSED, UNMEASURED], 1),
        ([PASSED, UNSURE], 3),
        ([UNSURE, FAILED], 1),
        ([UNSURE, UNMEASURED, PASSED], 1),
    ],
)
def test_exit_codes(verdicts, code):
    assert exit_code(verdicts) == code


def test_budgets_keep_their_order():
    budgets = [budget("max_size", 1.0), budget("min_size", 1.0), budget("max_macs", 5.0)]
    verdicts = gate(budgets, Measured(size=1.0, macs=6))
    assert [v.budget for v in verdicts] == budgets
    assert [v.state for v in verdicts] == ["passed", "passed", "failed"]
    assert gate([], Measured()) == ()


def test_every_metric_can_be_judged():
    for name, metric in METRICS.items():
        verdict = judge(f"max_{name}", 1.0, Estimate(0.5, 0.4, 0.6))
        assert verdict.state == "passed"
        assert ("%" in verdict.text) == (metric.quantity not in ("fraction", "drop"))


def test_json_round_trip():
    verdicts = (PASSED, FAILED, UNMEASURED, UNSURE, OPEN)
    text = json.dumps(verdicts_to_json(verdicts), allow_nan=False)
    assert verdicts_from_json(json.loads(text)) == verdicts
    assert json.loads(text)["exit_code"] == 1
    assert verdicts_from_json(verdicts_to_json(())) == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value | {"format": 1},
        lambda value: value | {"exit_code": 0},
        lambda value: value["verdicts"],
        lambda value: value | {"verdicts": [value["verdicts"][0] | {"state": "fine"}]},
        lambda value: value | {"verdicts": [value["verdicts"][0] | {"more": 1}]},
        lambda value: value | {"verdicts": [value["verdicts"][0] | {"measured": {"value": 1}}]},
        lambda value: value | {"verdicts": [value["verdicts"][0] | {"state": "passed"}], "exit_code": 0},
        lambda value: value | {"verdicts": [value["verdicts"][0] | {"measured": "2"}]},
        lambda value: value | {"verdicts": [{}]},
        lambda value: value | {"verdicts": 3},
        lambda _: None,
    ],
)
def test_json_of_something_else_is_refused(spoil):
    value = verdicts_to_json((FAILED,))
    assert verdicts_from_json(value) == (FAILED,)  # the control: unspoilt it is read
    with pytest.raises(RunError, match=r"could not read the verdicts: .* Run the gate again"):
        verdicts_from_json(spoil(value))


def test_json_with_an_unknown_metric_is_refused():
    value = verdicts_to_json((replace(FAILED, budget=replace(FAILED.budget, metric="beauty")),))
    with pytest.raises(RunError, match="unknown metric beauty"):
        verdicts_from_json(value)
