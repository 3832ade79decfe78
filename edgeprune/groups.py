"""Channel groups: which units of a network are cut together, and where they live."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgeprune.cost import as_inputs
from edgeprune.cutting import (
    cut,
    device_of,
    disagreement,
    doubled,
    duplicate,
    first_line,
    outputs_of,
    random_inputs,
    shared,
    tensors_of,
    zeroed,
)
from edgeprune.errors import ModelError
from edgeprune.labels import VARIES, Ledger, Site
from edgeprune.tracing import Trace

TOLERANCE = 1e-10
"""Largest relative difference between slim and dense outputs in float64."""

ATTEMPTS = 4
"""How often groups are cut, each time in another way, before they count as right."""

TRIAL_TOLERANCE = 1e-7
"""As ``TOLERANCE``, for the random weights of a trial, which may amplify rounding; ``slim`` checks again."""


@dataclass(frozen=True)
class Member:
    """One axis of one tensor on which the units of a group live.

    Attributes:
        tensor: State-dict key.
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
        constant_when: Per unit, the (norm weight key, position) pairs that must all be exactly 0 for the
            unit to reach every consumer as a constant, so that it can be removed without changing the
            function; None: the unit is never constant.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen_because: str | None = None
    constant_when: tuple[tuple[tuple[str, int], ...] | None, ...] = ()


