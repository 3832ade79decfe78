"""Exact removal of constant channels: what they contribute moves into a bias, a running mean or a carrier.

A batch norm whose gamma is 0 still emits its beta, so its channel is a constant c = act(beta), not nothing.
A consumer without padding takes W c into its bias (or off the running mean of the norm that follows). At the
border of a padded convolution fewer constants are seen, so there one *carrier* channel stays: a constant
whose column of weights is the sum of the removed columns, which is exact everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeprune.channels import ChannelGroup, Member
from edgeprune.cutting import tensors_of
from edgeprune.errors import SlimError
from edgeprune.oracle import Double, Inputs, outputs_of
from edgeprune.plan import Plan, PlannedGroup

CHANNEL_AXIS: dict[Callable[..., Any], int] = {
    F.linear: -1,
    F.conv1d: -2,
    F.conv_transpose1d: -2,
    F.conv2d: -3,
    F.conv_transpose2d: -3,
    F.conv3d: -4,
    F.conv_transpose3d: -4,
}
"""Axis of the channels in input and output, by function."""

TAKES_BIAS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that can be given a bias."""

SPREAD = 1e-12
"""Largest relative spread (float64 rounding) of a channel that counts as constant."""

PROBLEM = "could not keep the constants of removed channels"


class Reading(TorchFunctionMode):
    """While active, records what the layers with the watched weights receive.

    Attributes:
        lowest: Per weight (C_in,): smallest value of each input channel.
        highest: Per weight (C_in,): largest value.
        out_channels: Per weight: channels of the layer's output.
        biased: Weights whose layers add a bias.
    """

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.lowest: dict[str, Tensor] = {}
        self.highest: dict[str, Tensor] = {}
        self.out_channels: dict[str, int] = {}
        self.biased: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See ``torch.overrides.TorchFunctionMode``."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        axis = CHANNEL_AXIS.get(func)
        if axis is not None:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            key = self.weights.get(id(given["weight"]))
            if key is not None:
                low, high = given["input"].movedim(axis, 0).flatten(1).aminmax(dim=1)
                self.lowest[key] = torch.minimum(self.lowest.get(key, low), low)
                self.highest[key] = torch.maximum(self.highest.get(key, high), high)
                self.out_channels[key] = result.shape[axis]
                if given.get("bias") is not None:
                    self.biased.add(key)
        return result


def read_inputs(network: Double, keys: Iterable[str], batches: Iterable[Inputs]) -> Reading:
    """Run a network and record what the layers with the given weights receive.

    Args:
        network: Network.
        keys: State-dict keys of weights.
        batches: Inputs of the forward passes.
    """
    tensors = tensors_of(network.module)
    reading = Reading({id(tensors[key]): key for key in keys})
    with network.filled(), reading:
        for inputs in batches:
            outputs_of(network.module, inputs)
    return reading


@dataclass(frozen=True)
class Need:
    """What it takes to keep what a constant unit contributes.

    Attributes:
        carrier: A padded convolution reads it: one constant channel has to stay.
        biases: Layers without a bias that have to get one.
        carries: It could be the channel that stays.
    """

    carrier: bool
    biases: frozenset[str]
    carries: bool


def find_constants(
    model: nn.Module, groups: Iterable[ChannelGroup], batches: list[Inputs]
) -> dict[str, dict[int, Need]]:
    """The units of each group that can be removed without changing the function.

    A unit counts if the graph proves that it is a constant at every consumer (all norm weights that matter
    are exactly 0), if it is one on ``batches`` too, and if there is a place for what it contributes.

    Args:
        model: Dense network; it is not changed.
        groups: Groups that may be cut.
        batches: Float64 inputs of the forward passes that read the constants.
    """
    tensors = tensors_of(model)
    units = {group.name: zero_units(group, tensors) for group in groups}
    groups = [group for group in groups if units[group.name]]
    keys = {member.tensor for group in groups for member in group.members if member.role == "in"}
    if not keys:
        return {}
    work = Double(model)
    reading = read_inputs(work, keys, batches)
    for group in groups:
        _raise(work, group.members, units[group.name])
    raised = read_inputs(work, keys, batches)
    layers = dict(model.named_modules())
    found: dict[str, dict[int, Need]] = {}
    for group in groups:
        needs = {unit: _need(group, unit, reading, raised, layers, tensors) for unit in units[group.name]}
        found[group.name] = {unit: need for unit, need in needs.items() if need is not None}
    return found


