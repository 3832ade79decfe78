"""What of a slim network hangs on each of its channel groups, as facts that a run folder keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from edgeprune.channels import ChannelGroup, Member
from edgeprune.cost import shell_of
from edgeprune.cutting import Cuts, tensors_of
from edgeprune.plan import Plan
from edgeprune.shares import Shares
from edgeprune.surgery import slim_structure


def group_facts(
    model: nn.Module, groups: Sequence[ChannelGroup], plan: Plan, example: Tensor | tuple[Tensor, ...]
) -> list[dict[str, Any]]:
    """Shares of the slim network by channel group.

    Args:
        model: The dense network; it is not changed.
        groups: Its groups.
        plan: What goes.
        example: Input (N, C, H, W), or a tuple of inputs.

    Returns:
        For each group ``name``, ``size`` (units in the dense network), ``kept`` (units that stay),
        ``frozen_because``, ``params_share`` and ``macs_share`` of the slim network as in ``Shares`` (a
        product counts for the group that it makes and for the one that it reads), and ``places``: every
        axis of a weight that the units occupy, with ``tensor``, ``axis``, ``role``, ``length`` in the slim
        network and ``width``, the positions of a unit.
    """
    shell = shell_of(model)
    slim_structure(shell, plan)
    shares = Shares(shell, example)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(shell).items()}
    cuts = plan.cuts()
    found = []
    for group in groups:
        gone = set(plan.removed(group.name))
        keep = [unit for unit in range(group.size) if unit not in gone]
        members = tuple(_slim(member, keep, cuts) for member in group.members)
        portion = shares.of([replace(group, members=members)])
        places = [
            {"tensor": m.tensor, "axis": m.axis, "role": m.role, "length": shapes[m.tensor][m.axis],
             "width": _width(m)}
            for m in members
            if m.tensor in shapes and shares.multiplies(m.tensor)
        ]  # fmt: skip
        found.append(
            {"name": group.name, "size": group.size, "kept": len(keep),
             "frozen_because": group.frozen_because, "params_share": portion.params_share,
             "macs_share": portion.macs_share, "places": places}
        )  # fmt: skip
    return found


def _slim(member: Member, keep: Sequence[int], cuts: Cuts) -> Member:
    """A member in the slim network: the kept units, at the positions where they then are."""
    indices = [member.indices[unit] for unit in keep]
    kept = cuts.get((member.tensor, member.axis))
    if kept is not None:
        place = {position: number for number, position in enumerate(kept.tolist())}
        indices = [tuple(place[position] for position in unit) for unit in indices]
    return replace(member, indices=tuple(indices))


def _width(member: Member) -> float:
    """Positions of a unit, on average."""
    return sum(map(len, member.indices)) / max(len(member.indices), 1)