def find_groups(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> tuple[ChannelGroup, ...]:
    """Find the channel groups of any network by running its graph on labels.

    The network is not changed. Groups that can not be cut are returned too, with ``frozen_because`` set.

    Args:
        model: Any module that ``torch.export`` takes.
        example: Input (N, C, H, W), or a tuple of inputs; only the first sample is used.

    Raises:
        ModelError: The network does not run on the example, or ``torch.export`` refuses it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> [(g.name, g.size, g.frozen_because) for g in find_groups(net, torch.zeros(1, 3, 8, 8))]
        [('0', 8, None), ('2', 4, 'reaches the output')]
    """
    inputs = as_inputs(example)
    trace = Trace(model, inputs)
    trial = Trial(model, inputs, in_training=not trace.reads_all_parameters)
    policy: dict[str, int] = {}
    refused: list[tuple[tuple[str, int], list[int], str]] = []
    while True:
        ledger = trace.run(policy)
        for key, positions, reason in refused:
            ledger.freeze(ledger.sites[key].unit[positions], reason)
        groups, nodes = assemble(ledger)
        failed = trial.failing(groups, nodes)
        if not failed:
            return groups
        # Go on to the next policy, once, at every node that has one and touches a group that failed; only
        # where none has is a group frozen.
        touched = {node for name in failed for node in nodes[name]}
        following = {node: policy.get(node, 0) + 1 for node in touched}
        following = {
            node: number for node, number in following.items() if number < ledger.choices[node].policies
        }
        policy |= following
        if following:
            continue
        for group in groups:
            if group.name in failed:
                texts = [ledger.choices[node].text for node in nodes[group.name]]
                reason = texts[0] if texts else f"its removal fails a trial ({failed[group.name]})"
                member = group.members[0]
                refused.append(((member.tensor, member.axis), member.positions(range(group.size)), reason))


def assemble(ledger: Ledger) -> tuple[tuple[ChannelGroup, ...], dict[str, list[str]]]:
    """Read groups off a ledger.

    Returns:
        The groups in graph order, and for each group's name the nodes with policies that touch it.
    """
    component, reasons = ledger.roots()
    touched = {
        node: set(component[choice.labels.numpy()].tolist()) for node, choice in ledger.choices.items()
    }
    for name, text in ledger.fixed_tensors.items():
        for site in ledger.sites.values():
            if site.tensor == name:
                for root in component[site.unit.numpy()].tolist():
                    reasons.setdefault(root, text)
    # Where does each unit live, and which units share all their producers?
    homes: dict[int, dict[tuple[str, int], list[int]]] = {}
    producers: dict[int, list[tuple[str, int]]] = {}
    for key, site in ledger.sites.items():
        for position, root in enumerate(component[site.unit.numpy()].tolist()):
            homes.setdefault(root, {}).setdefault(key, []).append(position)
            if site.produces and producers.setdefault(root, [key])[-1] != key:
                producers[root].append(key)
    families: dict[tuple[tuple[tuple[str, int], ...], str | None], list[int]] = {}
    for root, keys in producers.items():
        families.setdefault((tuple(keys), reasons.get(root)), []).append(root)
    groups: list[ChannelGroup] = []
    names: set[str] = set()
    nodes: dict[str, list[str]] = {}
    for (sites, reason), roots in families.items():
        tensor = sites[0][0]
        name = unique_name(tensor.rpartition(".")[0] or tensor, names)
        if reason is None and len(roots) == 1 and len(homes[roots[0]][sites[0]]) > 1:
            reason = "its channels can only go all together"
            merged = [text for labels, text in ledger.merges if roots[0] in component[labels.numpy()]]
            reason += f" ({merged[0]})" if merged else ""
        groups.append(read_group(ledger, name, roots, homes, reason))
        nodes[name] = [node for node, found in touched.items() if not found.isdisjoint(roots)]
    for layer, size, reason in ledger.unlabelled:
        name = unique_name(layer, names)
        groups.append(ChannelGroup(name, size, (), reason, (None,) * size))
        nodes[name] = []
    return tuple(groups), nodes


def unique_name(name: str, taken: set[str]) -> str:
    """``name``, or ``name#2`` ... if it is taken already."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique


def read_group(
    ledger: Ledger,
    name: str,
    roots: list[int],
    homes: dict[int, dict[tuple[str, int], list[int]]],
    reason: str | None,
) -> ChannelGroup:
    """One group from the components that it consists of."""
    keys = list(dict.fromkeys(key for root in roots for key in homes[root]))
    sites = [ledger.sites[key] for key in keys]
    # Producers first, in graph order; then what carries the units; consumers last.
    sites.sort(key=lambda site: (site.role == "in", not site.produces))
    members = tuple(
        Member(
            site.tensor, site.axis, site.role,
            tuple(tuple(homes[root].get((site.tensor, site.axis), ())) for root in roots),
            site.norm, site.padded, site.mean_after if ledger.calls[site.mean_after or ""] == 1 else None,
        )
        for site in sites
    )  # fmt: skip
    constant = tuple(constant_when(ledger, sites, homes[root]) for root in roots)
    return ChannelGroup(name, len(roots), members, reason, constant)


def constant_when(
    ledger: Ledger, sites: list[Site], home: dict[tuple[str, int], list[int]]
) -> tuple[tuple[str, int], ...] | None:
    """Norm weights that must be zero for a unit to be a constant at every consumer; None: it never is."""
    needed: set[tuple[str, int]] = set()
    for site in sites:
        positions = home.get((site.tensor, site.axis), [])
        if site.role != "in" or not positions:
            continue
        if len(site.constant) != 1:
            return None  # the consumer is used twice: its input may be two different constants
        # A grouped convolution's column is read once per group.
        channels = site.constant[0].view(-1, len(site.unit))[:, positions].reshape(-1)
        for number in channels.tolist():
            if number == VARIES:
                return None
            needed |= ledger.constant_sets[number] or set()
    return tuple(sorted(needed))


class Trial:
    """Cuts groups out of a copy with random weights and compares with the oracle: "decide by trying".

    Args:
        model: Network; it is not changed.
        inputs: Its inputs at batch 1.
        in_training: Try the forward pass in training mode too.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], *, in_training: bool) -> None:
        self.model = doubled(model)
        for key, tensor in tensors_of(self.model).items():
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                randomise(tensor.detach(), key)
        self.lengths = {key: tensor.shape for key, tensor in tensors_of(self.model).items()}
        self.inputs = random_inputs([(x.shape, x.dtype) for x in inputs], device_of(model), seed=0)
        norms = [module for module in self.model.modules() if isinstance(module, _NormBase)]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        try:
            outputs_of(self.model, self.inputs)
        except Exception as reason:
            raise ModelError(
                "could not run the network in float64, in which every cut is checked",
                where="its forward pass",
                value=f"failing ({first_line(reason)})",
                expected="one that follows the dtype of its weights and input",
            ) from reason
        finally:
            for hook in hooks:
                hook.remove()
        self.trains = in_training and self._fault_in_training(self.model) is None

    def failing(self, groups: tuple[ChannelGroup, ...], nodes: dict[str, list[str]]) -> dict[str, str]:
        """Names of the groups that can not be cut as they are, with the reason.

        All groups are tried at once; only if that fails, half of them, and so on.

        Args:
            groups: All groups.
            nodes: Per group the nodes with policies that touch it: these are under suspicion.
        """
        groups = tuple(group for group in groups if group.frozen_because is None and group.size > 1)
        if self._fault(groups) is None:
            return {}
        good, failed = self._sift((), tuple(group for group in groups if not nodes[group.name]))
        return failed | self._sift(good, tuple(group for group in groups if nodes[group.name]))[1]

    def _sift(
        self, good: tuple[ChannelGroup, ...], groups: tuple[ChannelGroup, ...]
    ) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        """The groups that can be cut beside the good ones, with these; and those that can not."""
        fault = self._fault((*good, *groups)) if groups else None
        if fault is None:
            return (*good, *groups), {}
        if len(groups) == 1:
            return good, {groups[0].name: fault}
        half = len(groups) // 2
        good, first = self._sift(good, groups[:half])
        good, second = self._sift(good, groups[half:])
        return good, first | second

    def _fault(self, groups: tuple[ChannelGroup, ...]) -> str | None:
        """What goes wrong when units of each of these groups are cut, or None."""
        if not groups:
            return None
        faults = (self._fault_of(groups, attempt) for attempt in range(ATTEMPTS))
        return next((fault for fault in faults if fault is not None), None)

    def _fault_of(self, groups: tuple[ChannelGroup, ...], attempt: int) -> str | None:
        """What goes wrong in one attempt, or None."""
        kept: dict[tuple[str, int], Tensor] = {}
        columns: dict[tuple[str, int], list[int]] = {}
        for group in groups:
            removed = some_units(group, attempt)
            for member in group.members:
                key = (member.tensor, member.axis)
                gone = member.positions(removed)
                length = self.lengths[member.tensor][member.axis]
                kept.setdefault(key, torch.ones(length, dtype=torch.bool))[gone] = False
                if member.role == "in":
                    columns.setdefault(key, []).extend(gone)
        with zeroed(
            self.model, {key: torch.tensor(gone, dtype=torch.int64) for key, gone in columns.items()}
        ):
            theirs = outputs_of(self.model, self.inputs)
        slim = shared(self.model)
        cut(slim, {key: mask.nonzero()[:, 0] for key, mask in kept.items()})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error = disagreement(outputs_of(slim, self.inputs), theirs)
        except Exception as reason:  # the forward pass is the user's: it may raise anything
            return first_line(reason)
        if not error <= TRIAL_TOLERANCE:
            return f"the outputs change by {error:.1e}"
        return self._fault_in_training(slim) if self.trains else None

    def _fault_in_training(self, model: nn.Module) -> str | None:
        """What goes wrong in a forward pass in training mode with a batch of two, or None."""
        model = duplicate(model).train()
        devices = {tensor.device for tensor in self.inputs if tensor.is_cuda}
        try:
            with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs_of(model, tuple(torch.cat([tensor, tensor]) for tensor in self.inputs))
        except Exception as reason:  # as above
            return f"training mode: {first_line(reason)}"
        return None


