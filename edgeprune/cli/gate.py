"""The command that decides on a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import BY_COMMAND, FILE, JSON, OUT, SIZES, take, with_sizes
from edgeprune.cli.stages import folder_of, go

if TYPE_CHECKING:
    from edgeprune.pipeline import RunFolder
    from edgeprune.verdict import Verdict


@click.command("gate")
@click.argument("measurement", type=FILE, required=False)
@take(*BY_COMMAND["gate"], *SIZES, OUT, JSON)
def gate(
    measurement: Path | None,
    out: Path | None,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Hold a MEASUREMENT against the budgets of a target.

    MEASUREMENT is a file that `edgeprune bench` wrote (default: measurement.json) or a run folder,
    which is measured again if the target runs networks in another way than it was measured. A file
    that was measured with --input or --dim is gated with the same.
    """
    folder = folder_of(measurement, out, inputs + dims)
    if folder is not None:
        go(folder, options, ("bench", "gate", "report"), as_json, make=False)
        return
    from edgeprune.measurement import load_measurement
    from edgeprune.pipeline.device import gate_on
    from edgeprune.target import load_target

    target = with_sizes(load_target(options["target"] or "local-cpu"), inputs, dims)
    tell_verdicts(gate_on(target, load_measurement(measurement or Path("measurement.json"))), as_json)


def tell_verdicts(verdicts: tuple[Verdict, ...], as_json: bool, run: RunFolder | None = None) -> None:
    """Print the verdicts and exit with their code."""
    from rich.console import Console

    from edgeprune.report import verdict_table
    from edgeprune.verdict import exit_code, verdicts_to_json

    code = exit_code(verdicts)
    if as_json:
        found: dict[str, Any] = dict(verdicts_to_json(verdicts))
        if run is not None:
            found["out"] = str(run.path)
            found["stages"] = {name: run.facts(name) for name in run.stages}
        click.echo(json.dumps(found))
    else:
        console = Console(highlight=False, markup=False)
        if verdicts:
            console.print(verdict_table(verdicts))
        else:
            console.print("The target has no budgets: nothing was gated.")
        words = {0: "passed: all budgets are met", 1: "failed: a budget is missed", 3: "cannot tell yet"}
        console.print(f"\n{words[code]}" if verdicts else "", style="bold")
        if run is not None and run.file("report.html").is_file():
            console.print(f"report: {run.file('report.html')}", soft_wrap=True)
    click.get_current_context().exit(code)
