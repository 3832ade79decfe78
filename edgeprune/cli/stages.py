"""The commands that do the job: run, and each stage alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import BY_COMMAND, FILE, JSON, OUT, given, take
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from edgeprune.pipeline import RunFolder


def open_or_make(out: Path | None, settings: dict[str, Any], *, make: bool) -> RunFolder:
    """The run folder with the given settings laid over its own."""
    from dataclasses import replace

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
    from contextlib import nullcontext

    from edgeprune.cli.display import Display
    from edgeprune.launch import world
    from edgeprune.pipeline import Silent, run_stages
    from edgeprune.pipeline.context import Context
    from edgeprune.pipeline.sharing import folder_of_rank

    here = world()
    download = bool(options.pop("download", False))
    found = here.from_first(lambda: open_or_make(out, given(options), make=make))
    with folder_of_rank(found) as run, Display() if here.first else nullcontext(Silent()) as listener:
        run_stages(Context(run, listener, download), commands)
    if not here.first:
        return
    context = Context(run)
    if "gate" in commands:
        from edgeprune.cli.gate import tell_outcomes
        from edgeprune.pipeline.device import outcome_of

        tell_outcomes([outcome_of(context)], as_json, run)
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
            if "latency" in facts:
                found = facts["latency"]
                interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
                parts.append(f"latency {found['latency_ratio']:.3f} {interval} of dense")
        if name == "export":
            for which in ("dense", "slim"):
                parts.append(f"{which}.onnx {facts[which]['size_bytes']:,} bytes")
        if name == "convert" and facts:
            for which in ("dense", "slim"):
                size, accuracy = facts[which]["size_bytes"], facts[which]["accuracy"].get("test")
                tested = "" if accuracy is None else f" (test {accuracy * 100:.2f} %)"
                parts.append(f"{which}.{facts['precision']}.onnx {size:,} bytes{tested}")
        if parts:
            click.echo(f"{name}: {', '.join(parts)}")
    click.echo(f"files: {run.path}")


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
    "export",
    ("export",),
    "Write the dense and the slim ONNX file, checked against torch, and both in the precision of the target.",
)


def folder_of(place: Path | None, out: Path | None, sizes: tuple[str, ...]) -> Path | None:
    """The run folder that is meant, if one is; sizes of inputs are for single files."""
    from edgeprune.pipeline.folder import is_run_folder

    folder = out
    if out is None and place is not None and (place.is_dir() or is_run_folder(place)):
        folder = place
    if folder is not None and sizes:
        raise UsageError(
            "could not measure a run folder",
            where="--input or --dim",
            value=", ".join(sizes),
            expected="an .onnx file or a measurement with it",
            hint="For a run, write the sizes under [runtime] in the target file.",
        )
    return folder


@click.command("report")
@click.argument("folder", type=FILE, required=False)
@take(*BY_COMMAND["report"], OUT, JSON)
def report(folder: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Write report.md, report.html and model_card.md of a run folder."""
    go(out or folder, options, ("report",), as_json, make=False)
