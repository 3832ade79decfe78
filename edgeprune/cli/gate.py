"""The command that decides on a release."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import (
    AGAINST,
    BENCH,
    FILE,
    JSON,
    OUT,
    SIZES,
    TARGETS,
    WHY,
    given,
    take,
    with_sizes,
)
from edgeprune.cli.stages import folder_of, open_or_make
from edgeprune.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from edgeprune.explanation import Explanation
    from edgeprune.outcome import Outcome
    from edgeprune.pipeline import RunFolder
    from edgeprune.target import Target

ARTIFACT = click.option(
    "--artifact",
    "artifacts",
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Refuse a MEASUREMENT that is not of this ONNX file; repeatable.",
)
OUTPUTS = (
    click.option("--junit", type=FILE, metavar="FILE", help="Write JUnit XML, a suite for each target."),
    click.option("--markdown", type=FILE, metavar="FILE", help="Write Markdown for a pull request."),
    click.option(
        "--json-schema", "schema", is_flag=True, help="Print the JSON schema of --json and of verdicts.json."
    ),
)


@click.command("gate")
@click.argument("measurements", metavar="[MEASUREMENT]...", type=FILE, nargs=-1)
@take(TARGETS, AGAINST, *BENCH, *SIZES, OUT, ARTIFACT, *OUTPUTS, WHY, JSON)
def gate(
    measurements: tuple[Path, ...],
    targets: tuple[str, ...],
    against: str | None,
    out: Path | None,
    artifacts: tuple[Path, ...],
    inputs: tuple[str, ...],
    dims: tuple[str, ...],
    junit: Path | None,
    markdown: Path | None,
    schema: bool,
    why: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Hold a MEASUREMENT against the budgets of a target.

    MEASUREMENT is a file that `edgeprune bench` wrote (default: measurement.json) or a run folder,
    which is measured again if the target runs networks in another way than it was measured. A file
    that was measured with --input or --dim is gated with the same.

    With several targets a run folder is measured for each; of several files each target takes the
    one that was measured as it asks. The exit code is the worst: 1 before 3 before 0.
    """
    from edgeprune.pipeline.explaining import check_artifacts, explain_files, explain_run
    from edgeprune.target import load_target

    if schema:
        from importlib.resources import files

        click.echo(
            files("edgeprune").joinpath("schemas", "verdicts.schema.json").read_text("utf-8"), nl=False
        )
        return
    folder = folder_of(measurements[0] if len(measurements) == 1 else None, out, inputs + dims)
    if folder is not None and artifacts:
        raise UsageError(
            "could not gate", where="--artifact", value=str(artifacts[0]),
            expected="to be given for measurements in files alone: a run folder measures its own files",
        )  # fmt: skip
    if folder is not None:
        settings = given({**options, "target": targets[0] if targets else None, "against": against})
        run = open_or_make(folder, settings, make=False)
        wanted = [load_target(name) for name in targets or (run.settings.target,)]
        outcomes = _gate_folder(run, wanted)
        told = explain_run(run, wanted, outcomes) if why else {}
        tell_outcomes(outcomes, as_json, run, junit=junit, markdown=markdown, why=told)
        return
    from edgeprune.measurement import load_measurement
    from edgeprune.pipeline.gating import gate_files
    from edgeprune.release import load_release

    for path in measurements:
        if path.is_dir():
            raise UsageError(
                "could not gate", where="MEASUREMENT", value=f"the folder {path}",
                expected="files, or one run folder alone",
            )  # fmt: skip
    wanted = [with_sizes(load_target(name), inputs, dims) for name in targets or ("local-cpu",)]
    release = None if against is None else load_release(against)
    paths = measurements or (Path("measurement.json"),)
    found = [load_measurement(path) for path in paths]
    check_artifacts(found, artifacts)
    outcomes = gate_files(found, wanted, release)
    told = explain_files(paths, wanted, outcomes) if why else {}
    tell_outcomes(outcomes, as_json, junit=junit, markdown=markdown, why=told)


