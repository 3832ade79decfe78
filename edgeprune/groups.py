"""Channel groups: which units of a network are cut together, and where they live."""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor, nn

from edgeprune.channel_select import add_selects
from edgeprune.channels import ChannelGroup, Member
from edgeprune.cost import as_inputs
from edgeprune.cutting import shared
from edgeprune.kinds import kinds_of
from edgeprune.labels import VARIES, Ledger, Site
from edgeprune.oracle import smallest
from edgeprune.tracing import Trace, collector_at_rest
from edgeprune.trial import Trial


@collector_at_rest()
def find_groups(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    exact: bool = True,
    channel_select: bool = False,
) -> tuple[ChannelGroup, ...]:
    """Find the channel groups of any network by running its graph on labels.

    The network is not changed. Groups that can not be cut are returned too, with ``frozen_because`` set.

    Args:
        model: Any module that ``torch.export`` takes.
        example: Input (N, C, H, W), or a tuple of inputs; only the first sample is used.
        exact: Freeze units whose removal changes what the others compute: those that layer norms, group
            norms or reductions over channels read. With False they are offered, with ``inexact_because``
            set, and ``slim`` warns by how much the function changed.
        channel_select: Let each batch or instance norm that reads a shared stream (pre-activation ResNets,
            DenseNets) have units of its own, by an index-select in front of it: a group then prunes what this
            norm's consumers read, and the stream itself is frozen. A stream is the norm's input with all that
            it was made of, back to the nearest convolutions or linear layers; it is shared if anything in it
            is read by something else too, or returned. Such a group's first member is
            ``<norm>.channel_select``, a buffer that only the slim network has.

    Raises:
        ModelError: The network does not run on the example, or ``torch.export`` refuses it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> [(g.name, g.size, g.frozen_because) for g in find_groups(net, torch.zeros(1, 3, 8, 8))]
        [('0', 8, None), ('2', 4, 'reaches the output')]
    """
    inputs = smallest(model, as_inputs(example))
    trace = Trace(model, inputs)
    norms = trace.norms_on_streams(model) if channel_select else ()
    if norms:
        model = shared(model)
        add_selects(model, norms)
        trace = Trace(model, inputs)
    trial = Trial(model, inputs, in_training=not trace.reads_all_parameters)
    policy: dict[str, int] = {}
    refused: list[tuple[tuple[str, int], list[int], str]] = []
    while True:
        ledger = trace.run(policy, exact=exact)
        for key, positions, reason in refused:
            ledger.freeze(ledger.sites[key].unit[positions], reason)
        groups, nodes = assemble(ledger)
        open_nodes = {node for node, choice in ledger.choices.items() if choice.policies > 1}
        doubtful = {name for name, touching in nodes.items() if not open_nodes.isdisjoint(touching)}
        touching = {name: [ledger.choices[node] for node in found] for name, found in nodes.items()}
        failed = trial.failing(groups, kinds_of(model, groups, touching), doubtful=doubtful)
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
    component, reasons, inexact = ledger.roots()
    for name, text in ledger.fixed_tensors.items():
        for site in ledger.sites.values():
            if site.tensor == name:
                for root in component[site.unit.numpy()].tolist():
                    reasons.setdefault(root, text)
    # Units that share all their producers are a family: a group.
    producers: dict[int, list[tuple[str, int]]] = {}
    at = {key: component[site.unit.numpy()] for key, site in ledger.sites.items()}
    for key, site in ledger.sites.items():
        if site.produces:
            for root in dict.fromkeys(at[key].tolist()):
                producers.setdefault(root, []).append(key)
    families: dict[tuple[tuple[tuple[str, int], ...], str | None, str | None], list[int]] = {}
    for root, keys in producers.items():
        why = reasons.get(root)
        families.setdefault((tuple(keys), why, None if why else inexact.get(root)), []).append(root)
    homes = places_of(at, list(families.values()), len(component))
    touching = nodes_of(ledger, component, list(families.values()))
    groups: list[ChannelGroup] = []
    names: set[str] = set()
    nodes: dict[str, list[str]] = {}
    for ((sites, reason, mark), roots), home, found in zip(families.items(), homes, touching, strict=True):
        first = sites[0][0]
        name = unique_name(first.rpartition(".")[0] or first, names)
        if reason is None and len(roots) == 1 and len(home[sites[0]][0]) > 1:
            reason = "its channels can only go all together"
            merged = [text for labels, text in ledger.merges if roots[0] in component[labels.numpy()]]
            reason += f" ({merged[0]})" if merged else ""
        elif reason is None and len(roots) == 1:
            reason = "has a single channel"
        groups.append(read_group(ledger, name, len(roots), home, reason, mark))
        nodes[name] = found
    for layer, size, reason in ledger.unlabelled:
        name = unique_name(layer, names)
        groups.append(ChannelGroup(name, size, (), reason, (None,) * size))
        nodes[name] = []
    return tuple(groups), nodes