def zero_units(group: ChannelGroup, tensors: dict[str, Tensor]) -> tuple[int, ...]:
    """Units whose norm weights, as far as they matter to consumers, are exactly 0."""
    needed = {key for when in group.constant_when if when for key, _ in when}
    zero = {key: (tensors[key].detach() == 0).tolist() for key in needed}
    return tuple(
        unit
        for unit, when in enumerate(group.constant_when)
        if when is not None and all(zero[key][position] for key, position in when)
    )


def _need(
    group: ChannelGroup,
    unit: int,
    reading: Reading,
    raised: Reading,
    layers: dict[str, nn.Module],
    tensors: dict[str, Tensor],
) -> Need | None:
    """What it takes to keep what a unit contributes; None: it is no constant, or there is no place for it."""
    carrier, carries, biases = False, True, set()
    for member in group.members:
        if member.role != "in" or not member.indices[unit]:
            continue
        key, layer = member.tensor, member.tensor.rpartition(".")[0]
        if key not in reading.highest:
            return None  # the layer is called in a way that was not seen
        channels = channels_of(member, unit, len(reading.highest[key]), tensors[key].shape[member.axis])
        low, high = reading.lowest[key][channels], reading.highest[key][channels]
        if not _constant(low, high):
            return None
        if member.padded:
            columns = len(reading.highest[key]) // convolution_groups(member, tensors[key], reading)
            heard = {channel // columns for channel in channels if raised.highest[key][channel] != 0}
            carries &= heard == {channel // columns for channel in channels}
        if not bool(high.any()):
            continue
        if member.padded:
            carrier = True
        elif key in reading.biased:
            if f"{layer}.bias" not in tensors:
                return None
        elif member.mean_after is None:
            if not isinstance(layers.get(layer), TAKES_BIAS):
                return None
            biases.add(layer)
    return Need(carrier, frozenset(biases), carries)


def _constant(low: Tensor, high: Tensor) -> bool:
    return bool((high - low <= SPREAD * (1 + high.abs())).all())


def channels_of(member: Member, unit: int, channels: int, length: int) -> list[int]:
    """Input channels of a consumer that a unit occupies; a grouped convolution's column is one per group."""
    return [first + position for first in range(0, channels, length) for position in member.indices[unit]]


def convolution_groups(member: Member, weight: Tensor, reading: Reading) -> int:
    """Groups of the convolution that has this weight; 1 for a linear layer."""
    if member.axis == 0:  # transposed: (C_in, C_out / groups, ...)
        return reading.out_channels[member.tensor] // weight.shape[1]
    return len(reading.highest[member.tensor]) // weight.shape[1]


def fold_constants(work: Double, plan: Plan, batches: list[Inputs]) -> None:
    """Move what the plan's constant units contribute into what stays, before they are cut.

    Args:
        work: Network to change: it owns what is changed.
        plan: Says which units are constant and which unit is the carrier.
        batches: Inputs of the forward passes that read the constants.

    Raises:
        SlimError: A unit is not constant, or its constant can not be kept.
    """
    groups = [group for group in plan.groups if group.constant]
    if not groups:
        return
    keys = {member.tensor for group in groups for member in group.members if member.role == "in"}
    before = read_inputs(work, keys, batches)
    for group in groups:
        _raise(work, group.members, () if group.carrier is None else (group.carrier,))
    after = read_inputs(work, keys, batches)
    for group in groups:
        for member in group.members:
            if member.role == "in":
                _fold_into(work, group, member, before, after)


def _raise(work: Double, members: Iterable[Member], units: Iterable[int]) -> None:
    """Let the norms of units emit 1 (gamma 0, beta 1), so that a carrier's column is well scaled."""
    norms = [member for member in members if member.norm]
    gammas = {m.tensor.rpartition(".")[0]: work.value(m.tensor) for m in norms if m.norm == "weight"}
    for member in norms:
        gamma = gammas.get(member.tensor.rpartition(".")[0])
        if member.norm == "bias" and gamma is not None:
            places = [place for unit in units for place in member.indices[unit] if gamma[place] == 0]
            if places:
                work.own(member.tensor)[places] = 1.0


def _values(reading: Reading, member: Member, group: PlannedGroup, channels: list[int]) -> Tensor:
    """Values of channels that must be constant."""
    low, high = reading.lowest[member.tensor][channels], reading.highest[member.tensor][channels]
    if not _constant(low, high):
        raise SlimError(
            PROBLEM,
            where=f"group {group.name} at {member.tensor}",
            value=f"varying by {float((high - low).max()):.1e}",
            expected="constant channels",
            hint='Make the plan again on this network, or with constants="off".',
        )
    return (low + high) / 2


def _fold_into(work: Double, group: PlannedGroup, member: Member, before: Reading, after: Reading) -> None:
    """Fold the constants of one group into one consumer."""
    key, weight = member.tensor, work.own(member.tensor)
    channels, length = len(before.highest[key]), weight.shape[member.axis]
    carriers = [] if group.carrier is None else channels_of(member, group.carrier, channels, length)
    taken = [c for unit in group.constant for c in channels_of(member, unit, channels, length)] + carriers
    value = torch.zeros(channels, dtype=weight.dtype, device=weight.device)
    value[taken] = _values(before, member, group, taken)
    flat = weight.reshape(*weight.shape[:2], -1).clone(memory_format=torch.contiguous_format)
    # (groups of the convolution, columns, rows, taps), as a view of `flat`.
    blocks = flat.view(convolution_groups(member, weight, before), -1, *flat.shape[1:])
    if member.axis == 1:  # a transposed convolution's weight has the columns first
        blocks = blocks.transpose(1, 2)
    summed = torch.einsum("gc,gcrt->grt", value.view(len(blocks), -1), blocks)
    places = [divmod(channel, blocks.shape[1]) for channel in carriers]
    for place in places:
        blocks[place] = 0
    if not member.padded:
        _into_bias(work, member, summed.sum(2).flatten(), biased=key in before.biased)
    elif bool(value.any()):
        if not carriers:
            raise SlimError(
                PROBLEM,
                where=f"group {group.name} at {key}",
                value="a padded convolution without a carrier",
                expected='a plan made with constants="carrier"',
            )
        emitted = _values(after, member, group, carriers).tolist()
        for number in range(len(blocks)):
            # A unit may be there twice (x and -x): the channel that says more carries.
            best = max((i for i, (g, _) in enumerate(places) if g == number), key=lambda i: abs(emitted[i]))
            if emitted[best] == 0:
                raise SlimError(
                    PROBLEM,
                    where=f"the carrier of group {group.name}",
                    value=f"0 at {key}",
                    expected="a constant other than 0",
                    hint='Make the plan with constants="fold".',
                )
            blocks[places[best]] = summed[number] / emitted[best]
    weight.copy_(flat.view(weight.shape))


def _into_bias(work: Double, member: Member, amount: Tensor, *, biased: bool) -> None:
    """Add to the consumer's bias, or take off the running mean of the norm that follows."""
    if member.mean_after is not None and not biased:
        work.own(member.mean_after).sub_(amount)
        return
    bias = f"{member.tensor.rpartition('.')[0]}.bias"
    if bias in work:
        work.own(bias).add_(amount)
    elif bool(amount.any()):
        raise SlimError(
            PROBLEM,
            where=member.tensor,
            value="the weight of a layer without a bias",
            expected="a bias to hold them",
            hint='Make the plan with constants="off".',
        )
