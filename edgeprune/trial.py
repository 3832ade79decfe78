"""Deciding by trying: units are cut out of a network with random weights, and the oracle looks."""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgeprune.channel_select import ChannelSelect
from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_macs_meta, count_params, shell_of
from edgeprune.cutting import Cuts, cut, device_of, first_line, names_of, shared, tensors_of
from edgeprune.errors import ModelError
from edgeprune.oracle import (
    Filled,
    Inputs,
    columns_of,
    disagreement,
    hollow,
    in_double,
    outputs_of,
    random_inputs,
    sources_of,
)
from edgeprune.scratch import Scratch

ATTEMPTS = 4
"""How often groups are cut, each time in another way, where the graph leaves a doubt."""

FEW_ATTEMPTS = 2
"""The same where it leaves none: each unit is cut once."""

MANY_ATTEMPTS, SMALL = 16, 16
"""The same where the graph leaves a choice for a group of fewer than ``SMALL`` units: a few attempts may all
leave an order, or numbers, that fit by chance."""

LARGE_MACS, LARGE_PARAMS = 50e9, 100e6
"""From either on one attempt has to do where the graph leaves no doubt; ``slim`` looks again."""

TOLERANCE = 1e-7
"""Largest relative difference of outputs: random weights may amplify rounding, and ``slim`` looks again."""

Groups = tuple[ChannelGroup, ...]
Kept = Mapping[str, list[tuple[int, Tensor]]]
"""Kept positions of some axes, by tensor."""

FaultOf = Callable[[Groups, int], str | None]
"""What goes wrong when units of these groups are cut, in an attempt of this number."""