def _gate_folder(run: RunFolder, targets: Sequence[Target]) -> tuple[Outcome, ...]:
    """Measure a run where that is missing, and gate it on each target."""
    from edgeprune.cli.display import Display
    from edgeprune.pipeline.gating import gate_run

    with Display() as listener:
        return gate_run(run, targets, listener)


def tell_outcomes(
    outcomes: Sequence[Outcome],
    as_json: bool,
    run: RunFolder | None = None,
    *,
    junit: Path | None = None,
    markdown: Path | None = None,
    why: Mapping[str, Explanation | str] | None = None,
) -> None:
    """Print the verdicts, write what CI reads, and exit with the worst code.

    Raises:
        MeasurementError: There is one target alone, and it could not be measured.
        UsageError: A file cannot be written; people have seen the verdicts by then.
    """
    from edgeprune.outcome import outcomes_to_json, worst
    from edgeprune.report import junit_xml, pull_request_markdown

    alone = outcomes[0].error if len(outcomes) == 1 else ""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        _tell_github(outcomes)
    if not as_json and not alone:
        _print(outcomes, run, why or {})
    _write("--junit", junit, junit_xml(outcomes))
    _write("--markdown", markdown, pull_request_markdown(outcomes))
    if alone:
        raise MeasurementError(alone)
    if as_json:
        found = outcomes_to_json(outcomes)
        if run is not None:
            found["out"] = str(run.path)
            found["stages"] = {name: run.facts(name) for name in run.stages}
        if why:
            found["why"] = {
                name: {"error": one} if isinstance(one, str) else one.to_json() for name, one in why.items()
            }
        click.echo(json.dumps(found))
    click.get_current_context().exit(worst(outcomes))


def _write(option: str, path: Path | None, text: str) -> None:
    """Write a file that was asked for."""
    from edgeprune.files import write_text

    if path is None:
        return
    try:
        write_text(path, text)
    except OSError as reason:
        raise UsageError(
            "could not write the verdicts", where=option, value=f"{path} ({reason.strerror or reason})",
            expected="a file that can be written",
        ) from None  # fmt: skip


def _print(outcomes: Sequence[Outcome], run: RunFolder | None, why: Mapping[str, Explanation | str]) -> None:
    """A table for each target, its reasons, and what it comes to."""
    from rich.console import Console

    from edgeprune.report import reason_lines, verdict_table, why_lines
    from edgeprune.report.content import printable
    from edgeprune.report.terminal import WIDTH

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)  # a narrower table would tear figures and verdicts apart
    for number, outcome in enumerate(outcomes):
        if len(outcomes) > 1:
            heading = f"{outcome.name} ({outcome.target})"
            console.print(f"{chr(10) if number else ''}{printable(heading)}", style="bold")
        if outcome.verdicts:
            console.print(verdict_table(outcome.verdicts))
            if lines := reason_lines(outcome.verdicts):
                console.print("", *lines, sep="\n")
        if outcome.target in why:
            told = why[outcome.target]
            text = [f"Where it sits is not known: {told}"] if isinstance(told, str) else why_lines(told)
            if outcome.verdicts:
                console.print()
            console.print(*text, sep="\n", soft_wrap=not isinstance(told, str))
        if outcome.error:
            console.print(printable(outcome.error, keep="\n"))
        console.print(
            f"{chr(10) if outcome.verdicts or outcome.error else ''}{outcome.sentence}", style="bold"
        )
    if run is not None and run.file("report.html").is_file():
        console.print(f"report: {run.file('report.html')}", soft_wrap=True)


def _tell_github(outcomes: Sequence[Outcome]) -> None:
    """Annotations, on stderr since stdout may be one JSON object, and the summary of the step."""
    from edgeprune.report import github_annotations, pull_request_markdown

    for line in github_annotations(outcomes):
        click.echo(line, err=True)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(pull_request_markdown(outcomes))
        except OSError as reason:  # nobody asked for it here: the verdicts stand
            why = f"GITHUB_STEP_SUMMARY is {summary} ({reason.strerror or reason})"
            click.echo(f"edgeprune: could not write the summary of the step: {why}.", err=True)
