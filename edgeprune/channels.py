"""Channel groups: what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One axis of one tensor on which the units of a group live.

    Attributes:
        tensor: State-dict key. ``<norm>.channel_select`` (see ``find_groups``) is in the slim network alone.
        axis: Axis of that tensor.
        role: ``"out"``: the axis produces or carries the units (weight rows, biases, norm parameters and
            statistics). ``"in"``: the axis consumes them (weight columns).
        indices: Per unit, the positions that it occupies along the axis.
        norm: For a batch or instance norm's vectors, the kind ``"weight"``, ``"bias"``, ``"running_mean"``
            or ``"running_var"``; else None.
        padded: For ``in``: the border of this consumer's output sees fewer input values than its middle.
        mean_after: For ``in``: running mean of the norm that alone follows the consumer, or None.
    """

    tensor: str
    axis: int
    role: str
    indices: tuple[tuple[int, ...], ...]
    norm: str | None = None
    padded: bool = False
    mean_after: str | None = None

    def positions(self, units: Iterable[int]) -> list[int]:
        """Sorted positions of the given units."""
        return sorted(position for unit in units for position in self.indices[unit])


@dataclass(frozen=True)
class ChannelGroup:
    """Units that are cut together.

    Attributes:
        name: State-dict name of the first producing layer, e.g. ``"layer1.0.conv1"``.
        size: Number of units.
        members: Every place that the units occupy; none if the layer's weight is not a parameter.
        frozen_because: Why the units can not be removed, or None.
        inexact_because: Why removing units changes what the others compute, or None: none of the network's
            layers notices. Only ``find_groups(..., exact=False)`` offers such units.
        constant_when: Per unit, the (norm weight key, position) pairs that must all be exactly 0 for the
            unit to reach every consumer as a constant, so that it can be removed without changing the
            function; None: the unit is never constant.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen_because: str | None = None
    constant_when: tuple[tuple[tuple[str, int], ...] | None, ...] = ()
    inexact_because: str | None = None
