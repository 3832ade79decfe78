"""Random networks x random plans: what is found can be cut, and nothing is ever wrong."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_params
from edgeprune.errors import ModelError
from edgeprune.groups import find_groups
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from edgeprune.surgery import slim
from tests.networks import double_default, free_groups, half_scores, zeroed_consumers
from tests.random_networks import RandomNet, Spec, specs

TOLERANCE = 1e-10


@dataclass
class Tally:
    """What a run has seen.

    Attributes:
        networks: How many were tried.
        discarded: How many of them ``torch.export`` refused.
        free: Groups that can be cut.
        frozen: Groups that can not, and that are no output, by reason.
        cut: Plans that removed something.
        constant: Constant units removed.
        no_place: Constant units that a consumer has no place for.
    """

    networks: int = 0
    discarded: int = 0
    free: int = 0
    frozen: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    constant: int = 0
    no_place: int = 0

    def count(self, groups: tuple[ChannelGroup, ...]) -> None:
        for group in groups:
            if group.frozen_because is None:
                self.free += 1
            elif group.frozen_because != "reaches the output":
                self.frozen[re.sub(r" in (the network's forward|\S+)|\(.*", "", group.frozen_because)] += 1


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad(), double_default():
        return [leaf for leaf in tree_leaves(model(*(x.double() for x in inputs))) if leaf is not None]


def difference(first: nn.Module, second: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of two networks' outputs, each relative to the second's largest value."""
    worst = 0.0
    for ours, theirs in zip(outputs(first, inputs), outputs(second, inputs), strict=True):
        assert ours.shape == theirs.shape
        assert theirs.isfinite().all()
        error = float((ours - theirs).abs().max())
        worst = max(worst, error / max(float(theirs.abs().max()), 1e-300))
    return worst


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy with other weights and statistics, in float64."""
    model = copy.deepcopy(model).double()
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() > 1:
                fan_in = max(1, tensor.numel() // tensor.shape[0])
                tensor.normal_(0, fan_in**-0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def random_scores(groups: tuple[ChannelGroup, ...]) -> dict[str, Tensor]:
    """Scores 0 or 1 for some of the groups that can be cut."""
    chosen = [group for group in free_groups(groups) if torch.rand(()) < 0.7]
    return {group.name: (torch.rand(group.size) < torch.rand(())).float() for group in chosen}


def places_are_sound(model: nn.Module, groups: tuple[ChannelGroup, ...]) -> None:
    """Every member is a place of the network, and no place is in two groups."""
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    places = [
        (member.tensor, member.axis, place)
        for group in groups
        for member in group.members
        for unit in member.indices
        for place in unit
    ]
    assert len(set(places)) == len(places)
    assert all(place < shapes[tensor][axis] for tensor, axis, place in places)


def check(spec: Spec, seed: int, tally: Tally) -> None:
    """Whatever ``find_groups`` says can be cut, in whatever way, is cut exactly."""
    model = RandomNet(spec)
    torch.manual_seed(seed)
    example = tuple(torch.randn(shape) for shape in model.shapes)
    fresh = tuple(torch.randn(shape) for shape in model.shapes)
    tally.networks += 1
    try:
        groups = find_groups(model, example)
    except ModelError as reason:
        if "could not read the network's graph" not in str(reason):
            raise
        tally.discarded += 1
        assume(False)
    places_are_sound(model, groups)
    tally.count(groups)
    random = make_plan(model, groups, random_scores(groups), example, constants="off")
    multiple = int(torch.randint(1, 5, ()))
    half = make_plan(
        model, groups, half_scores(groups, seed), example, constants="off", channel_multiple=multiple
    )
    for plan, dense in ((random, copy.deepcopy(model).double()), (half, redrawn(model, seed))):
        if plan.groups:
            tally.cut += 1
            small = slim(dense, Plan.from_json(plan.to_json()), example=example)
            assert difference(small, zeroed_consumers(dense, groups, plan), fresh) <= TOLERANCE
            assert count_params(small) < count_params(dense)
    check_constants(model, groups, example, fresh, tally)


def check_constants(
    model: nn.Module,
    groups: tuple[ChannelGroup, ...],
    example: tuple[Tensor, ...],
    fresh: tuple[Tensor, ...],
    tally: Tally,
) -> None:
    """As after proximal network slimming: many gammas are 0, and the function stays to the last digit."""
    dense = copy.deepcopy(model).double()
    for module in dense.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
            nn.init.normal_(module.bias)
            with torch.no_grad():
                module.weight[torch.rand(module.num_features) < 0.6] = 0
    state = dense.state_dict()
    scores = {
        group.name: torch.tensor(
            [
                1.0 if when is None else max((float(state[key][at].abs()) for key, at in when), default=0.0)
                for when in group.constant_when
            ]
        )
        for group in free_groups(groups)
    }
    inputs = tuple(x.double() for x in example)
    plan = make_plan(dense, groups, scores, inputs)
    # A layer may have no place for a constant; without a consumer nothing is lost.
    for group in groups:
        kept = plan.removed(group.name) and set(plan.removed(group.name)) - constant_units(plan, group.name)
        for unit in kept or ():
            if any(member.role == "in" and member.indices[unit] for member in group.members):
                scores[group.name][unit] = 1.0
                tally.no_place += 1
    plan = make_plan(dense, groups, scores, inputs)
    if plan.groups:
        tally.constant += sum(len(group.constant) for group in plan.groups)
        assert difference(slim(dense, plan, example=example), dense, fresh) <= TOLERANCE


def constant_units(plan: Plan, name: str) -> set[int]:
    return {unit for group in plan.groups if group.name == name for unit in group.constant}


def run(examples: int) -> Tally:
    """Check random networks; returns what was seen."""
    tally = Tally()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(specs(), st.integers(0, 99))
    def test(spec: Spec, seed: int) -> None:
        check(spec, seed, tally)

    test()
    return tally


def test_random_networks() -> None:
    tally = run(5)
    assert tally.discarded == 0
    assert tally.free > sum(tally.frozen.values())
    assert tally.constant > 0


@pytest.mark.slow
def test_many_random_networks() -> None:
    tally = run(500)
    assert tally.discarded <= 0.02 * tally.networks
    assert tally.free > sum(tally.frozen.values())
    assert tally.cut > tally.networks
    assert tally.constant > tally.networks
