"""A network's channel groups as a tree."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text
from rich.tree import Tree

from edgeprune.units import format_quantity

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.channels import ChannelGroup
    from edgeprune.shares import Portion, Shares

INDENT = 4
"""Width of a branch's guide."""
COLUMNS = {"units": 8, "params": 10, "MACs": 10}


def group_tree(
    title: str,
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    shares: Shares,
    *,
    members: bool,
    width: int,
) -> Group:
    """The tree of all groups, and the totals under it.

    Args:
        title: What to call the network.
        network: The network.
        groups: Its groups.
        shares: Weighs them.
        members: Show where each group lives, too.
        width: Columns of the terminal.
    """
    free = [group for group in groups if group.frozen_because is None]
    frozen = by_reason(groups)
    stuck = [group for kind in frozen.values() for group in kind]
    names = [INDENT + len(label(group)) for group in free]
    names += [3 * INDENT + len(group.name) for group in stuck] if members else []
    column = min(max([20, *names]), width - sum(COLUMNS.values()))
    head = Text(" " * column + "".join(f"{name:>{size}}" for name, size in COLUMNS.items()), style="dim")
    tree = Tree(Text(f"{title}\n", style="bold").append_text(head), guide_style="dim")

    def add_group(parent: Tree, group: ChannelGroup, depth: int) -> None:
        branch = parent.add(_row(label(group), group.size, shares.of([group]), column - depth * INDENT))
        for does, module, tensors in member_lines(network, group, shares) if members else ():
            line = f"{does:<8}{module}  {tensors}" if module else f"{does:<8}{tensors}"
            branch.add(Text(wrapped(line, width - (depth + 1) * INDENT, 8)))

    for group in free:
        add_group(tree, group, 1)
    if stuck:
        trunk = tree.add(_row("frozen", units_of(stuck), shares.of(stuck), column - INDENT))
        for reason, kind in (frozen if members else folded(frozen, network)).items():
            line = reason if members else f"{reason}: {', '.join(group.name for group in kind)}"
            branch = trunk.add(Text(wrapped(line, width - 2 * INDENT, INDENT)))
            for group in kind if members else ():
                add_group(branch, group, 3)
    return Group(tree, Text(), _totals(free, folded(frozen, network), shares, width))


def label(group: ChannelGroup) -> str:
    """A group's name, with a mark if only an inexact cut can remove its units."""
    return f"{group.name} ~" if group.inexact_because else group.name


def folded(frozen: dict[str, list[ChannelGroup]], network: nn.Module) -> dict[str, list[ChannelGroup]]:
    """Reasons that differ only in the module that they name are one; it has ``...`` in the module's place."""
    modules = {name for name, _ in network.named_modules()}
    kinds: dict[str, list[str]] = {}
    for reason in frozen:
        blank = re.sub(r"(?<= in | of )[\w.]+", lambda name: "..." if name[0] in modules else name[0], reason)
        kinds.setdefault(blank, []).append(reason)
    return {
        blank if len(reasons) > 1 else reasons[0]: [group for reason in reasons for group in frozen[reason]]
        for blank, reasons in kinds.items()
    }


def wrapped(line: str, width: int, indent: int) -> str:
    """A line cut to the width, the further lines set in."""
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def by_reason(groups: Sequence[ChannelGroup]) -> dict[str, list[ChannelGroup]]:
    """The frozen groups by why they are frozen."""
    frozen: dict[str, list[ChannelGroup]] = {}
    for group in groups:
        if group.frozen_because is not None:
            frozen.setdefault(group.frozen_because, []).append(group)
    return frozen


def units_of(groups: Sequence[ChannelGroup]) -> int:
    """Units of all of these groups."""
    return sum(group.size for group in groups)


