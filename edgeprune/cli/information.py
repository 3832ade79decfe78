"""The commands that only tell: groups, targets."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from edgeprune.cli.options import CHANNEL_SELECT, INEXACT, JSON, MODEL, take


@click.command("groups")
@take(*MODEL, CHANNEL_SELECT, INEXACT, JSON)
@click.option(
    "--input",
    "shape",
    metavar="N,C,H,W",
    help="Input shape.  [default: 1,3,32,32; library networks 1,3,224,224]",
)
@click.option("--members", is_flag=True, help="Show the tensors of each group too.")
def groups(
    model: str | None,
    weights: str | None,
    num_classes: int | None,
    channel_select: bool | None,
    inexact: bool | None,
    shape: str | None,
    members: bool,
    as_json: bool,
) -> None:
    """Show which channels of a network go together, and which can not go.

    Per group: its units (what is cut as one) and what hangs on it, that is: what
    would go if all of its units went.

    \b
    params  entries of parameters, over all params
    MACs    for each weight, the MACs of the products that read it times the
            fraction of its entries that would go, over all MACs at batch 1

    An entry that goes by its row and by its column counts once. Most weights lie
    between two groups and count in both, so the shares of all groups add up to
    more than 1; "in reach" counts them once for all groups that can be cut. A
    cut reaches less: a unit of each group stays.

    With --members: "makes" are the layers where units begin, "carries" is what
    has an entry for each unit (norms, biases, depthwise convolutions), "->" reads
    the units. "(x2)" stands where each unit has two rows or columns.
    """  # noqa: D301 (click's mark for text that is not to be re-wrapped)
    from rich.console import Console

    from edgeprune.cli.tree import by_reason, group_tree, units_of
    from edgeprune.errors import UsageError
    from edgeprune.groups import find_groups
    from edgeprune.models import load_model
    from edgeprune.shares import Shares

    if model is None:
        raise UsageError("could not show groups", where="--model", value="missing", expected="a network")
    import torch

    network = load_model(model, num_classes=num_classes, weights=weights)
    sizes = _shape(shape or ("1,3,224,224" if ":" in model else "1,3,32,32"))
    example = torch.zeros(sizes)
    found = find_groups(network, example, exact=not inexact, channel_select=bool(channel_select))
    shares = Shares(network, example)
    if not as_json:
        console = Console(highlight=False)
        title = f"{model}  {shares.params:,} params, {shares.macs:,} MACs"
        width = console.width
        console.print(group_tree(title, network, found, shares, members=members, width=width))
        return
    free = [group for group in found if group.frozen_because is None]
    frozen = {
        reason: {"groups": [group.name for group in kind], "units": units_of(kind)}
        for reason, kind in by_reason(found).items()
    }
    totals = {
        "params": shares.params,
        "macs": shares.macs,
        "macs_without_weight": shares.unbooked_macs,
        "free_groups": len(free),
        "free_units": units_of(free),
        "frozen_groups": len(found) - len(free),
        "frozen_units": units_of(found) - units_of(free),
        "frozen_because": frozen,
        "in_reach": asdict(shares.of(free)),
    }
    listed = [{**_as_json(group), **asdict(shares.of([group]))} for group in found]
    click.echo(json.dumps({"groups": listed, "totals": totals, "exit_code": 0}))


def _shape(text: str) -> tuple[int, ...]:
    from edgeprune.errors import UsageError

    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) < 2 or min(sizes) < 1:
        raise UsageError(
            "could not read the shape", where="--input", value=text, expected="sizes as 1,3,224,224"
        )
    return sizes


def _as_json(group: Any) -> dict[str, Any]:
    return {
        "name": group.name,
        "size": group.size,
        "frozen_because": group.frozen_because,
        "inexact_because": group.inexact_because,
        "members": [
            {"tensor": member.tensor, "axis": member.axis, "role": member.role, "indices": member.indices}
            for member in group.members
        ],
    }


@click.command("targets")
@take(JSON)
def targets(as_json: bool) -> None:
    """List the targets that ship with edgeprune."""
    from rich.console import Console
    from rich.table import Table

    from edgeprune.target import list_targets, load_target

    found = {name: load_target(path) for name, path in list_targets().items()}
    if as_json:
        listed = {
            name: {
                "name": target.name,
                "provider": target.runtime.provider,
                "runner": target.runtime.runner,
                "budgets": {budget.key: budget.text for budget in target.budgets},
            }
            for name, target in found.items()
        }
        click.echo(json.dumps({"targets": listed, "exit_code": 0}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("target", "device", "runner", "provider", "budgets"):
        table.add_column(name, overflow="fold")
    for name, target in found.items():
        provider = target.runtime.provider.removesuffix("ExecutionProvider")
        table.add_row(name, target.name, target.runtime.runner, provider, str(len(target.budgets)))
    Console(highlight=False).print(table)
