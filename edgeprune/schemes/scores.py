"""Scores of channel groups, and how a norm's weights score the units that they scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.channels import ChannelGroup
from edgeprune.shares import Shares


class Scores(dict[str, Tensor]):
    """``{group name: float32 (units,)}`` on the CPU: finite, >= 0, 0 = removable for free.

    A group that is left out is kept whole.

    Attributes:
        facts: What the scheme found out on its way, for the report: plain values, fit for JSON.
    """

    def __init__(self, scores: Mapping[str, Tensor], *, facts: dict[str, Any] | None = None) -> None:
        super().__init__({name: score.detach().float().cpu() for name, score in scores.items()})
        self.facts: dict[str, Any] = facts or {}


def movable(groups: tuple[ChannelGroup, ...]) -> tuple[ChannelGroup, ...]:
    """The groups that are not frozen."""
    return tuple(group for group in groups if group.frozen_because is None)


def scaled_by_norms(groups: tuple[ChannelGroup, ...]) -> tuple[ChannelGroup, ...]:
    """The groups of which every unit can be made a constant by norm weights at 0.

    The others can not be scored by norm weights: a weight of 0 would not make their units removable.
    """
    return tuple(
        group
        for group in movable(groups)
        if len(group.constant_when) == group.size and None not in group.constant_when
    )


def score_by_norms(groups: tuple[ChannelGroup, ...], strength: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score a unit by the strongest of the norm weights that would all have to be 0 to remove it.

    So a score is 0 if and only if the unit is a constant at each of its consumers.

    Args:
        groups: Of `scaled_by_norms`.
        strength: Norm weight key -> (C,), of which the size counts; other keys are not looked at.
    """
    keys = {key for group in groups for unit in group.constant_when for key, _ in unit or ()}
    values = {key: strength[key].detach().abs().float().cpu() for key in keys}
    scores = {}
    for group in groups:
        units = [
            max((float(values[key][position]) for key, position in conditions or ()), default=0.0)
            for conditions in group.constant_when
        ]
        scores[group.name] = torch.tensor(units, dtype=torch.float32)
    return scores


def parameters_by_key(model: nn.Module) -> dict[str, Tensor]:
    """State-dict key -> parameter, under every name that a shared one has."""
    return dict(model.named_parameters(remove_duplicate=False))


def unit_costs(
    model: nn.Module, groups: tuple[ChannelGroup, ...], example: Tensor, per: str
) -> dict[str, float]:
    """What a unit of each group costs, as a share of the network; without the frozen groups.

    Args:
        model: Network.
        groups: Its channel groups.
        example: Input (N, C, H, W).
        per: ``"macs"``, ``"params"``, or ``"unit"``: 1 for each.
    """
    if per == "unit":
        return {group.name: 1.0 for group in movable(groups)}
    shares = Shares(model, example)
    costs = {}
    for group in movable(groups):
        portion = shares.of([group])
        share = portion.macs_share if per == "macs" else portion.params_share
        least = 1 / max(1, shares.macs if per == "macs" else shares.params)
        costs[group.name] = max(share, least) / group.size
    return costs