def member_lines(network: nn.Module, group: ChannelGroup, shares: Shares) -> Iterator[tuple[str, str, str]]:
    """Where the units of a group live, module by module.

    Returns:
        Per module ``"makes"`` (its rows are where units begin), ``"carries"`` or ``"->"`` (its columns read
        the units), the module, and its tensors.
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    makers: set[str] = set()
    for number, member in enumerate(group.members):
        module, _, name = member.tensor.rpartition(".")
        if member.role == "in":
            does = "->"
        else:
            # The producers stand first among the members; a bias goes with the weight beside it.
            if shares.multiplies(member.tensor) and (not number or not is_depthwise(network, module)):
                makers.add(module)
            does = "makes" if module in makers else "carries"
        lines.setdefault((does, module), {})[name] = _how_many(member.indices)
    order = ("makes", "carries", "->")
    for (does, module), names in sorted(lines.items(), key=lambda item: order.index(item[0][0])):
        notes = set(names.values())
        alike = len(notes) == 1
        text = ", ".join(name if alike else name + note for name, note in names.items())
        yield does, module, text + notes.pop() if alike else text


def is_depthwise(network: nn.Module, name: str) -> bool:
    """Whether a module is a depthwise convolution: its rows carry the units that it receives."""
    module = network.get_submodule(name)
    groups = getattr(module, "groups", 1)
    return isinstance(groups, int) and 1 < groups == getattr(module, "in_channels", None)


def _how_many(indices: tuple[tuple[int, ...], ...]) -> str:
    """What a member says about its units, unless it has each of them once."""
    counts = {len(positions) for positions in indices}
    here = sum(1 for positions in indices if positions)
    each = counts - {0}
    parts = [f"{here} of the units"] if here < len(indices) else []
    if each - {1}:
        low, high = min(each), max(each)
        parts.append(f"x{low}" if low == high else f"x{low} to x{high}")
    return f" ({', '.join(parts)})" if parts else ""


def _row(name: str, units: int, portion: Portion, column: int) -> Text:
    """A name and its numbers; the numbers go to a second line if the name does not fit."""
    percent = (_percent(portion.params_share), _percent(portion.macs_share))
    cells = [f"{units:,}", *percent]
    numbers = "".join(f"{cell:>{size}}" for cell, size in zip(cells, COLUMNS.values(), strict=True))
    if len(name) <= column:
        return Text(f"{name:<{column}}").append(numbers)
    return Text(f"{name}\n{'':<{column}}{numbers}")


def _totals(
    free: list[ChannelGroup], frozen: dict[str, list[ChannelGroup]], shares: Shares, width: int
) -> Text:
    # Shorter than in the tree, which has the reasons in full.
    kinds: dict[str, list[ChannelGroup]] = {}
    for reason, groups in frozen.items():
        kinds.setdefault(reason.partition(" (")[0], []).extend(groups)
    marked = [group for group in free if group.inexact_because]
    rows = [("can be cut", free, "")]
    rows += [("inexactly ~", marked, "  of these: what is left computes something else")] if marked else []
    rows += [*(("frozen", groups, f"  {why}") for why, groups in kinds.items())]
    counts = [
        (_counted(len(groups), "group"), _counted(units_of(groups), "unit"), why) for _, groups, why in rows
    ]
    wide = [max(len(row[part]) for row in counts) for part in (0, 1)]
    lines = [
        wrapped(f"{label:<12}{groups:<{wide[0]}}  {units:<{wide[1]}}{why}".rstrip(), width, 12)
        for (label, *_), (groups, units, why) in zip(rows, counts, strict=True)
    ]
    reach = shares.of(free)
    params, macs = _percent(reach.params_share), _percent(reach.macs_share)
    lines.append(f"in reach    {params} of the params, {macs} of the MACs")
    if shares.unbooked_macs:
        rest = _percent(shares.unbooked_macs / shares.macs)
        lines.append(f"in no share {rest} of the MACs: products that read no stored weight")
    return Text("\n".join(lines))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    """As everywhere; but what is not all is not 100.00 %, and what is something is not 0.00 %."""
    if 0 < share < 0.00005:
        return "< 0.01 %"
    return format_quantity(min(share, 0.9999) if share < 1 else 1.0, "fraction")
