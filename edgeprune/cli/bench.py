"""The command that measures on a device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from edgeprune.cli.options import BROWSER, BY_COMMAND, FILE, JSON, OUT, SIZES, numbers, take, with_sizes
from edgeprune.cli.stages import folder_of, go
from edgeprune.errors import UsageError


@click.command("bench")
@click.argument("model", type=FILE, required=False)
@click.option("--baseline", type=FILE, metavar="FILE", help="The dense ONNX file.")
@click.option(
    "--save",
    type=FILE,
    metavar="FILE",
    help="Where the figures of an ONNX file go.  [default: measurement.json; sweep.json]",
)
@click.option("--sweep-batch", metavar="1,2,4", help="Measure at each of these batch sizes.")
@click.option("--sweep-threads", metavar="1,2", help="Measure with each of these numbers of threads.")
@click.option("--widths", is_flag=True, help="Measure widths instead: `edgeprune widths` as it is.")
@take(*BY_COMMAND["bench"], *SIZES, *BROWSER, OUT, JSON)
def bench(
    model: Path | None,
    baseline: Path | None,
    save: Path | None,
    sweep_batch: str | None,
    sweep_threads: str | None,
    widths: bool,
    out: Path | None,
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure latency, memory and placement of MODEL.

    MODEL is an ONNX file, measured beside --baseline in the same processes, or a run folder. It ends as soon
    as no narrower interval would be claimed (3 % to either side, after at least 20 processes).
    """
    if widths:
        given = [model, baseline, save, sweep_batch, sweep_threads, out, *inputs, *dims]
        forward_to_widths(given, as_json, options)
        return
    batches, threads = (
        numbers(option, text, int, "whole numbers as 1,2,4")
        for option, text in (("--sweep-batch", sweep_batch), ("--sweep-threads", sweep_threads))
    )
    serving = {key: options.pop(key) for key in ("host", "port", "web", "wait_s")}
    serving = {key: value for key, value in serving.items() if value is not None}
    chosen = options.pop("runner")
    folder = folder_of(model, out, inputs + dims)
    check_serving(serving, chosen, folder)
    if folder is not None and (batches or threads):
        raise UsageError(
            "could not sweep",
            where="MODEL",
            value=f"the run folder {folder}",
            expected="an ONNX file",
            hint=f"Name its files: {folder / 'slim.onnx'} --baseline {folder / 'dense.onnx'}.",
        )
    if folder is not None:
        go(folder, options, ("bench",), as_json, make=False)
        return
    from edgeprune.benchmark import PROCESSES
    from edgeprune.benchmark import bench as measure
    from edgeprune.cli.display import Display
    from edgeprune.files import write_json
    from edgeprune.runners import follow, open_runner
    from edgeprune.sweep import measure_sweep
    from edgeprune.target import load_target

    if model is None:
        raise UsageError(
            "could not measure", where="MODEL", value="missing", expected="an .onnx file or a run folder"
        )
    named = options["target"] or ("phone-browser" if chosen == "browser" else "local-cpu")
    target = with_sizes(load_target(named), inputs, dims)
    if chosen is not None and chosen != target.runtime.runner:
        target = replace(target, runtime=replace(target.runtime, runner=chosen, host=None))
    if serving and target.runtime.runner != "browser":
        raise UsageError(
            "could not measure",
            where=option_of(serving),
            value="given",
            expected=f"for the runner browser alone, and the target's is {target.runtime.runner}",
            hint="Add --runner browser.",
        )
    processes, budget_seconds = options["processes"] or PROCESSES, options["budget_seconds"]
    if batches or threads:
        if options["instructions"] or options["latency"] is False:
            raise UsageError(
                "could not sweep",
                where="--instructions or --no-latency",
                value="given",
                expected="a sweep of latency and memory",
                hint="Count instructions in a measurement of its own.",
            )
        with Display() as display:
            points = measure_sweep(
                model, target, baseline=baseline, batches=batches, threads=threads, processes=processes,
                budget_seconds=budget_seconds, on_progress=display.step,
            )  # fmt: skip
        tell_sweep(points, save or Path("sweep.json"), as_json)
        return
    with Display() as display, open_runner(target.runtime, display.say, **serving) as runner:
        measurement = measure(
            model, target, baseline=baseline, processes=processes, budget_seconds=budget_seconds,
            instructions=bool(options["instructions"]), latency=options["latency"] is not False,
            on_progress=follow(runner, display.step), runner=runner,
        )  # fmt: skip
    save = save or Path("measurement.json")
    write_json(save, measurement.to_json())
    if as_json:
        click.echo(json.dumps({**measurement.to_json(), "saved": str(save), "exit_code": 0}))
        return
    tell_measurement(measurement)
    click.echo(f"measurement: {save}")


def check_serving(serving: dict[str, Any], chosen: str | None, folder: Path | None) -> None:
    """A run folder knows its target, and is measured as that says."""
    if folder is not None and (serving or chosen):
        raise UsageError(
            "could not measure",
            where="--runner" if chosen else option_of(serving),
            value="given with a run folder",
            expected="with an ONNX file",
            hint="A run folder is measured as its target says, e.g. --target phone-browser.",
        )


def option_of(serving: dict[str, Any]) -> str:
    """The first of the options for the browser that was given."""
    return f"--{next(iter(serving)).removesuffix('_s')}"


def tell_sweep(points: Any, save: Path, as_json: bool) -> None:
    """Save a sweep; print its table with the notes of its places, or all of it as JSON."""
    from rich.console import Console
    from rich.table import Table

    from edgeprune.files import write_json
    from edgeprune.sweep import sweep_rows, sweep_to_json

    content = sweep_to_json(points)
    write_json(save, content)
    if as_json:
        click.echo(json.dumps({**content, "saved": str(save), "exit_code": 0}))
        return
    header, rows = sweep_rows(points)
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    for point in points:
        for note in point.measurement.notes:
            console.print(f"note: batch {point.batch}, threads {point.threads}: {note}")
    click.echo(f"sweep: {save}")


def forward_to_widths(given: list[Any], as_json: bool, options: dict[str, Any]) -> None:
    """Do what `edgeprune widths` does with its defaults."""
    from edgeprune.cli.widths import widths

    chosen = {name: options.pop(name) for name in ("target", "processes")}
    odd = [str(value) for value in (*given, *options.values()) if value is not None]
    if odd:
        raise UsageError(
            "could not measure widths",
            where="a file or option",
            value=", ".join(odd),
            expected="none beside --widths but --target and --processes",
        )
    click.get_current_context().invoke(widths, as_json=as_json, **chosen)


def tell_measurement(measurement: Any) -> None:
    """The headline, the table and the notes of a measurement."""
    from rich.console import Console

    from edgeprune.report import comparison_table, make_report
    from edgeprune.report.content import printable

    report = make_report(measurement, (), command="")
    console = Console(highlight=False, markup=False)  # names of files and nodes may hold brackets
    console.print(printable(report.headline))
    console.print(comparison_table(report))
    for note in report.notes:
        console.print(printable(f"note: {note}"))