def nodes_of(ledger: Ledger, component: np.ndarray, families: list[list[int]]) -> list[list[str]]:
    """The nodes with policies that touch each family of components."""
    family = np.full(len(component), len(families))
    for number, roots in enumerate(families):
        family[roots] = number
    nodes: list[list[str]] = [[] for _ in range(len(families) + 1)]
    for node, choice in ledger.choices.items():
        for number in np.unique(family[component[choice.labels.numpy()]]).tolist():
            nodes[number].append(node)
    return nodes[:-1]


Home = dict[tuple[str, int], tuple[tuple[int, ...], ...]]
"""By site, where each unit of a group lives."""


def places_of(at: dict[tuple[str, int], np.ndarray], families: list[list[int]], count: int) -> list[Home]:
    """Where the units of each family live.

    Args:
        at: By site, (length,) the component at each position.
        families: Components of each family, in the order of its units.
        count: No component's number is as large.
    """
    family, rank = np.full(count, -1), np.zeros(count, np.int64)
    for number, roots in enumerate(families):
        family[roots], rank[roots] = number, np.arange(len(roots))
    homes: list[Home] = [{} for _ in families]
    alike: dict[int, tuple[tuple[int, ...], ...]] = {}
    for key, here in at.items():
        order = np.lexsort((rank[here], family[here]))
        order = order[np.searchsorted(family[here][order], 0) :]  # without what no family has
        ends = np.flatnonzero(np.diff(family[here[order]], append=-1)) + 1
        for start, end in zip([0, *ends[:-1]], ends, strict=True) if len(order) else ():
            positions = order[start:end]
            number = family[here[positions[0]]]
            homes[number][key] = by_unit(positions, rank[here[positions]], len(families[number]), alike)
    return homes


def by_unit(
    positions: np.ndarray, units: np.ndarray, size: int, alike: dict[int, tuple[tuple[int, ...], ...]]
) -> tuple[tuple[int, ...], ...]:
    """Positions of each of ``size`` units, from the unit of each position; both ordered by unit.

    Where each unit has the position of its own number, as almost everywhere, all members hold one object: it
    is kept in ``alike``, by size.
    """
    numbers = np.arange(size)
    if np.array_equal(units, numbers):
        if not np.array_equal(positions, numbers):
            return tuple(zip(positions.tolist(), strict=True))
        if size not in alike:
            alike[size] = tuple(zip(range(size), strict=True))
        return alike[size]
    ends = np.searchsorted(units, np.arange(size + 1)).tolist()
    listed = positions.tolist()
    return tuple(tuple(listed[start:end]) for start, end in itertools.pairwise(ends))


def unique_name(name: str, taken: set[str]) -> str:
    """``name``, or ``name#2`` ... if it is taken already."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique


def read_group(
    ledger: Ledger, name: str, size: int, home: Home, reason: str | None, mark: str | None
) -> ChannelGroup:
    """One group from the places of its units."""
    # Producers first, in graph order; then what carries the units; consumers last.
    sites = sorted(
        (ledger.sites[key] for key in home), key=lambda site: (site.role == "in", not site.produces)
    )
    members = tuple(
        Member(
            site.tensor, site.axis, site.role, home[site.tensor, site.axis],
            site.norm, site.padded, site.mean_after if ledger.calls[site.mean_after or ""] == 1 else None,
        )
        for site in sites
    )  # fmt: skip
    constant = constants_when(ledger, sites, home, size)
    return ChannelGroup(name, size, members, reason, constant, None if reason else mark)


def constants_when(
    ledger: Ledger, sites: list[Site], home: Home, size: int
) -> tuple[tuple[tuple[str, int], ...] | None, ...]:
    """Per unit, the norm weights that must be zero for it to be a constant at every consumer; None: never."""
    needed: list[set[int]] = [set() for _ in range(size)]
    for site in sites:
        if site.role != "in":
            continue
        # A grouped convolution's column is read once per group. A consumer that is used twice may receive
        # two different constants: it counts as varying.
        once = len(site.constant) == 1
        if not (once and bool(site.constant[0].any())) and all(home[site.tensor, site.axis]):
            return (None,) * size  # each unit varies here
        numbers = site.constant[0].view(-1, len(site.unit)).T.tolist() if once else None
        for unit, positions in enumerate(home[site.tensor, site.axis]):
            for position in positions:
                needed[unit].update(numbers[position] if numbers else (VARIES,))
    return tuple(when_zero(ledger, frozenset(numbers)) for numbers in needed)


def when_zero(ledger: Ledger, numbers: frozenset[int]) -> tuple[tuple[str, int], ...] | None:
    """All norm weights of several constant sets; None if a place varies."""
    if VARIES in numbers:
        return None
    sets = [ledger.constant_sets[number] or frozenset() for number in numbers]
    return tuple(sorted(frozenset().union(*sets)))
