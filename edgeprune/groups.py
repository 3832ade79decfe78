"""Channel groups: which units of a network are cut together, and where they live."""

from __future__ import annotations

from torch import Tensor, nn

from edgeprune.channels import ChannelGroup, Member
from edgeprune.cost import as_inputs
from edgeprune.labels import VARIES, Ledger, Site
from edgeprune.oracle import smallest
from edgeprune.tracing import Trace
from edgeprune.trial import Trial


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
    inputs = smallest(model, as_inputs(example))
    trace = Trace(model, inputs)
    trial = Trial(model, inputs, in_training=not trace.reads_all_parameters)
    policy: dict[str, int] = {}
    refused: list[tuple[tuple[str, int], list[int], str]] = []
    while True:
        ledger = trace.run(policy)
        for key, positions, reason in refused:
            ledger.freeze(ledger.sites[key].unit[positions], reason)
        groups, nodes = assemble(ledger)
        doubtful = any(choice.policies > 1 for choice in ledger.choices.values())
        failed = trial.failing(groups, nodes, doubtful=doubtful)
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
