"""Units and the ledger of what is known about them, filled by running a graph on labels.

A *label* is the number of a unit: the smallest thing that can be removed. Every activation of the graph is
replaced by a :class:`Flow` of the activation's own shape whose entries say which unit lives there. Operators
that move numbers around move the labels in the same way; convolutions and linear layers end the labels of
their input (which then name weight columns) and start new ones (weight rows). What the operators learn (units
that must go together, units that must stay) is written into a :class:`Ledger`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

FIXED = 0
"""Label of a place that holds no unit: it is never removed, e.g. a channel of the network's input."""
FREE = -1
"""Label of padding between units: it takes the label of what it is combined with."""
VARIES = 0
"""Constant set of a place whose value depends on the input."""
ALWAYS = 1
"""Constant set of a place that is constant whatever the parameters are."""


@dataclass(frozen=True)
class Flow:
    """What is known about one activation, place by place.

    Attributes:
        unit: int64, the activation's shape: labels.
        constant: int64, the same shape: number of the set of norm weights that must all be zero for the place
            to hold a constant (``Ledger.constant_sets``), or VARIES.
    """

    unit: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the network, by its state-dict key."""

    name: str
    shape: tuple[int, ...]


@dataclass
class Site:
    """One axis of one tensor, with a label for each position.

    Attributes:
        tensor: State-dict key.
        axis: Axis.
        unit: (length,) labels.
        role: ``"out"`` or ``"in"``.
        produces: True for the rows of a convolution or linear layer, where units begin.
        norm: Kind of norm vector, or None.
        constant: Per call of the consumer, (length_in,) constant sets of its input channels (``in`` sites).
        padded: True if the consumer's border sees fewer input values than its middle.
        mean_after: State-dict key of the running mean of the norm that directly follows, or None.
    """

    tensor: str
    axis: int
    unit: Tensor
    role: str
    produces: bool = False
    norm: str | None = None
    constant: list[Tensor] = field(default_factory=list)
    padded: bool = False
    mean_after: str | None = None


@dataclass(frozen=True)
class Choice:
    """A node that can be treated in several ways.

    Attributes:
        labels: (n,) labels that it touches.
        policies: Number of ways: 0 is no constraint, each further one ties or freezes some units.
        text: Why units that no way suits are frozen.
        module: Name of the module whose forward pass holds the node.
        code: What it does, and the lines of code that it comes from; None: nobody knows them.
    """

    labels: Tensor
    policies: int
    text: str
    module: str
    code: str | None


@dataclass
class Ledger:
    """What a run on labels has found.

    Attributes:
        policy: Per node name, how to treat a labelled axis that the node cuts by a size (see operators).
        choices: Such nodes by name.
        fixed_tensors: Parameters that are used in a way that fixes all of their axes, with the reason.
        unlabelled: (name, channels, reason) of layers whose rows have no labels.
        sites: By (tensor, axis).
        exact: Units that only an inexact cut can remove must stay; else they are marked.
        notes: (labels, reason) of units that must stay.
        marks: (labels, reason) of units whose removal changes the function.
        ties: (2, n) pairs of labels of units that go together.
        merges: (labels, reason) of units of one axis that go together.
        units: Number of labels given out; 0 is FIXED.
        names: State-dict key by placeholder name.
        calls: How often each norm's vectors are used.
        constant_sets: The set of (norm weight, position) behind each number in ``Flow.constant``.
    """

    policy: dict[str, int] = field(default_factory=dict)
    exact: bool = True
    choices: dict[str, Choice] = field(default_factory=dict)
    fixed_tensors: dict[str, str] = field(default_factory=dict)
    unlabelled: list[tuple[str, int, str]] = field(default_factory=list)
    sites: dict[tuple[str, int], Site] = field(default_factory=dict)
    notes: list[tuple[Tensor, str]] = field(default_factory=list)
    marks: list[tuple[Tensor, str]] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    merges: list[tuple[Tensor, str]] = field(default_factory=list)
    units: int = 1
    names: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    constant_sets: list[frozenset[tuple[str, int]] | None] = field(
        default_factory=lambda: [None, frozenset()]
    )
    _last: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _tied: int = 0
    _set_numbers: dict[frozenset[tuple[str, int]], int] = field(default_factory=lambda: {frozenset(): ALWAYS})

    def fresh(self, count: int) -> Tensor:
        """Labels of ``count`` new units."""
        self.units += count
        return torch.arange(self.units - count, self.units)

    def site(self, tensor: str, axis: int, length: int, role: str, **facts: object) -> Site:
        """The site of one axis of a tensor; a tensor that is used twice has one site."""
        key = (tensor, axis)
        if key not in self.sites:
            self.sites[key] = Site(tensor, axis, self.fresh(length), role)
        site = self.sites[key]
        for name, value in facts.items():
            setattr(site, name, value)
        return site

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Units at equal places go together; what is tied to a fixed place stays, for ``reason``."""
        a, b = narrowed(*spread(a, b))
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)])
        pairs = pairs[:, (pairs != FREE).all(0) & (pairs[0] != pairs[1])]
        fixed = (pairs == FIXED).any(0)
        if fixed.any():
            self.freeze(pairs[:, fixed], reason)
        if not fixed.all():
            self.ties.append(pairs[:, ~fixed])

    def tie_along(self, labels: Tensor, axis: int, reason: str) -> None:
        """All places along ``axis`` of ``labels`` go together."""
        (labels,) = narrowed(labels)
        if labels.shape[axis] > 1:
            self.tie(labels, labels.amax(axis, keepdim=True), reason)
            self.merges.append((units_in(labels), reason))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Units with these labels stay, for ``reason``."""
        labels = units_in(labels)
        if len(labels):
            self.notes.append((labels, reason))

    def mark(self, labels: Tensor, reason: str) -> None:
        """Removing these units changes the function, for ``reason``."""
        labels = units_in(labels)
        if len(labels):
            self.marks.append((labels, reason))

    def constant_number(self, needed: frozenset[tuple[str, int]]) -> int:
        """Number of a set of norm weights."""
        if needed not in self._set_numbers:
            self._set_numbers[needed] = len(self.constant_sets)
            self.constant_sets.append(needed)
        return self._set_numbers[needed]

    def join_constants(self, a: Tensor, b: Tensor) -> Tensor:
        """Constant sets of a place computed from two places: both must be constant."""
        a, b = spread(a, b)
        first, second = narrowed(a, b)
        # VARIES is 0 and prevails; ALWAYS is 1 and leaves the other as it is, and so does an equal.
        joined = torch.where(first.minimum(second) == VARIES, VARIES, torch.maximum(first, second))
        other = (first.minimum(second) > ALWAYS) & (first != second)
        if other.any():
            stacked = np.stack([part[other].numpy() for part in (first, second)])
            pairs, inverse = np.unique(stacked, axis=1, return_inverse=True)
            sets = [
                [self.constant_sets[number] or frozenset() for number in pair] for pair in pairs.T.tolist()
            ]
            numbers = [self.constant_number(left | right) for left, right in sets]
            joined[other] = torch.tensor(numbers)[torch.from_numpy(inverse.reshape(-1))]
        return joined.expand(a.shape)

    def joined(self, labels: Tensor) -> Tensor:
        """The labels with each unit named by the last of those that it is tied to so far."""
        (small,) = narrowed(labels)
        named = torch.from_numpy(self._components())[small.clamp(min=FIXED)]
        return torch.where(small > FIXED, named, small).expand(labels.shape)

    def _components(self) -> np.ndarray:
        """(units,) the last label of those that each label is tied to; adds the ties since the last call."""
        last = np.concatenate([self._last, np.arange(len(self._last), self.units)])
        if self.ties[self._tied :]:
            pairs = last[torch.cat(self.ties[self._tied :], 1).numpy()]
            nodes, places = np.unique(pairs, return_inverse=True)
            places = places.reshape(2, -1)
            graph = coo_array((np.ones(places.shape[1], np.int8), (places[0], places[1])), (len(nodes),) * 2)
            component = connected_components(graph, directed=False)[1]
            highest = np.zeros(len(nodes), np.int64)
            np.maximum.at(highest, component, nodes)
            renamed = np.arange(self.units)
            renamed[nodes] = highest[component]
            last = renamed[last]
        self._last, self._tied = last, len(self.ties)
        return last

    def roots(self) -> tuple[np.ndarray, dict[int, str], dict[int, str]]:
        """Merge tied units.

        Returns:
            (units,) the component of each label; the reason of each component that must stay; the reason of
            each one whose removal changes the function.
        """
        component = self._components()
        reasons: dict[int, str] = {}
        inexact: dict[int, str] = {}
        for found, notes in ((reasons, self.notes), (inexact, self.marks)):
            for labels, reason in notes:
                for root in component[labels.numpy()].tolist():
                    found.setdefault(root, reason)
        return component, reasons, inexact


def spread(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, each expanded to the shape that all of them broadcast to."""
    return tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]


