"""Plans: the kept units of each group, and all that surgery needs to replay them on a fresh network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.channel_select import SELECT, check_selects
from edgeprune.channels import Member
from edgeprune.cutting import Cuts, tensors_of
from edgeprune.errors import PlanError

PLAN_FORMAT = 1


@dataclass(frozen=True)
class PlannedGroup:
    """What happens to one channel group.

    Attributes:
        name: As in ``ChannelGroup.name``.
        size: Units of the dense network.
        keep: Kept units, ascending.
        constant: Removed units that reach every consumer as a constant; what they contribute is kept.
        carrier: A kept constant unit that carries the contribution of ``constant`` into padded convolutions.
        members: As in ``ChannelGroup.members``.
        inexact_because: As in ``ChannelGroup.inexact_because``.
    """

    name: str
    size: int
    keep: tuple[int, ...]
    members: tuple[Member, ...]
    constant: tuple[int, ...] = ()
    carrier: int | None = None
    inexact_because: str | None = None

    @property
    def removed(self) -> tuple[int, ...]:
        """Removed units, ascending."""
        kept = set(self.keep)
        return tuple(unit for unit in range(self.size) if unit not in kept)


@dataclass(frozen=True)
class Plan:
    """The kept units of each group.

    Attributes:
        groups: One entry per group that loses units.
        inputs: Shape (batch 1) and dtype of each input of the network, for the oracle.
        shapes: Dense shape of every tensor that is cut, by state-dict key: the plan fits no other network.
            That of a new channel select is the number of channels that its norm reads in the dense network.
        new_biases: Layers without a bias that get one, to hold the contribution of removed constants.
        channel_selects: Norms that get a channel select: they read what their group keeps, and no more.
        facts: What the plan achieves: dense and slim MACs and params, threshold, options.
    """

    groups: tuple[PlannedGroup, ...]
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    shapes: dict[str, tuple[int, ...]]
    new_biases: tuple[str, ...] = ()
    channel_selects: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def removed(self, group_name: str) -> tuple[int, ...]:
        """Removed units of a group, ascending; none for a group that the plan leaves whole."""
        for group in self.groups:
            if group.name == group_name:
                return group.removed
        return ()

    def cuts(self) -> Cuts:
        """Kept positions of every axis that loses some."""
        kept: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            removed = group.removed
            for member in group.members:
                key = (member.tensor, member.axis)
                gone = member.positions(removed)
                length = self.shapes[member.tensor][member.axis]
                kept.setdefault(key, torch.ones(length, dtype=torch.bool))[gone] = False
        for layer in self.new_biases:
            rows = kept.get((f"{layer}.weight", 0))
            if rows is not None:
                kept[f"{layer}.bias", 0] = rows
        return {key: mask.nonzero()[:, 0] for key, mask in kept.items()}

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a network that the plan was not made for.

        Raises:
            PlanError: A tensor is missing or has another shape.
        """
        hint = "A plan fits the dense network that it was made for, not a slim one or another width."
        held = {key: tuple(tensor.shape) for key, tensor in tensors_of(model).items()}
        check_selects(model, self.channel_selects, self.shapes)
        new = {f"{norm}.{SELECT}" for norm in self.channel_selects}
        for key, shape in self.shapes.items():
            if key not in new and held.get(key) != shape:
                raise PlanError(
                    "could not use the plan",
                    where=key,
                    value=f"of shape {held[key]}" if key in held else "not in the network",
                    expected=f"shape {shape}",
                    hint=hint,
                )
        for layer in self.new_biases:
            if f"{layer}.bias" in held or f"{layer}.weight" not in held:
                raise PlanError(
                    "could not use the plan",
                    where=layer,
                    value="a layer with a bias" if f"{layer}.bias" in held else "not in the network",
                    expected="a layer with a weight and no bias",
                    hint=hint,
                )

    def to_json(self) -> str:
        """The plan as JSON text."""
        groups = [
            {
                "name": group.name,
                "size": group.size,
                "keep": list(group.keep),
                "constant": list(group.constant),
                "carrier": group.carrier,
                "inexact_because": group.inexact_because,
                "members": [{**vars(member), "indices": _encode(member.indices)} for member in group.members],
            }
            for group in self.groups
        ]
        plan = {
            "format": PLAN_FORMAT,
            "facts": self.facts,
            "inputs": [[list(shape), dtype] for shape, dtype in self.inputs],
            "shapes": {key: list(shape) for key, shape in self.shapes.items()},
            "new_biases": list(self.new_biases),
            "channel_selects": list(self.channel_selects),
            "groups": groups,
        }
        return json.dumps(plan, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: The text is not a plan of this format.
        """
        try:
            value = json.loads(text)
            found = value["format"]
            plan = _plan(value) if found == PLAN_FORMAT else None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as reason:
            raise PlanError(
                "could not read the plan",
                where="the text",
                value=f"broken ({type(reason).__name__}: {reason})",
                expected="the JSON of Plan.to_json()",
            ) from None
        if plan is None:
            raise PlanError(
                "could not read the plan", where="its format", value=found, expected=str(PLAN_FORMAT)
            )
        return plan


def _plan(value: dict[str, Any]) -> Plan:
    """The plan in decoded JSON; any exception means that it is none."""
    plan = Plan(
        groups=tuple(_group(entry) for entry in value["groups"]),
        inputs=tuple((_numbers(shape), str(dtype)) for shape, dtype in value["inputs"]),
        shapes={key: _numbers(shape) for key, shape in value["shapes"].items()},
        new_biases=tuple(str(layer) for layer in value["new_biases"]),
        # Plans of before there were selects have none.
        channel_selects=tuple(str(norm) for norm in value.get("channel_selects", ())),
        facts=dict(value["facts"]),
    )
    for _, dtype in plan.inputs:
        _require(isinstance(getattr(torch, dtype), torch.dtype), f"{dtype} is no dtype")
    for norm in plan.channel_selects:
        _require(len(plan.shapes[f"{norm}.{SELECT}"]) == 1, f"the shape of {norm}'s select")
    for group in plan.groups:
        for member in group.members:
            length = plan.shapes[member.tensor][member.axis]
            _require(member.axis >= 0, f"axis {member.axis}")
            for positions in member.indices:
                _require(all(place < length for place in positions), f"{member.tensor} is shorter")
            _require(member.mean_after is None or member.mean_after in plan.shapes, "mean_after has no shape")
    return plan


def _group(entry: dict[str, Any]) -> PlannedGroup:
    name, size, keep, constant = (
        str(entry["name"]), int(entry["size"]), _numbers(entry["keep"]), _numbers(entry["constant"])
    )  # fmt: skip
    carrier = entry["carrier"]
    members = tuple(
        Member(**{**member, "indices": _decode(member["indices"], size)}) for member in entry["members"]
    )
    removed = set(range(size)) - set(keep)
    _require(list(keep) == sorted(set(keep)) and bool(keep), f"keep of {name} is not ascending")
    _require(keep[-1] < size, f"keep of {name} goes beyond its {size} units")
    _require(set(constant) <= removed, f"a constant unit of {name} is not removed")
    _require(carrier is None or carrier in keep, f"the carrier of {name} is not kept")
    _require(all(member.role in ("in", "out") for member in members), f"a role in {name}")
    inexact = entry.get("inexact_because")  # plans were written before it was there
    _require(inexact is None or isinstance(inexact, str), f"inexact_because of {name}")
    return PlannedGroup(name, size, keep, members, constant, carrier, inexact)


def _numbers(value: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers of at least 0."""
    numbers = tuple(value)
    _require(
        all(type(number) is int and number >= 0 for number in numbers), f"{numbers[:8]} as whole numbers"
    )
    return numbers


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


def _encode(indices: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Positions per unit, short where they are regular: position = start + unit * stride + k * step."""
    count = len(indices[0])
    if count and all(len(positions) == count for positions in indices):
        table = np.array(indices)
        stride = int(table[1, 0] - table[0, 0]) if len(table) > 1 else 0
        step = int(table[0, 1] - table[0, 0]) if count > 1 else 0
        start = int(table[0, 0])
        if np.array_equal(table, _regular(start, stride, step, len(table), count)):
            return {"start": start, "stride": stride, "step": step, "count": count}
    return {"list": [list(positions) for positions in indices]}


def _decode(code: dict[str, Any], size: int) -> tuple[tuple[int, ...], ...]:
    if "list" in code:
        rows: Iterable[Iterable[int]] = code["list"]
    else:
        rows = _regular(code["start"], code["stride"], code["step"], size, code["count"]).tolist()
    decoded = tuple(_numbers(positions) for positions in rows)
    _require(len(decoded) == size, f"{len(decoded)} units instead of {size}")
    return decoded


def _regular(start: int, stride: int, step: int, size: int, count: int) -> np.ndarray[Any, Any]:
    return start + stride * np.arange(size)[:, None] + step * np.arange(count)[None]
