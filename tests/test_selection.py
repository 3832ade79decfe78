"""Plans that fit their budgets, and say what could be reached when none does."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune import selection
from edgeprune.budget_search import round_up
from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_macs, count_params
from edgeprune.errors import PlanError
from edgeprune.groups import find_groups
from edgeprune.onnx_export import export
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from edgeprune.surgery import slim
from tests.networks import IMAGE, built, cbr, conv, free_groups, groups_of

NAMES = [
    "residual",
    "depthwise",
    "grouped",
    "shuffle_module",
    "feature_pyramid",
    "tied_weights",
    "two_inputs",
]


def random_scores(groups: tuple[ChannelGroup, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in free_groups(groups)}


def case(name: str) -> tuple[Any, tuple[ChannelGroup, ...], dict[str, Tensor], tuple[Tensor, ...]]:
    model, inputs = built(name)
    return model, groups_of(name), random_scores(groups_of(name)), inputs


def removed(plan: Plan) -> set[tuple[str, int]]:
    return {(group.name, unit) for group in plan.groups for unit in group.removed}


# ---- budgets


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_network_that_fits(name: str, ratio: float) -> None:
    model, groups, scores, inputs = case(name)
    dense = {"macs": count_macs(model, inputs), "params": count_params(model)}
    for kind in ("macs", "params"):
        plan = make_plan(model, groups, scores, inputs, **{f"max_{kind}_ratio": ratio})
        small = slim(model, plan)
        cost = {"macs": count_macs(small, inputs), "params": count_params(small)}
        assert cost[kind] <= ratio * dense[kind]
        facts = plan.facts
        assert {key: facts[f"dense_{key}"] for key in dense} == dense
        assert {key: facts[f"slim_{key}"] for key in cost} == cost
        assert facts["budgets"] == {f"max_{kind}_ratio": ratio}
        # One global threshold, and the next lower one is too large.
        threshold = facts["threshold"]
        for group in plan.groups:
            assert all(scores[group.name][unit] <= threshold for unit in group.removed)
            assert (
                sum(bool(scores[group.name][unit] > threshold) for unit in group.keep) >= len(group.keep) - 1
            )
        lower = [float(value) for score in scores.values() for value in score if value < threshold]
        chooser = selection.Chooser(model, groups, scores, inputs, selection.Options())
        assert getattr(chooser.cost(max(lower, default=0.0)), kind) > ratio * dense[kind]


def test_both_budgets_hold() -> None:
    model, groups, scores, inputs = case("residual")
    both = make_plan(model, groups, scores, inputs, max_macs_ratio=0.7, max_params_ratio=0.4)
    one = make_plan(model, groups, scores, inputs, max_params_ratio=0.4)
    assert removed(both) == removed(one)
    both = make_plan(model, groups, scores, inputs, max_macs_ratio=0.3, max_params_ratio=0.9)
    assert both.facts["slim_macs"] <= 0.3 * both.facts["dense_macs"]


@pytest.mark.parametrize("multiple", [1, 2])
def test_a_smaller_budget_removes_more(multiple: int) -> None:
    model, groups, scores, inputs = case("feature_pyramid")
    before: set[tuple[str, int]] = set()
    for ratio in (1.0, 0.9, 0.8, 0.6, 0.5, 0.35):
        plan = make_plan(model, groups, scores, inputs, max_macs_ratio=ratio, channel_multiple=multiple)
        assert before <= removed(plan)
        before = removed(plan)


@pytest.mark.parametrize("name", ["residual", "grouped"])
def test_costs_fall_with_the_threshold_also_with_carriers(name: str) -> None:
    model, groups, scores, inputs = case(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight[::2])
    for multiple in (1, 3, 4):
        options = selection.Options(channel_multiple=multiple)
        chooser = selection.Chooser(model, groups, scores, inputs, options)
        assert any(need.carrier for needs in chooser.constant.values() for need in needs.values())
        costs = [chooser.cost(threshold) for threshold in chooser.thresholds]
        assert all(a.macs >= b.macs and a.params >= b.params for a, b in pairwise(costs))


def test_without_a_budget_only_zeros_go() -> None:
    model, groups, scores, inputs = case("residual")
    assert make_plan(model, groups, scores, inputs).groups == ()
    scores["a.0"][[1, 4]] = 0
    plan = make_plan(model, groups, scores, inputs, constants="off")
    assert removed(plan) == {("a.0", 1), ("a.0", 4)}
    assert plan.facts["threshold"] == 0
    assert plan.facts["budgets"] == {}


def test_a_budget_that_the_dense_network_meets_removes_only_zeros() -> None:
    model, groups, scores, inputs = case("residual")
    assert make_plan(model, groups, scores, inputs, max_macs_ratio=1.0).groups == ()


def test_equal_scores_go_together_but_for_the_last_unit() -> None:
    model, groups, _, inputs = case("residual")
    scores = {group.name: torch.ones(group.size) for group in free_groups(groups)}
    plan = make_plan(model, groups, scores, inputs, max_macs_ratio=0.2)
    assert {group.name: group.keep for group in plan.groups} == {"stem.0": (0,), "a.0": (0,)}


# ---- widths


def test_min_channels_and_multiples_and_keep() -> None:
    model, groups, _, inputs = case("residual")
    scores = {"stem.0": torch.arange(8) / 100, "a.0": torch.arange(6) / 100 + 1}

    def widths(**options: Any) -> dict[str, int]:
        plan = make_plan(model, groups, scores, inputs, max_params_ratio=0.45, **options)
        small = slim(model, plan)
        return {"stem": small.stem[0].out_channels, "a": small.a[0].out_channels}

    assert widths() == {"stem": 3, "a": 6}
    assert widths(min_channels=2)["stem"] == 3
    assert widths(min_channels=4) == {"stem": 4, "a": 5}
    assert widths(channel_multiple=2) == {"stem": 2, "a": 6}
    assert widths(channel_multiple=3) == {"stem": 3, "a": 6}
    assert widths(keep=["stem*"])["stem"] == 8
    assert widths(keep="stem.?")["stem"] == 8


def test_a_share_of_each_group_stays() -> None:
    model, groups, _, inputs = case("residual")
    scores = {"stem.0": torch.arange(8) / 100, "a.0": torch.arange(6) / 100 + 1}

    def widths(share: float, **options: Any) -> tuple[int, int]:
        plan = make_plan(model, groups, scores, inputs, max_params_ratio=0.6, min_share=share, **options)
        assert plan.facts["options"]["min_share"] == share
        small = slim(model, plan)
        return small.stem[0].out_channels, small.a[0].out_channels

    assert widths(0.0)[0] == 4  # negative control: without the floor
    assert widths(0.6)[0] == 5  # ceil(0.6 * 8)
    assert widths(0.6)[1] >= 4
    assert widths(0.1, min_channels=5)[0] == 5
    with pytest.raises(PlanError, match=r"max_params_ratio is 0.6, expected at least .* min_share=0.9"):
        widths(0.9)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), True, "half"])
def test_a_share_that_is_none(share: Any) -> None:
    model, groups, scores, inputs = case("residual")
    with pytest.raises(PlanError, match=r"min_share is .*, expected a number in 0..1"):
        make_plan(model, groups, scores, inputs, min_share=share)


@pytest.mark.parametrize(("multiple", "channels"), [(1, 4), (2, 4), (3, 12), (4, 4), (8, 8), (16, 12)])
def test_a_multiple_counts_channels_and_not_units(multiple: int, channels: int) -> None:
    """A unit of a convolution in four groups is four channels."""
    torch.manual_seed(0)
    net = nn.Sequential(conv(8, 12, groups=4), conv(12, 4, groups=4))
    example = torch.zeros(1, 8, 8, 8)
    groups = find_groups(net, example)
    scores = {"0": torch.tensor([0.0, 1.0, 0.0])}
    plan = make_plan(net, groups, scores, example, channel_multiple=multiple)
    assert slim(net, plan)[0].out_channels == channels


def test_groups_without_scores_stay_whole_and_frozen_ones_too() -> None:
    model, groups, scores, inputs = case("residual")
    del scores["stem.0"]
    scores["head"] = torch.zeros(5)  # frozen: it is the output
    plan = make_plan(model, groups, scores, inputs, max_macs_ratio=0.5)
    assert {group.name for group in plan.groups} == {"a.0"}


# ---- what cannot be reached


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["max_macs_ratio", "max_params_ratio"])
def test_what_is_said_to_be_reachable_is(name: str, kind: str) -> None:
    model, groups, scores, inputs = case(name)
    for options in ({}, {"min_channels": 2}, {"channel_multiple": 4}):
        with pytest.raises(
            PlanError, match=f"could not reach the budget: {kind} is 1e-06, expected at least"
        ) as no:
            make_plan(model, groups, scores, inputs, **{kind: 1e-6}, **options)
        reachable = float(re.findall(r"at least (\S+),", str(no.value))[0])
        plan = make_plan(model, groups, scores, inputs, **{kind: reachable}, **options)
        with pytest.raises(PlanError, match="could not reach the budget"):
            make_plan(model, groups, scores, inputs, **{kind: 0.998 * reachable}, **options)
        cost = kind.removeprefix("max_").removesuffix("_ratio")
        assert plan.facts[f"slim_{cost}"] <= reachable * plan.facts[f"dense_{cost}"]


def test_the_message_says_what_holds_it_back() -> None:
    model, groups, scores, inputs = case("pad_shortcut")
    del scores["a.0"]
    with pytest.raises(PlanError, match="could not reach the budget") as no:
        make_plan(model, groups, scores, inputs, max_macs_ratio=0.01, min_channels=3, channel_multiple=2)
    assert re.sub(r"0\.\d{4}", "R", str(no.value)) == (
        "could not reach the budget: max_macs_ratio is 0.01, expected at least R, the smallest that can be "
        "reached. It has min_channels=3, channel_multiple=2; frozen: b.0 (add in the network's forward adds "
        "or multiplies a fixed channel), head (reaches the output); kept whole: a.0."
    )


def test_the_first_budget_that_fails_is_named() -> None:
    model, groups, scores, inputs = case("residual")
    with pytest.raises(PlanError, match=r"max_params_ratio is 0.01"):
        make_plan(model, groups, scores, inputs, max_macs_ratio=0.9, max_params_ratio=0.01)


@pytest.mark.parametrize(
    "value", [0.123449, 0.12345, 1 / 3, 0.99999999, 1.0, 3.0000000001e-7, 0.1, 12345.6, 0.0]
)
def test_quoted_limits_are_rounded_up(value: float) -> None:
    assert value <= float(round_up(value)) <= value * 1.001


# ---- the size of the file


@pytest.fixture
def fake_export(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An export whose files are a known function of the network; the list holds what was asked for."""
    sizes: list[int] = []

    def exported(network: nn.Module, *_: Any) -> Any:
        norms = sum(
            p.numel() for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
        )
        sizes.append(1000 + 4 * (count_params(network) - norms) + norms % 7)
        return SimpleNamespace(size_bytes=sizes[-1])

    monkeypatch.setattr(selection, "export", exported)
    return sizes


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.45])
@pytest.mark.parametrize("name", ["residual", "depthwise", "feature_pyramid"])
def test_the_search_for_a_size_ends_close_to_it(name: str, share: float, fake_export: list[int]) -> None:
    model, groups, scores, inputs = case(name)
    limit = int(share * (1000 + 4 * count_params(model)))
    plan = make_plan(model, groups, scores, inputs, max_size_bytes=limit)
    assert plan.facts["size_bytes"] <= limit
    assert plan.facts["size_bytes"] in fake_export
    assert len(fake_export) <= 1 + selection.SIZE_PROBES
    chooser = selection.Chooser(model, groups, scores, inputs, selection.Options())
    sizes = [selection.export(slim(model, chooser.plan(t)), inputs).size_bytes for t in chooser.thresholds]
    best = max(size for size in sizes if size <= limit)
    assert plan.facts["size_bytes"] >= 0.97 * best


