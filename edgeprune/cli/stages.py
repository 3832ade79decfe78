"""The commands that do the job: run, and each stage alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import BROWSER, BY_COMMAND, FILE, JSON, OUT, given, take

if TYPE_CHECKING:
    from edgeprune.pipeline import RunFolder
    from edgeprune.verdict import Verdict


def open_or_make(out: Path | None, settings: dict[str, Any], *, make: bool) -> RunFolder:
    """The run folder with the given settings laid over its own."""
    from dataclasses import replace

    from edgeprune.errors import UsageError
    from edgeprune.pipeline import Settings
    from edgeprune.pipeline.folder import is_run_folder, new_run, open_run

    if out is not None and is_run_folder(out):
        run = open_run(out)
        run.settings = replace(run.settings, **settings)
        return run
    if not make:
        return open_run(out if out is not None else Path())
    if "model" not in settings:
        raise UsageError(
            "could not start a run",
            where="--model",
            value="missing",
            expected="a network, e.g. resnet20",
            hint="`edgeprune run --help` lists the forms.",
        )
    fresh = Settings(**settings)
    if out is None:
        parts = [fresh.model, fresh.data.partition(":")[0], fresh.scheme]
        out = Path("runs") / "-".join("".join(c if c.isalnum() else "-" for c in part) for part in parts)
        if is_run_folder(out):
            run = open_run(out)
            run.settings = replace(run.settings, **settings)
            return run
    return new_run(out, fresh)


def go(
    out: Path | None, options: dict[str, Any], commands: tuple[str, ...], as_json: bool, *, make: bool
) -> None:
    """Run the stages of some commands, then say what came out; exits with the verdict's code."""
    from edgeprune.cli.display import Display
    from edgeprune.pipeline import run_stages
    from edgeprune.pipeline.context import Context

    download = bool(options.pop("download", False))
    run = open_or_make(out, given(options), make=make)
    with Display() as display:
        run_stages(Context(run, display, download), commands)
    context = Context(run)
    if "gate" in commands:
        from edgeprune.pipeline.device import verdicts_of

        tell_verdicts(verdicts_of(context), as_json, run)
    elif as_json:
        click.echo(json.dumps({"out": str(run.path), "stages": _facts(run, commands), "exit_code": 0}))
    else:
        tell_facts(run, commands)


def _facts(run: RunFolder, commands: tuple[str, ...]) -> dict[str, Any]:
    from edgeprune.pipeline import STAGES

    return {stage.name: run.facts(stage.name) for stage in STAGES if stage.command in commands}


def tell_facts(run: RunFolder, commands: tuple[str, ...]) -> None:
    """What the stages found, a line each."""
    for name, facts in _facts(run, commands).items():
        parts = []
        for key in ("val_accuracy", "test_accuracy"):
            if key in facts:
                parts.append(f"{key.replace('_', ' ')} {facts[key] * 100:.2f} %")
        if name == "plan":
            for what in ("macs", "params"):
                dense, slim = facts[f"dense_{what}"], facts[f"slim_{what}"]
                parts.append(f"{what} {slim:,} of {dense:,} ({slim / dense:.3f})")
        if name == "export":
            for which in ("dense", "slim"):
                parts.append(f"{which}.onnx {facts[which]['size_bytes']:,} bytes")
        if parts:
            click.echo(f"{name}: {', '.join(parts)}")
    click.echo(f"files: {run.path}")


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
        console = Console(highlight=False)
        if verdicts:
            console.print(verdict_table(verdicts))
        else:
            console.print("The target has no budgets: nothing was gated.")
        words = {0: "passed: all budgets are met", 1: "failed: a budget is missed", 3: "cannot tell yet"}
        console.print(f"\n{words[code]}" if verdicts else "", style="bold")
        if run is not None and run.file("report.html").is_file():
            console.print(f"report: {run.file('report.html')}", soft_wrap=True)
    click.get_current_context().exit(code)


def stage_command(name: str, commands: tuple[str, ...], text: str, *, make: bool = False) -> click.Command:
    """A command that runs stages of a run folder."""

    @click.command(name, help=text)
    @take(*BY_COMMAND[name], OUT, JSON)
    def command(out: Path | None, as_json: bool, **options: Any) -> None:
        go(out, options, commands, as_json, make=make)

    return command


RUN_HELP = """The whole job: from a network to a gated ONNX file.

Each stage is skipped when nothing that it reads has changed, so the same command goes on where it was
interrupted. What is not given is taken from the run folder, if it holds a run."""

run = stage_command(
    "run", ("train", "prune", "finetune", "export", "bench", "gate", "report"), RUN_HELP, make=True
)
train = stage_command(
    "train", ("train",), "Make the dense network: load its weights, train it, or both.", make=True
)
prune = stage_command("prune", ("prune",), "Score the channels, choose what goes, and cut it out.")
finetune = stage_command("finetune", ("finetune",), "Train the slim network on; the best epoch stays.")
export = stage_command(
    "export", ("export",), "Write the dense and the slim ONNX file, checked against torch."
)


