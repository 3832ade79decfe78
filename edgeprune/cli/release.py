"""The command that records a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import FILE, JSON, SIZES, take, with_sizes
from edgeprune.errors import ReleaseError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeprune.measurement import Measurement
    from edgeprune.target import Target
    from edgeprune.verdict import Verdict


@click.command("release")
@click.argument("places", type=FILE, nargs=-1, metavar="[RUN_FOLDER | MEASUREMENT]...")
@click.option(
    "--target",
    "targets",
    metavar="NAME",
    multiple=True,
    help="A shipped target's name or a .toml file; one for each place, in their order."
    "  [default: the run's, or local-cpu]",
)
@click.option(
    "--out", type=FILE, metavar="FILE", default="release.json", show_default=True, help="The release file."
)
@take(*SIZES, JSON)
def release(
    places: tuple[Path, ...],
    targets: tuple[str, ...],
    out: Path,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    as_json: bool,
) -> None:
    """Record a passing run in a release file, to be committed.

    Each place is a run folder or a file that `edgeprune bench` wrote (default:
    measurement.json). It is gated first, against what the file holds too: if a
    budget fails nothing is written and the exit code is 1, or 3 if one cannot be
    told.

    The file holds hashes, figures with intervals, environment, verdicts and the
    commit of the working folder. What it holds of the same file and target is
    replaced; git keeps what was there before.

    Later, `edgeprune compare release.json measurement.json` shows what moved.
    """
    from edgeprune.files import alone_with
    from edgeprune.pipeline.device import gate_on
    from edgeprune.release import Release, entry_of, load_release, write_release
    from edgeprune.verdict import exit_code

    places = places or (Path("measurement.json"),)
    if targets and len(targets) != len(places):
        raise UsageError(
            "could not match measurements and targets",
            where="--target",
            value=f"given {len(targets)} times",
            expected=f"{len(places)}, one for each run folder or measurement",
        )
    earlier = load_release(out) if out.exists() else Release()
    passed, codes, told, notes = [], [], [], []
    for place, name in zip(places, targets or [None] * len(places), strict=True):
        measurement, target = read_place(place, name)
        target = with_sizes(target, inputs, dims)
        held = earlier if earlier.record_for(measurement) else None
        if held is None:
            target, idle = without_release_budgets(target)
            notes += [
                f"{target.name}: first release, so {', '.join(idle)} cannot be held against one"
            ] * bool(idle)
        verdicts = gate_on(target, measurement, held)
        codes.append(exit_code(verdicts))
        told.append((place, target, verdicts))
        passed.append(entry_of(measurement, verdicts, ignore=out))
    code = 1 if 1 in codes else max(codes)
    if code == 0:
        refuse_twins([entry.place for entry in passed])
        with alone_with(out):  # what was released for another target meanwhile stays
            newest = load_release(out) if out.exists() else Release()
            write_release(out, newest.with_entries(passed))
    tell(told, codes, code, out, notes, as_json)
    click.get_current_context().exit(code)


def read_place(place: Path, target: str | None) -> tuple[Measurement, Target]:
    """The measurement of a file or a run folder, and the target that it is for.

    Raises:
        ReleaseError: A run folder's file is not the one that was measured, or its facts are others.
    """
    from dataclasses import replace

    from edgeprune.artifact import load_artifact
    from edgeprune.measurement import load_measurement
    from edgeprune.target import load_target

    if not place.is_dir():
        return load_measurement(place), load_target(target or "local-cpu")
    from edgeprune.pipeline.folder import open_run

    run = open_run(place)
    measurement = load_measurement(run.file("measurement.json"))
    file = run.file(measurement.artifact.path.name)
    found = replace(load_artifact(file), path=measurement.artifact.path)
    if found != measurement.artifact:
        same = found.sha256 == measurement.artifact.sha256
        raise ReleaseError(
            "could not release the run",
            where=str(run.file("measurement.json") if same else file),
            value="with other facts of the file than its sidecar" if same else f"sha256 {found.sha256[:12]}…",
            expected="what was measured"
            if same
            else f"{measurement.artifact.sha256[:12]}…, which was measured",
            hint=f"Measure it: `edgeprune bench {place}`.",
        )
    return measurement, load_target(target or run.settings.target)


def without_release_budgets(target: Target) -> tuple[Target, list[str]]:
    """A target without its budgets against an earlier release, of which there is none, and their keys."""
    from dataclasses import replace

    from edgeprune.metrics import GATED

    kept = tuple(budget for budget in target.budgets if not GATED[budget.metric].basis)
    return replace(target, budgets=kept), [one.key for one in target.budgets if one not in kept]


def refuse_twins(places: list[tuple[str, str]]) -> None:
    """One file on one target is released once."""
    twins = sorted({place for place in places if places.count(place) > 1})
    if twins:
        raise ReleaseError(
            "could not release",
            where=f"{twins[0][0]} on {twins[0][1]}",
            value="given twice",
            expected="one measurement for each file and target",
        )


def tell(
    told: list[tuple[Path, Target, tuple[Verdict, ...]]],
    codes: Sequence[int],
    code: int,
    out: Path,
    notes: Sequence[str],
    as_json: bool,
) -> None:
    """Print the verdicts and what became of the release file."""
    from rich.console import Console

    from edgeprune.report import reason_lines, verdict_table
    from edgeprune.report.terminal import WIDTH
    from edgeprune.verdict import verdicts_to_json

    if as_json:
        rows: list[dict[str, Any]] = [
            {"place": str(place), "target": target.name, **verdicts_to_json(verdicts)}
            for place, target, verdicts in told
        ]
        released = str(out) if code == 0 else None
        click.echo(json.dumps({"released": released, "gates": rows, "notes": [*notes], "exit_code": code}))
        return
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)  # a narrower table would tear figures apart
    for place, target, verdicts in told:
        if len(told) > 1:
            console.print(f"{place} on {target.name}", soft_wrap=True)
        if verdicts:
            console.print(verdict_table(verdicts))
            console.print(*reason_lines(verdicts), sep="\n")
        else:
            console.print(f"{target.name} has no budgets: nothing was gated.", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    if code == 0:
        console.print(f"released: {out}", soft_wrap=True)
        return
    number = f"{sum(found != 0 for found in codes)} of {len(codes)} gates " if len(codes) > 1 else ""
    why = f"{number}failed" if code == 1 else f"{number}cannot tell yet"
    console.print(f"not released: {why.strip()}; {out} is as it was", soft_wrap=True)
