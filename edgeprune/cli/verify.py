"""The command that re-checks an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli.options import FILE, JSON, take

if TYPE_CHECKING:
    from edgeprune.artifact import Artifact
    from edgeprune.integrity import Check

STYLES = {"passed": "green", "failed": "bold red", "not checked": "yellow"}
HOST_SIDE = 'torch is not here: `pip install "edgeprune[train]"`'


@click.command("verify")
@click.argument("model", type=FILE, metavar="MODEL")
@click.option(
    "--data", metavar="SPEC", help="Measure the accuracy anew on these data, e.g. cifar10:DIR.", default=None
)
@click.option("--image-size", type=click.IntRange(1), help="Height and width for imagefolder.", default=None)
@take(JSON)
def verify(model: Path, data: str | None, image_size: int | None, as_json: bool) -> None:
    """Re-check an exported MODEL against its sidecar and its origins.

    The file's hash; the metadata inside it; the hashes of the weights and the
    plan that lie beside it; its outputs against the network that these rebuild;
    with --data its accuracy (top-5 and that by class stand in the sidecar alone,
    so nothing else finds them changed). What lies elsewhere is not checked, and
    said so.

    Exit codes: 0 no check failed, 1 one did, 2 bad input.
    """
    from edgeprune.integrity import check_files, described, exit_code

    artifact = described(model)
    checks = check_files(artifact)
    checks += host_checks(artifact, checks, data, image_size)
    code = exit_code(checks)
    if as_json:
        rows = [vars(check) for check in checks]
        click.echo(json.dumps({"file": str(model), "checks": rows, "exit_code": code}))
    else:
        tell(checks)
    click.get_current_context().exit(code)


def host_checks(
    artifact: Artifact, checks: list[Check], spec: str | None, image_size: int | None
) -> list[Check]:
    """What takes torch; without it, that it was not done."""
    from edgeprune.integrity import Check

    names = ["parity", "accuracy"] if spec is not None else ["parity"]
    try:
        from edgeprune.verification import check_accuracy, check_parity, data_of
    except ModuleNotFoundError:
        return [Check(name, "not checked", HOST_SIDE) for name in names]
    data = None if spec is None else data_of(artifact, spec, image_size=image_size)
    found = [check_parity(artifact, checks, data)]
    if data is None:
        return [*found, Check("accuracy", "not checked", "give --data")]
    return [*found, check_accuracy(artifact, checks, data)]


def tell(checks: list[Check]) -> None:
    """A line for each check, and one that sums up."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgeprune.report.content import printable

    console = Console(highlight=False, markup=False)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for check in checks:
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(check.name, state, Text(printable(check.text)))
    console.print(table)
    counts = {state: sum(check.state == state for check in checks) for state in STYLES}
    console.print(
        "\n" + ", ".join(f"{count} {state}" for state, count in counts.items() if count), style="bold"
    )