def _folder(place: Path | None, out: Path | None) -> Path | None:
    """The run folder that is meant, if one is."""
    from edgeprune.pipeline.folder import is_run_folder

    if out is not None:
        return out
    return place if place is not None and (place.is_dir() or is_run_folder(place)) else None


def _check_serving(serving: dict[str, Any], chosen: str | None, folder: Path | None) -> None:
    """A run folder knows its target, and is measured as that says."""
    if folder is not None and (serving or chosen):
        from edgeprune.errors import UsageError

        raise UsageError(
            "could not measure",
            where="--runner" if chosen else _option_of(serving),
            value="given with a run folder",
            expected="with an ONNX file",
            hint="A run folder is measured as its target says, e.g. --target phone-browser.",
        )


def _option_of(serving: dict[str, Any]) -> str:
    return f"--{next(iter(serving)).removesuffix('_s')}"


@click.command("bench")
@click.argument("model", type=FILE, required=False)
@click.option("--baseline", type=FILE, metavar="FILE", help="The dense ONNX file.")
@click.option(
    "--save",
    type=FILE,
    default=Path("measurement.json"),
    show_default=True,
    metavar="FILE",
    help="Where the measurement of an ONNX file goes.",
)
@take(*BY_COMMAND["bench"], *BROWSER, OUT, JSON)
def bench(
    model: Path | None, baseline: Path | None, save: Path, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Measure latency, memory and placement of MODEL.

    MODEL is an ONNX file, measured beside --baseline in the same processes, or a run folder.
    """
    serving = {key: options.pop(key) for key in ("host", "port", "web", "wait_s")}
    serving = {key: value for key, value in serving.items() if value is not None}
    chosen = options.pop("runner")
    folder = _folder(model, out)
    _check_serving(serving, chosen, folder)
    if folder is not None:
        go(folder, options, ("bench",), as_json, make=False)
        return
    from dataclasses import replace

    from edgeprune.cli.display import Display
    from edgeprune.errors import UsageError
    from edgeprune.files import write_json
    from edgeprune.measurement import bench as measure
    from edgeprune.runners import follow, open_runner
    from edgeprune.target import load_target

    if model is None:
        raise UsageError(
            "could not measure", where="MODEL", value="missing", expected="an .onnx file or a run folder"
        )
    target = load_target(options["target"] or ("phone-browser" if chosen == "browser" else "local-cpu"))
    if chosen is not None and chosen != target.runtime.runner:
        target = replace(target, runtime=replace(target.runtime, runner=chosen, host=None))
    if serving and target.runtime.runner != "browser":
        raise UsageError(
            "could not measure",
            where=_option_of(serving),
            value="given",
            expected=f"for the runner browser alone, and the target's is {target.runtime.runner}",
            hint="Add --runner browser.",
        )
    with Display() as display, open_runner(target.runtime, display.say, **serving) as runner:
        measurement = measure(
            model, target, baseline=baseline, processes=options["processes"] or 10,
            on_progress=follow(runner, display.step), runner=runner,
        )  # fmt: skip
    write_json(save, measurement.to_json())
    if as_json:
        click.echo(json.dumps({**measurement.to_json(), "saved": str(save), "exit_code": 0}))
        return
    tell_measurement(measurement)
    click.echo(f"measurement: {save}")


def tell_measurement(measurement: Any) -> None:
    """The headline, the table and the notes of a measurement."""
    from rich.console import Console

    from edgeprune.report import comparison_table, make_report

    report = make_report(measurement, (), command="")
    console = Console(highlight=False)
    console.print(report.headline)
    console.print(comparison_table(report))
    for note in report.notes:
        console.print(f"note: {note}")


@click.command("gate")
@click.argument("measurement", type=FILE, required=False)
@take(*BY_COMMAND["gate"], OUT, JSON)
def gate(measurement: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Hold a MEASUREMENT against the budgets of a target.

    MEASUREMENT is a file that `edgeprune bench` wrote (default: measurement.json) or a run folder,
    which is measured again if the target runs networks in another way than it was measured.
    """
    folder = _folder(measurement, out)
    if folder is not None:
        go(folder, options, ("bench", "gate", "report"), as_json, make=False)
        return
    from edgeprune.measurement import load_measurement
    from edgeprune.pipeline.device import gate_on
    from edgeprune.target import load_target

    target = load_target(options["target"] or "local-cpu")
    tell_verdicts(gate_on(target, load_measurement(measurement or Path("measurement.json"))), as_json)


@click.command("report")
@click.argument("folder", type=FILE, required=False)
@take(*BY_COMMAND["report"], OUT, JSON)
def report(folder: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Write report.md and report.html of a run folder."""
    go(out or folder, options, ("report",), as_json, make=False)