def test_a_size_that_cannot_be_reached(fake_export: list[int]) -> None:
    model, groups, scores, inputs = case("residual")
    with pytest.raises(
        PlanError, match=r"could not reach the budget: max_size_bytes is 1000, expected at le"
    ) as no:
        make_plan(model, groups, scores, inputs, max_size_bytes=1000)
    reachable = int(re.findall(r"at least (\d+),", str(no.value))[0])
    assert reachable == fake_export[-1]
    plan = make_plan(model, groups, scores, inputs, max_size_bytes=reachable)
    assert plan.facts["size_bytes"] == reachable
    with pytest.raises(PlanError, match=f"max_size_bytes is {reachable - 1}"):
        make_plan(model, groups, scores, inputs, max_size_bytes=reachable - 1)


def test_a_size_and_a_ratio_both_hold(fake_export: list[int]) -> None:
    model, groups, scores, inputs = case("residual")
    plan = make_plan(model, groups, scores, inputs, max_size_bytes=10**6, max_macs_ratio=0.5)
    assert plan.facts["slim_macs"] <= 0.5 * plan.facts["dense_macs"]
    with pytest.raises(PlanError, match=r"max_macs_ratio is 0.001"):
        make_plan(model, groups, scores, inputs, max_size_bytes=10**6, max_macs_ratio=0.001)
    assert len(fake_export) <= 3


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, tuple[ChannelGroup, ...], Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(cbr(3, 4), conv(4, 2)).eval()
    return net, find_groups(net, torch.zeros(IMAGE)), torch.zeros(IMAGE)


