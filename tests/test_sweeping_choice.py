"""Which point of a sweep is chosen, and what is said if none is."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.measurement import Measurement
from edgeprune.metrics import Estimate
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.sweeping import choice, page
from edgeprune.pipeline.sweeping.choice import Measured, Outcome, miss_of, outcome_of
from edgeprune.pipeline.sweeping.folder import Failure, SweepFolder
from edgeprune.pipeline.sweeping.points import SweepPlan
from edgeprune.report import plotting
from edgeprune.report.markdown import sweep_markdown
from edgeprune.report.sweeps import sweep_html, sweep_table, terminal_table
from edgeprune.target import Budget
from edgeprune.verdict import Verdict, gate
from tests.test_measurement import DENSE, SLIM

PLAN = SweepPlan(Settings("resnet20"), ("magnitude", "activation-weight"), (0.3, 0.5))
SIZE = Budget("max_size", "size", True, 700.0, "700 B")


class Fake(Measurement):
    """A measurement whose latency is given."""

    latencies: tuple[Any, Any] = (None, None)

    def value(self, metric: str) -> float | Estimate | None:
        if metric in ("latency_p50", "latency_ratio"):
            return self.latencies[metric == "latency_ratio"]  # type: ignore[no-any-return]
        return super().value(metric)


def measured(name: str, size: int = 600, latency: Any = (None, None), budgets: Any = (SIZE,)) -> Measured:
    point = next(one for one in PLAN.points() if one.name == name)
    empty: dict[str, Any] = {"runtime": {}, "environment": {}, "placement": {}, "memory": {}}
    own = {"latency_samples_s": (), "load_s": (), "first_inference_s": ()}
    dense = Measurement("t", "ab", artifact=DENSE, **empty, **own)  # type: ignore[arg-type]
    slim = Fake("t", "ab", artifact=replace(SLIM, size_bytes=size), baseline=dense, **empty, **own)  # type: ignore[arg-type]
    object.__setattr__(slim, "latencies", latency)
    return Measured(point, None, slim, gate(budgets, slim))


A, B, C = "magnitude-macs-0.3", "magnitude-macs-0.5", "activation-weight-macs-0.3"


def chosen(monkeypatch: pytest.MonkeyPatch, *points: Measured) -> Outcome:
    names = {one.point.name: one for one in points}
    folder = SweepFolder(Path("s"), PLAN)
    monkeypatch.setattr(choice, "_measured", lambda _, point: names[point.name])
    monkeypatch.setattr(SweepPlan, "points", lambda _: tuple(one.point for one in points))
    return outcome_of(folder)


def test_fewest_bytes_then_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Estimate(2e-3, 1e-3, 3e-3), Estimate(1e-3, 0.5e-3, 3e-3)
    points = (measured(A, 650, (fast, fast)), measured(B, 600, (slow, slow)), measured(C, 600, (fast, fast)))
    outcome = chosen(monkeypatch, *points)
    assert outcome.best is points[2]
    assert outcome.exit_code == 0
    assert outcome.closest is None


def test_none_passes_one_cannot_be_told_or_one_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = Budget("max_latency_ratio", "latency_ratio", True, 0.6, "0.6")
    wide, over = Estimate(0.5, 0.4, 0.7), Estimate(0.9, 0.8, 1.0)
    budgets = (SIZE, ratio)
    open_, miss = measured(A, 600, (wide, wide), budgets), measured(B, 770, (over, over), budgets)
    outcome = chosen(monkeypatch, miss, open_)
    assert outcome.exit_code == 3
    assert (outcome.best, outcome.closest) == (None, open_)
    assert "came closest (undecided): latency, slim / dense 0.500" in page.sentence(outcome)
    outcome = chosen(monkeypatch, miss)
    assert outcome.exit_code == 1
    told = page.sentence(outcome)
    assert (
        "magnitude-macs-0.5 came closest (at worst 50.00 % over a limit): ONNX file 770 B, limit 700 B"
        in told
    )
    assert "missed by 0.30 (50.0 %)" in told
    failed = Measured(open_.point, Failure("boom", 3))
    assert chosen(monkeypatch, failed, measured(B)).exit_code == 3
    assert chosen(monkeypatch, failed, replace(failed, failure=Failure("x", 2)), measured(B)).exit_code == 2
    assert chosen(monkeypatch, failed).exit_code == 3


def test_by_how_much_a_budget_is_missed() -> None:
    drop = Budget("max_accuracy_drop", "accuracy_drop", True, 0.0, "0 pp")
    assert miss_of(Verdict(drop, 0.004, "failed", -0.004, "")) == pytest.approx(0.4)
    assert miss_of(Verdict(SIZE, 770.0, "failed", -70.0, "")) == pytest.approx(0.1)
    assert miss_of(Verdict(SIZE, 600.0, "passed", 100.0, "")) == 0.0
    assert miss_of(Verdict(SIZE, None, "unmeasured", None, "")) == float("inf")


def test_the_table_fits_80_columns_and_the_page_holds_hostile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    wide = Estimate(0.612, 0.498, 0.731)
    points = (measured(A, 650, (wide, wide)), measured(C, 1_234_567, (wide, wide)))
    failed = Measured(measured(B).point, Failure("could <b>not</b>", 2))
    outcome = chosen(monkeypatch, *points, failed)
    report = page.report_of(Path("s"), replace(PLAN, settings=Settings("<script>x</script>")), outcome)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(report))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[:4] == ["dense", "-", "1.00", "kB"]
    assert "0.61 [0.50, 0.73]" in lines[3]
    assert lines[3].split()[-1] == "best"
    assert lines[4].startswith("activation-weight   0.3")
    assert lines[-1].split()[-1] == "error"
    html, text = sweep_html(report), sweep_markdown(report)
    assert "<script>" not in html
    assert "could &lt;b&gt;not" in html
    assert "could &lt;b>not" in text
    assert len(sweep_table(report).rows) == 4


def test_without_matplotlib_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    report = page.report_of(Path("s"), PLAN, chosen(monkeypatch, measured(A)))
    assert sweep_html(report).count("<svg") == 2
    monkeypatch.setattr(plotting, "has_matplotlib", lambda: False)
    html = sweep_html(report)
    assert "<svg" not in html
    assert "No drawings: `pip install edgeprune[report]`" in html