class Trial:
    """Cuts groups out of a copy with random weights and compares with the oracle.

    The weights are views of little noise and are made as an operator reads them, so a trial needs no more
    memory than one layer.

    Args:
        model: Network; it is not changed.
        inputs: Its inputs at batch 1.
        in_training: Try the forward pass in training mode too.

    Raises:
        ModelError: The network does not run in float64.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, in_training: bool) -> None:
        self.model = hollow(model)
        self.inputs = random_inputs([(x.shape, x.dtype) for x in inputs], device_of(model), seed=0)
        self.real = {key: tensor.detach() for key, tensor in tensors_of(model).items()}
        self.name = names_of(model)
        self.drawn = {key for key, tensor in tensors_of(model).items() if isinstance(tensor, nn.Parameter)}
        self.attempts = ATTEMPTS
        self.lost: dict[tuple[str, int], list[Tensor]] = {}
        self.settled: dict[str, Tensor] = {}
        self.shell: nn.Module | None = shell_of(self.model)
        self.large = count_params(model) > LARGE_PARAMS
        try:
            self.large |= count_macs_meta(self.shell, self.inputs) > LARGE_MACS
        except ModelError:
            self.shell = None  # the forward pass looks at numbers: it can not do without
        self.trains = in_training and self._fault_in_training(self.model, {}) is None

    def part(self, key: str, kept: Iterable[tuple[int, Tensor]], scratch: Scratch) -> Tensor:
        """A parameter or buffer of the network that is tried, at the kept positions of some axes: a copy."""
        name = self.name[key]
        if name in self.settled:
            tensor = self.settled[name]
        elif name in self.drawn and self.real[name].is_floating_point():
            tensor = noise(self.real[name], name)
        else:
            tensor = self.real[name]
        for axis, keep in kept:
            tensor = scratch.chosen(tensor, axis, keep)
        return in_double(tensor, scratch)

    def failing(self, groups: Groups, kinds: Mapping[str, Hashable], *, doubtful: set[str]) -> dict[str, str]:
        """Names of the groups that can not be cut as they are, with the reason.

        All groups are tried at once; only if that fails, half of them, and so on. Where the graph leaves a
        choice that is done more often, and then with each such group alone: what must lose as many units as
        another group may have done so by chance.

        Args:
            groups: All groups.
            kinds: Of the groups that nodes with policies touch (these are under suspicion), the kind: where
                one of a kind fails, all of it do.
            doubtful: Names of the groups for which the graph leaves a choice.
        """
        self.lost.clear()
        groups = tuple(group for group in groups if group.frozen_because is None and group.size > 1)
        doubtful = doubtful & {group.name for group in groups}
        small = any(group.name in doubtful and group.size < SMALL for group in groups)
        few = 1 if self.large else FEW_ATTEMPTS
        self.attempts = MANY_ATTEMPTS if small else ATTEMPTS if doubtful else few
        if doubtful and self.shell is not None:
            # Most of what goes wrong shows at once, and without numbers, which costs little.
            for attempts in (range(1), range(1, self.attempts)):
                failed = self._search(groups, kinds, doubtful, self._fault_of_shapes, attempts)
                if failed:
                    return failed
        return self._search(groups, kinds, doubtful, self._fault_of, range(self.attempts))

    def _search(
        self,
        groups: Groups,
        kinds: Mapping[str, Hashable],
        doubtful: set[str],
        fault_of: FaultOf,
        attempts: range,
    ) -> dict[str, str]:
        """As ``failing``, by one kind of attempt."""

        def fault(these: Groups) -> str | None:
            faults = (fault_of(these, attempt) for attempt in attempts) if these else ()
            return next((found for found in faults if found is not None), None)

        good: Groups = ()
        failed: dict[str, str] = {}
        for inexact in (False, True):  # what is inexact only has to run
            these = tuple(group for group in groups if bool(group.inexact_because) == inexact)
            if these and fault((*good, *these)) is not None:
                for suspicious in (False, True):
                    part = tuple(group for group in these if (group.name in kinds) == suspicious)
                    good, more = sift_kinds(good, part, kinds, fault)
                    failed |= more
            else:
                good = (*good, *these)
        for group in good:
            if group.name in doubtful and 0 in attempts and (found := fault_of((group,), 0)) is not None:
                failed[group.name] = found
        return failed

    def _cuts(self, groups: Groups, attempt: int) -> tuple[Cuts, dict[tuple[str, int], Tensor]]:
        """Kept positions of the axes that lose some in an attempt, and the lost ones where units are read."""
        kept: dict[tuple[str, int], Tensor] = {}
        columns: dict[tuple[str, int], list[Tensor]] = {}
        for group in groups:
            for member, gone in zip(group.members, self._lost(group, attempt), strict=True):
                key = (member.tensor, member.axis)
                length = self.real[member.tensor].shape[member.axis]
                kept.setdefault(key, torch.ones(length, dtype=torch.bool))[gone] = False
                if member.role == "in":
                    columns.setdefault(key, []).append(gone)
        cuts = {key: mask.nonzero()[:, 0] for key, mask in kept.items()}
        return cuts, {key: torch.cat(gone) for key, gone in columns.items()}

    def _lost(self, group: ChannelGroup, attempt: int) -> list[Tensor]:
        """The positions that each member of a group loses in an attempt."""
        key = (group.name, attempt)
        if key not in self.lost:
            removed = some_units(group, attempt, self.attempts)
            self.lost[key] = [
                torch.tensor(member.positions(removed), dtype=torch.int64) for member in group.members
            ]
        return self.lost[key]

    def _fault_of(self, groups: Groups, attempt: int) -> str | None:
        """What goes wrong in one attempt, or None."""
        cuts, columns = self._cuts(groups, attempt)
        slim = shared(self.model)
        cut(slim, cuts)
        theirs = self._dense(columns)
        kept: dict[str, list[tuple[int, Tensor]]] = {}
        for (tensor, axis), keep in cuts.items():
            kept.setdefault(tensor, []).append((axis, keep))
        try:
            with warnings.catch_warnings(), self._filled(slim, kept):
                warnings.simplefilter("ignore")
                error = disagreement(outputs_of(slim, self.inputs), theirs)
        except Exception as reason:  # the forward pass is the user's: it may raise anything
            return first_line(reason)
        if not error <= TOLERANCE and not any(group.inexact_because for group in groups):
            return f"the outputs change by {error:.1e}"
        return self._fault_in_training(slim, kept) if self.trains else None

    def _filled(self, model: nn.Module, kept: Kept) -> Filled:
        """The mode in which a hollow network computes that keeps these positions."""
        scratch = Scratch()
        return Filled(sources_of(model, lambda key: self.part(key, kept.get(self.name[key], ()), scratch)))

    def _fault_of_shapes(self, groups: Groups, attempt: int) -> str | None:
        """What goes wrong in one attempt without numbers, or None."""
        assert self.shell is not None
        slim = shared(self.shell)
        cut(slim, self._cuts(groups, attempt)[0])
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                outputs_of(slim, tuple(tensor.to("meta") for tensor in self.inputs))
        except Exception as reason:  # as above
            return first_line(reason)
        return None

    def _dense(self, zeros: dict[tuple[str, int], Tensor]) -> list[Tensor]:
        """Outputs of the whole network with these columns at zero; its norms settle on what they receive."""
        lost: dict[str, list[tuple[int, Tensor]]] = {}
        for (tensor, axis), positions in zeros.items():
            lost.setdefault(tensor, []).append((axis, positions))
        scratch = Scratch()

        def value(key: str) -> Tensor:
            tensor = self.part(key, (), scratch)
            for axis, positions in lost.get(self.name[key], ()):
                tensor.index_fill_(axis, positions.to(tensor.device), 0)
            return tensor

        self.settled = {}
        try:
            columns = columns_of(self.model, lost, lambda key, kept: self.part(key, [(1, kept)], scratch))
            with self._settling(), Filled(sources_of(self.model, value), columns):
                return outputs_of(self.model, self.inputs)
        except Exception as reason:
            raise ModelError(
                "could not run the network in float64, in which every cut is checked",
                where="its forward pass",
                value=f"failing ({first_line(reason)})",
                expected="one that follows the dtype of its weights and input",
            ) from reason

    @contextlib.contextmanager
    def _settling(self) -> Iterator[None]:
        """Give each norm statistics that suit its input: without them deep networks overflow or saturate."""
        names = {id(tensor): self.name[key] for key, tensor in tensors_of(self.model).items()}

        def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
            mean, var = (names.get(id(getattr(norm, kind))) for kind in ("running_mean", "running_var"))
            if args and mean is not None and var is not None and mean not in self.settled:
                received = norm.selected(args[0]) if isinstance(norm, ChannelSelect) else args[0]
                channels = received.detach().transpose(0, 1).flatten(1)
                self.settled |= {mean: channels.mean(1) / 2, var: channels.square().mean(1) + 0.1}

        norms = [module for module in self.model.modules() if isinstance(module, _NormBase)]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _fault_in_training(self, model: nn.Module, kept: Kept) -> str | None:
        """What goes wrong in a forward pass in training mode with a batch of two, or None."""
        model = shared(model).train()
        devices = {tensor.device for tensor in self.inputs if tensor.is_cuda}
        try:
            with (
                torch.random.fork_rng(devices=devices),
                warnings.catch_warnings(),
                self._filled(model, kept),
            ):
                warnings.simplefilter("ignore")
                outputs_of(model, tuple(torch.cat([tensor, tensor]) for tensor in self.inputs))
        except Exception as reason:  # as above
            return f"training mode: {first_line(reason)}"
        return None


def sift(
    good: Groups, groups: Groups, fault: Callable[[Groups], str | None]
) -> tuple[Groups, dict[str, str]]:
    """The groups that can be cut beside the good ones, with these; and those that can not, with the fault."""
    found = fault((*good, *groups)) if groups else None
    if found is None:
        return (*good, *groups), {}
    if len(groups) == 1:
        return good, {groups[0].name: found}
    half = len(groups) // 2
    good, first = sift(good, groups[:half], fault)
    good, second = sift(good, groups[half:], fault)
    return good, first | second


def sift_kinds(
    good: Groups, groups: Groups, kinds: Mapping[str, Hashable], fault: Callable[[Groups], str | None]
) -> tuple[Groups, dict[str, str]]:
    """As ``sift``; where the first group of a kind fails, the others of its kind fail untried."""
    first: dict[Hashable, ChannelGroup] = {}
    kind = {group.name: kinds.get(group.name, group.name) for group in groups}
    for group in groups:
        first.setdefault(kind[group.name], group)
    if len(first) == len(groups):
        return sift(good, groups, fault)
    if fault((*good, *groups)) is None:
        return (*good, *groups), {}
    good, failed = sift(good, tuple(first.values()), fault)
    found = {kind[name]: reason for name, reason in failed.items()}
    failed = {group.name: found[kind[group.name]] for group in groups if kind[group.name] in found}
    tried = {group.name for group in first.values()}
    rest = tuple(group for group in groups if group.name not in tried and kind[group.name] not in found)
    good, more = sift(good, rest, fault)
    return good, failed | more


def noise(tensor: Tensor, key: str) -> Tensor:
    """Numbers in place of a parameter's, so that every channel matters: little noise, read over and over.

    Weights are of the usual size, vectors above 0.

    Args:
        tensor: The parameter, floating-point; only its shape and device count.
        key: Seed.

    Returns:
        A view that reads the same memory at many places.
    """
    shape = tensor.shape
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    # From the last axis to the first: 1, 4, 13, 40. Equal numbers lie askew to all axes.
    strides = [(3 ** (len(shape) - axis) - 1) // 2 for axis in range(len(shape))]
    drawn = torch.empty(
        1 + sum(step * max(0, size - 1) for step, size in zip(strides, shape, strict=True)),
        dtype=torch.float64,
    )
    if tensor.dim() > 1:
        drawn.normal_(0, (2 / max(1, math.prod(shape[1:]))) ** 0.5, generator=generator)
    else:
        drawn.uniform_(0.5, 1.5, generator=generator)
    return drawn.float().to(tensor.device).as_strided(shape, strides)  # half as much to move


def some_units(group: ChannelGroup, attempt: int, attempts: int) -> list[int]:
    """The units to cut in an attempt: never all, each in at least one attempt, other numbers in other groups.

    In the first attempt the number is odd: an even one could slip through a hard-coded division. In the
    second it may be 0, so that what must lose equally many units, and does not, is found out. Then many
    units go, and then all but one or two: pieces of rounded sizes change their number only then. Of few
    attempts the second cuts what the first one leaves; a single one cuts the larger part: that is faster.
    """
    size = group.size
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    order = torch.randperm(size, generator=generator).tolist()

    def number(low: int, high: int) -> int:
        return int(torch.randint(min(low, high), high + 1, (), generator=generator))

    few = number(1, max(1, size // 3) if attempts >= ATTEMPTS else size // 2)
    few -= 1 - few % 2
    if attempts == 1:
        return order[few + size % 2 :]
    if attempts < ATTEMPTS:
        return order[few:] if attempt else order[:few]
    if attempt >= ATTEMPTS:
        generator.manual_seed(zlib.crc32(f"{group.name} {attempt}".encode()))
        return torch.randperm(size, generator=generator).tolist()[: number(0, size - 1)]
    none, many, left = number(0, size // 2), number(size // 2, size - 1), number(1, min(2, few))
    return [order[:few], order[size - none :], order[size - many :], order[left:]][attempt]