@pytest.mark.slow
def test_a_real_file_that_cannot_be_so_small(tiny: Any) -> None:
    net, groups, example = tiny
    with pytest.raises(
        PlanError, match=r"max_size_bytes is 64, expected at least 1\d{3}, the smallest that can"
    ):
        make_plan(net, groups, random_scores(groups), example, max_size_bytes=64)


@pytest.mark.slow
def test_a_size_by_real_exports(tiny: Any, tmp_path: Path) -> None:
    net, groups, example = tiny
    limit = export(net, example, tmp_path / "dense.onnx").size_bytes - 1
    plan = make_plan(net, groups, random_scores(groups), example, max_size_bytes=limit)
    art = export(slim(net, plan), example, tmp_path / "slim.onnx")
    assert art.size_bytes == plan.facts["size_bytes"] <= limit
    assert len(plan.removed("0.0")) == 1


# ---- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_macs_ratio": 0}, "max_macs_ratio is 0, expected a number above 0"),
        ({"max_macs_ratio": -0.5}, "max_macs_ratio is -0.5, expected a number above 0"),
        ({"max_macs_ratio": float("nan")}, "max_macs_ratio is nan, expected a number above 0"),
        ({"max_macs_ratio": float("inf")}, "max_macs_ratio is inf, expected a number above 0"),
        ({"max_params_ratio": "0.5"}, "max_params_ratio is 0.5, expected a number above 0"),
        ({"max_size_bytes": True}, "max_size_bytes is True, expected a number above 0"),
        ({"max_size_bytes": 0}, "max_size_bytes is 0, expected a number above 0"),
        ({"channel_multiple": 0}, "channel_multiple is 0, expected a whole number of at least 1"),
        ({"channel_multiple": 2.0}, "channel_multiple is 2.0, expected a whole number of at least 1"),
        ({"min_channels": True}, "min_channels is True, expected a whole number of at least 1"),
        (
            {"keep": ["stem.0", "nothing*"]},
            r"keep is nothing\*, expected the name of a group: stem.0, a.0, head",
        ),
        ({"keep": "conv"}, "keep is conv, expected the name of a group"),
        ({"constants": "maybe"}, "constants is maybe, expected auto, fold, carrier or off"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model, groups, scores, inputs = case("residual")
    with pytest.raises(PlanError, match=f"could not make a plan: {message}"):
        make_plan(model, groups, scores, inputs, **options)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (torch.ones(5), r"the scores of a.0 is of shape \(5,\), smallest 1.0, expected 6 finite numbers"),
        (torch.ones(6, 1), r"the scores of a.0 is of shape \(6, 1\)"),
        (torch.ones(0), r"the scores of a.0 is of shape \(0,\), smallest None"),
        (torch.tensor([1.0, 1, 1, 1, 1, float("nan")]), "the scores of a.0 is of shape .6,., smallest nan"),
        (torch.tensor([1.0, 1, 1, 1, 1, float("inf")]), "the scores of a.0"),
        (
            torch.tensor([1.0, 1, 1, 1, 1, -1e-9]),
            "smallest -9.9.*e-10, expected 6 finite numbers of at least 0",
        ),
    ],
)
def test_wrong_scores(score: Tensor, message: str) -> None:
    model, groups, scores, inputs = case("residual")
    with pytest.raises(PlanError, match=message):
        make_plan(model, groups, scores | {"a.0": score}, inputs)


def test_scores_of_an_unknown_group() -> None:
    model, groups, _, inputs = case("residual")
    with pytest.raises(PlanError, match=r"scores is layer9, expected groups among stem.0, a.0, head"):
        make_plan(model, groups, {"layer9": torch.ones(3)}, inputs)


def test_a_network_without_multiply_adds_has_nothing_to_plan() -> None:
    plan = make_plan(nn.ReLU(), (), {}, torch.zeros(IMAGE), max_macs_ratio=0.5, max_params_ratio=0.5)
    assert plan.groups == ()