def units_in(labels: Tensor) -> Tensor:
    """The different units among labels, ascending."""
    (small,) = narrowed(labels)
    seen = torch.zeros(1 + max(FIXED, int(small.max())) if small.numel() else 1, dtype=torch.bool)
    seen[small.clamp(min=FIXED).reshape(-1)] = True  # faster than sorting
    seen[FIXED] = False
    return seen.nonzero()[:, 0]


def narrowed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors without the axes along which all of them are expanded (their stride is 0)."""
    first = tensors[0]
    for axis in range(first.dim()):
        if first.shape[axis] > 1 and all(tensor.stride(axis) == 0 for tensor in tensors):
            tensors = tuple(tensor.narrow(axis, 0, 1) for tensor in tensors)
    return tensors


def compact(labels: Tensor) -> Tensor:
    """The same labels, stored once where they repeat along an axis."""
    shape = labels.shape
    (labels,) = narrowed(labels)
    for axis in range(labels.dim()):
        if labels.shape[axis] > 1:
            first, last = labels.narrow(axis, 0, 1), labels.narrow(axis, -1, 1)
            if torch.equal(first, last) and bool((labels == first).all()):
                labels = first
    return labels.expand(shape)


def varies(labels: Tensor, axis: int) -> bool:
    """Whether labels differ along an axis (padding aside)."""
    if labels.shape[axis] <= 1 or labels.stride(axis) == 0:
        return False
    (small,) = narrowed(labels)
    highest = small.amax(axis, keepdim=True)
    return bool(((small != highest) & (small != FREE)).any())