def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Give a norm statistics that suit its input: without them deep networks overflow or saturate."""
    if isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
        channels = args[0].detach().transpose(0, 1).flatten(1)
        norm.running_mean.copy_(channels.mean(1) / 2)
        norm.running_var.copy_(channels.square().mean(1) + 0.1)


def randomise(tensor: Tensor, key: str) -> None:
    """Fill a tensor so that every channel matters, in place: vectors above 0, weights of the usual size."""
    generator = torch.Generator(tensor.device).manual_seed(zlib.crc32(key.encode()))
    if tensor.dim() > 1:
        fan_in = max(1, tensor.numel() // tensor.shape[0])
        tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    else:
        tensor.uniform_(0.5, 1.5, generator=generator)


def some_units(group: ChannelGroup, attempt: int) -> list[int]:
    """The units to cut in an attempt: each unit has one, and each group other numbers of units.

    In the first attempt the number is odd: an even one could slip through a hard-coded division. In the
    others it may be 0, so that what must lose equally many units, and does not, is found out.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    order = torch.randperm(group.size, generator=generator)
    turns = torch.randint(0, ATTEMPTS, (group.size,), generator=generator)
    turns[0] = 0  # never all units at once
    turns[1] = max(1, int(turns[1]))
    if int((turns == 0).sum()) % 2 == 0:
        turns[-1] = 0 if turns[-1] else 1
    return order[turns == attempt].tolist()
