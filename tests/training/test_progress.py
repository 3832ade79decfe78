from __future__ import annotations

import json

import pytest

from edgeprune.training import progress, train


class Clock:
    """Each look at the clock takes a fixed time."""

    def __init__(self, tick_s: float) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


def test_reports_at_most_ten_times_a_second_and_after_each_epoch(net, data, monkeypatch):
    monkeypatch.setattr(progress, "perf_counter", Clock(0.04))
    seen = []
    train(net(), data, epochs=4, on_progress=seen.append)
    ends = [p for p in seen if p.step == p.steps]
    assert {p.epoch for p in ends} == {1, 2, 3, 4}
    # 4 epochs of 5 looks 0.04 s apart: every third look may report, and each end does.
    assert 8 <= len(seen) <= 12
    monkeypatch.setattr(progress, "perf_counter", Clock(0.2))
    everything = []
    train(net(), data, epochs=4, on_progress=everything.append)
    assert len(everything) == 20


def test_the_estimate_counts_down_to_zero(net, data, monkeypatch):
    clock = Clock(0.2)
    monkeypatch.setattr(progress, "perf_counter", clock)
    seen = []
    train(net(), data, epochs=2, on_progress=seen.append)
    assert seen[0].seconds_left == pytest.approx(0.2 * 9)
    assert seen[-1].seconds_left == 0
    assert all(p.images_per_s > 0 for p in seen)


def test_shows_objective_sparsity_and_last_validation_accuracy(net, data):
    seen = []
    history = train(
        net(),
        data,
        epochs=2,
        phase="demo",
        penalty=lambda: 2.5,
        sparsity=lambda: 0.25,
        on_progress=seen.append,
    )
    assert all(p.objective == p.loss + 2.5 and p.sparsity == 0.25 and p.phase == "demo" for p in seen)
    assert seen[0].val_accuracy == history.start_val_accuracy
    assert seen[-1].val_accuracy == history.epochs[-1].val_accuracy
    assert [epoch.objective for epoch in history.epochs] == [epoch.loss + 2.5 for epoch in history.epochs]


def test_without_a_scheme_there_is_no_objective_and_no_sparsity(net, data):
    seen = []
    train(net(), data, epochs=1, on_progress=seen.append)
    assert {(p.objective, p.sparsity) for p in seen} == {(None, None)}


def test_the_history_is_json(net, data):
    history = train(net(), data, epochs=2)
    read = json.loads(json.dumps(history.to_json(), allow_nan=False))
    assert len(read["epochs"]) == 2
    assert read["val_accuracy"] == history.val_accuracy
