"""Plans as JSON: they replay bit by bit on a fresh network, and what is none is refused in one way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.errors import PlanError
from edgeprune.plan import Plan, _decode, _encode
from edgeprune.selection import make_plan
from edgeprune.surgery import slim
from tests.networks import NETWORKS, built, groups_of, half_plan, half_scores

CUTTABLE = [name for name, row in NETWORKS.items() if row.free]


def closed(name: str) -> tuple[Any, Plan]:
    """A network with constant channels, and a plan that removes some of them and more."""
    model, inputs = built(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight[:2])
    groups = groups_of(name)
    return model, make_plan(model, groups, half_scores(groups), inputs)


@pytest.mark.parametrize("name", CUTTABLE)
def test_json_round_trip(name: str) -> None:
    plan = half_plan(name)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


@pytest.mark.parametrize("name", ["residual", "grouped", "shuffle_module", "instance_norm", "crelu", "aspp"])
def test_a_plan_replays_bit_by_bit_on_a_fresh_network(name: str) -> None:
    (first, plan), (second, _) = closed(name), closed(name)
    ours = slim(first, plan).state_dict()
    theirs = slim(second, Plan.from_json(plan.to_json())).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_removed_and_keep() -> None:
    plan = half_plan("residual")
    assert set(plan.removed("stem.0")) | set(plan.groups[0].keep) == set(range(8))
    assert len(plan.removed("stem.0")) == 4
    assert plan.removed("head") == ()
    assert plan.removed("no such group") == ()


def test_plans_are_short() -> None:
    """Regular positions are stated as a rule: a flattened map does not list thousands of columns."""
    plan = half_plan("flatten_to_linear")
    assert len(plan.to_json()) < 4000


@pytest.mark.parametrize(
    "indices",
    [
        ((0,), (1,), (2,)),
        ((5,), (3,), (1,)),
        ((0, 4), (1, 5), (2, 6)),
        ((0, 1, 2), (3, 4, 5)),
        ((7,),),
        ((), ()),
        ((0,), (), (2,)),
        ((0, 1), (2,)),
        ((3, 1), (0, 9)),
    ],
)
def test_indices_are_encoded_without_loss(indices: tuple[tuple[int, ...], ...]) -> None:
    code = json.loads(json.dumps(_encode(indices)))
    assert _decode(code, len(indices)) == indices


# ---- what is none


def good() -> Any:
    model, inputs = built("flatten_to_linear")
    with torch.no_grad():
        model.stem[1].weight[:4] = 0
    model.mid.register_parameter("bias", None)
    groups = groups_of("flatten_to_linear")
    scores = {"stem.0": (torch.arange(6) >= 4).float()}
    plan = make_plan(model, groups, scores, inputs)
    assert plan.new_biases == ("mid",)
    return json.loads(plan.to_json())


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """Replace one value."""

    def change(plan: Any) -> None:
        for step in path[:-1]:
            plan = plan[step]
        plan[path[-1]] = value

    return change


BREAKS: dict[str, Callable[[Any], Any]] = {
    "no groups": lambda plan: plan.pop("groups"),
    "no facts": lambda plan: plan.pop("facts"),
    "groups are a number": at("groups", value=3),
    "groups are texts": at("groups", value=["stem.0"]),
    "keep is a text": at("groups", 0, "keep", value="abc"),
    "keep has fractions": at("groups", 0, "keep", value=[0.5, 4]),
    "keep has booleans": at("groups", 0, "keep", value=[False, True]),
    "keep is negative": at("groups", 0, "keep", value=[-1, 4]),
    "keep is empty": at("groups", 0, "keep", value=[]),
    "keep is not ascending": at("groups", 0, "keep", value=[5, 4]),
    "keep is twice": at("groups", 0, "keep", value=[4, 4]),
    "keep is beyond": at("groups", 0, "keep", value=[4, 6]),
    "size is wrong": at("groups", 0, "size", value=7),
    "size is a text": at("groups", 0, "size", value="many"),
    "a constant unit is kept": at("groups", 0, "constant", value=[4]),
    "the carrier is removed": at("groups", 0, "carrier", value=0),
    "a member has an unknown field": at("groups", 0, "members", 0, "colour", value="red"),
    "a member has no axis": lambda plan: plan["groups"][0]["members"][0].pop("axis"),
    "a role is unknown": at("groups", 0, "members", 0, "role", value="through"),
    "an axis is too large": at("groups", 0, "members", 0, "axis", value=9),
    "an axis is negative": at("groups", 0, "members", 0, "axis", value=-1),
    "a tensor has no shape": at("groups", 0, "members", 0, "tensor", value="other.weight"),
    "a position is too large": at("groups", 0, "members", 0, "indices", "start", value=1),
    "a position is negative": at("groups", 0, "members", 0, "indices", "start", value=-1),
    "indices are too few": at("groups", 0, "members", 0, "indices", value={"list": [[0]]}),
    "indices are a text": at("groups", 0, "members", 0, "indices", value="all"),
    "a mean has no shape": at("groups", 0, "members", 0, "mean_after", value="x.running_mean"),
    "an input has no dtype": at("inputs", 0, 1, value="float31"),
    "an input is no pair": at("inputs", 0, value=[1, 3, 8, 8]),
    "a dtype is a function": at("inputs", 0, 1, value="zeros"),
    "shapes are a list": at("shapes", value=[1]),
    "a shape is a text": at("shapes", "stem.0.weight", value="large"),
    "new_biases is a number": at("new_biases", value=1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_plans(name: str) -> None:
    value = good()
    assert Plan.from_json(json.dumps(value)).groups
    BREAKS[name](value)
    with pytest.raises(
        PlanError, match=r"could not read the plan: the text is broken .*expected the JSON of Plan"
    ):
        Plan.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "3", '"plan"', "{}", "[" * 100_000, "\x00", '{"format":']
)
def test_texts_that_are_no_plan(text: str) -> None:
    with pytest.raises(PlanError, match=r"could not read the plan: the text is broken"):
        Plan.from_json(text)


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format(number: Any) -> None:
    value = good() | {"format": number}
    with pytest.raises(PlanError, match=f"could not read the plan: its format is {number}, expected 1"):
        Plan.from_json(json.dumps(value))


# ---- another network


def test_a_network_without_a_tensor_or_with_another_shape() -> None:
    plan = Plan.from_json(json.dumps(good()))
    model, _ = built("flatten_to_linear")
    with pytest.raises(
        PlanError, match=r"could not use the plan: mid is a layer with a bias, expected a layer with"
    ):
        plan.check_fits(model)
    model.mid.register_parameter("bias", None)
    plan.check_fits(model)
    other = copy.deepcopy(model)
    other.stem[0] = nn.Conv2d(3, 7, 3, bias=False)
    with pytest.raises(
        PlanError, match=r"stem.0.weight is of shape \(7, 3, 3, 3\), expected shape \(6, 3, 3, 3\)"
    ):
        plan.check_fits(other)
    del model.stem
    with pytest.raises(
        PlanError, match=r"stem.0.weight is not in the network, expected shape \(6, 3, 3, 3\)"
    ):
        plan.check_fits(model)


def test_a_new_bias_for_a_layer_that_is_not_there() -> None:
    value = good() | {"new_biases": ["nowhere"]}
    model, _ = built("flatten_to_linear")
    with pytest.raises(
        PlanError, match=r"could not use the plan: nowhere is not in the network, expected a layer"
    ):
        slim(model, Plan.from_json(json.dumps(value)))
