"""What the search for a budget notes, and the widths that come of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from edgeprune import selection
from edgeprune.budget_search import Cost, note_search
from edgeprune.selection import make_plan
from edgeprune.surgery import layer_widths, slim
from tests.test_selection import case


def test_notes_join_costs_sizes_and_the_last_time_of_each_threshold() -> None:
    trials = [
        {"threshold": 0.5, "macs_ratio": 0.4, "latency_ratio": 0.6, "low": 0.5, "high": 0.7, "full": False},
        {"threshold": 0.5, "macs_ratio": 0.4, "latency_ratio": 0.62, "low": 0.6, "high": 0.64, "full": True},
    ]
    costs = {0.5: Cost(40, 9, 0.7), 0.25: Cost(80, 18, 0.9)}
    first, second = note_search(Cost(100, 20), costs, {0.25: 999}, trials)
    assert first == {
        "threshold": 0.25, "macs_ratio": 0.8, "params_ratio": 0.9, "kept_score": 0.9, "size_bytes": 999,
        "latency_ratio": None, "low": None, "high": None,
    }  # fmt: skip
    assert (second["latency_ratio"], second["low"], second["high"]) == (0.62, 0.6, 0.64)
    assert (second["macs_ratio"], second["size_bytes"]) == (0.4, None)


def test_a_plan_notes_what_its_search_has_seen() -> None:
    model, groups, scores, inputs = case("residual")
    facts = make_plan(model, groups, scores, inputs, max_macs_ratio=0.6).facts
    seen = facts["search"]
    assert len(seen) >= 3
    (chosen,) = [probe for probe in seen if probe["threshold"] == facts["threshold"]]
    assert chosen["macs_ratio"] == facts["slim_macs"] / facts["dense_macs"] <= 0.6
    assert chosen["params_ratio"] == facts["slim_params"] / facts["dense_params"]
    for key in ("macs_ratio", "params_ratio", "kept_score"):  # a higher threshold leaves less of everything
        values = [probe[key] for probe in seen]
        assert values == sorted(values, reverse=True)
        assert 0 <= values[-1] < values[0] <= 1
    assert "search" not in make_plan(model, groups, scores, inputs).facts


def test_kept_score_is_the_share_of_the_scores_that_stay() -> None:
    model, groups, scores, inputs = case("residual")
    plan = make_plan(model, groups, scores, inputs, max_macs_ratio=0.6)
    free = {group.name for group in groups if group.frozen_because is None}
    everything = sum(float(scores[name].sum()) for name in free)
    gone = sum(float(scores[group.name][list(group.removed)].sum()) for group in plan.groups)
    (chosen,) = [p for p in plan.facts["search"] if p["threshold"] == plan.facts["threshold"]]
    assert chosen["kept_score"] == pytest.approx(1 - gone / everything, abs=1e-6)


def test_sizes_are_noted_where_they_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(network: nn.Module, *_: Any) -> Any:
        return SimpleNamespace(size_bytes=1000 + 4 * sum(p.numel() for p in network.parameters()))

    monkeypatch.setattr(selection, "export", exported)
    model, groups, scores, inputs = case("residual")
    facts = make_plan(model, groups, scores, inputs, max_size_bytes=1000 + 3 * 400).facts
    by_threshold = {probe["threshold"]: probe["size_bytes"] for probe in facts["search"]}
    assert by_threshold[facts["threshold"]] == facts["size_bytes"]
    assert None in by_threshold.values()


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped", "grouped_transposed"])
def test_widths_are_those_of_the_slim_network(name: str) -> None:
    model, groups, scores, inputs = case(name)
    plan = make_plan(model, groups, scores, inputs, max_params_ratio=0.7)
    widths = layer_widths(model, plan)
    small = dict(slim(model, plan).named_modules())
    layers = {
        key: layer
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    assert list(widths) == list(layers)
    for key, (dense, left) in widths.items():
        attribute = "out_features" if isinstance(layers[key], nn.Linear) else "out_channels"
        assert dense == getattr(layers[key], attribute)
        assert left == getattr(small[key], attribute)
    assert any(left < dense for dense, left in widths.values())
