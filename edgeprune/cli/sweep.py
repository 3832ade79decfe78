"""The command that runs many plans of one network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import BY_COMMAND, FILE, JSON, POSITIVE, given, numbers, take
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.pipeline.sweeping import Outcome, SweepFolder


@click.command("sweep")
@click.option("--ratios", metavar="0.3,0.5", help="What each plan may keep, slim / dense.")
@click.option("--schemes", metavar="NAME,NAME", help="Pruning schemes; `edgeprune run --help` lists them.")
@click.option(
    "--ratio-of",
    type=click.Choice(["macs", "params", "latency"]),
    help="What --ratios bound.  [default: macs]",
)
@click.option(
    "--scheme-option",
    "scheme_options",
    metavar="[SCHEME:]KEY=VALUE",
    multiple=True,
    help="Hyper-parameter of one scheme, or of each that has it; repeatable.",
)
@click.option(
    "--jobs", type=POSITIVE, default=1, show_default=True, help="Processes that make networks at a time."
)
@click.option(
    "--job-threads",
    type=POSITIVE,
    help="Threads of each; the same number gives the same bytes.  [default: all, divided by those at work]",
)
@click.option("--engine", type=click.Choice(["dask"]), help="Let a cluster make the networks.")
@click.option("--scheduler", metavar="ADDRESS", help="Its address.  [default: --jobs workers started here]")
@click.option("--out", type=FILE, metavar="FOLDER", required=True, help="Sweep folder.")
@take(*BY_COMMAND["sweep"], JSON)
def sweep(
    ratios: str | None,
    schemes: str | None,
    ratio_of: str | None,
    scheme_options: tuple[str, ...],
    jobs: int,
    job_threads: int | None,
    engine: str | None,
    scheduler: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Run one dense network through many plans, and choose among them.

    A point is a scheme at a ratio: a run folder FOLDER/points/SCHEME-macs-RATIO, as `edgeprune run` would
    make it, so that gate, report and verify work on it. The dense network is made once, each scheme is
    fitted once. Drawn is the Pareto front, chosen the smallest artifact that passes all budgets: fewest
    bytes, then lowest latency (FOLDER/best leads to it).

    All networks are made first, with --jobs or --engine at the same time; then each is measured beside the
    dense one, one by one, on this machine or its device, with nothing of the sweep running beside it. The
    workers of a cluster need edgeprune and a file system that they share, with FOLDER, the data and the
    weights at the same place.

    Killed at any moment, the same command (or `edgeprune sweep --out FOLDER`) goes on; points that are
    finished are not repeated.

    \b
    Exit codes: 0 a point passes all budgets, 1 none does (the closest is named),
    3 none does, but of one it cannot be told; if a point could not be run, the
    code of its error (2 or 3): the others are run all the same.
    """  # noqa: D301 (click's mark for text that is not to be re-wrapped)
    from edgeprune.cli.display import Display
    from edgeprune.pipeline.sweeping import run_sweep

    download = bool(options.pop("download", False))
    swept = {"ratios": ratios, "schemes": schemes, "ratio_of": ratio_of, "scheme_options": scheme_options}
    folder = folder_with(out, given(options), swept)
    with Display() as display:
        outcome = run_sweep(
            folder, display, jobs=jobs, threads=job_threads, engine=engine, scheduler=scheduler,
            download=download,
        )  # fmt: skip
    tell(folder, outcome, as_json)
    click.get_current_context().exit(outcome.exit_code)


def folder_with(out: Path, settings: dict[str, Any], swept: dict[str, Any]) -> SweepFolder:
    """The sweep folder, with what was given laid over what it has."""
    from dataclasses import replace

    from edgeprune.pipeline import Settings
    from edgeprune.pipeline.sweeping import SweepFolder, SweepPlan, check_new, is_sweep_folder, open_sweep

    changes: dict[str, Any] = {}
    if swept["ratios"] is not None:
        changes["ratios"] = numbers("--ratios", swept["ratios"], float, "numbers as 0.3,0.5,0.7")
    if swept["schemes"] is not None:
        changes["schemes"] = tuple(word.strip() for word in swept["schemes"].split(","))
    if swept["ratio_of"] is not None:
        changes["ratio_of"] = swept["ratio_of"]
    if swept["scheme_options"]:
        changes["scheme_options"] = by_scheme(swept["scheme_options"])
    if is_sweep_folder(out):
        found = open_sweep(out)
        plan = replace(found.plan, settings=replace(found.plan.settings, **settings), **changes)
        return SweepFolder(out, plan)
    check_new(out)
    for option, value in (("--model", settings.get("model")), ("--ratios", changes.get("ratios"))):
        if not value:
            raise UsageError(
                "could not start a sweep",
                where=option,
                value="missing",
                expected="a network, e.g. resnet20" if option == "--model" else "numbers, e.g. 0.3,0.5,0.7",
                hint="`edgeprune sweep --help` lists the options.",
            )
    defaults: dict[str, Any] = {"schemes": (Settings(**settings).scheme,)}
    return SweepFolder(out, SweepPlan(Settings(**settings), **{**defaults, **changes}))


def by_scheme(texts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Hyper-parameters by scheme; those for all under the empty name."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        scheme, _, key = name.rpartition(":")
        if not equals or not key or not value:
            raise UsageError(
                "could not read an option",
                where="--scheme-option",
                value=repr(text),
                expected="KEY=VALUE or SCHEME:KEY=VALUE, e.g. sglp-ib:images=200",
            )
        found.setdefault(scheme, {})[key] = value
    return found


def tell(folder: SweepFolder, outcome: Outcome, as_json: bool) -> None:
    """Print what came out."""
    from rich.console import Console

    from edgeprune.pipeline.sweeping import report_of
    from edgeprune.report.content import printable
    from edgeprune.report.sweeps import LEGEND, terminal_table

    if as_json:
        click.echo(json.dumps({"out": str(folder.path), **folder.result}))
        return
    report = report_of(folder.path, folder.plan, outcome)
    console = Console(highlight=False, markup=False)
    console.print(terminal_table(report))
    console.print(f"\n{LEGEND}")
    for name, text in report.failures:
        console.print(printable(f"{name}: {text}"))
    for note in report.notes[1:]:
        console.print(f"note: {note}")
    console.print(f"\n{printable(report.outcome)}", style="bold")
    if outcome.best:
        console.print(f"best: {folder.path / 'best'}", soft_wrap=True)
    console.print(f"report: {folder.path / 'sweep.html'}", soft_wrap=True)
