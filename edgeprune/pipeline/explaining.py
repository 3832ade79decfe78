"""Gathering what an explanation of a gate's verdicts needs: the file, a profile, how it was pruned.

Device side: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from edgeprune.artifact import load_artifact
from edgeprune.errors import ArtifactError, EdgepruneError, MeasurementError, RunError
from edgeprune.explanation import Explanation, Known, explain
from edgeprune.files import read_json
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.onnx_nodes import read_nodes
from edgeprune.outcome import Outcome
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.device import differing
from edgeprune.pipeline.folder import RunFolder
from edgeprune.pipeline.stages import variant_of
from edgeprune.runners import runner_for
from edgeprune.target import Target
from edgeprune.verdict import Verdict

ALONE = "Channel groups are known in a run folder alone: `edgeprune gate FOLDER --why` names them."


def explain_run(
    run: RunFolder, targets: Sequence[Target], outcomes: Sequence[Outcome]
) -> dict[str, Explanation | str]:
    """Where the slim network of a run costs what it costs, by operator and by channel group.

    Args:
        run: The folder.
        targets: That it was gated on, the run's own first.
        outcomes: What came out, in their order.

    Returns:
        By the target's short name; a sentence says why there is no explanation.
    """
    found: dict[str, Explanation | str] = {}
    for number, (target, outcome) in enumerate(zip(targets, outcomes, strict=True)):
        context = Context(run, further=(outcome.target, target) if number else None)
        measurement = run.file(context.named("measurement.json"))
        model = run.file(f"slim{variant_of(context)}.onnx")
        if not outcome.error:
            found[outcome.target] = _told(measurement, outcome.verdicts, model, target, run)
    return found


def explain_files(
    paths: Sequence[Path], targets: Sequence[Target], outcomes: Sequence[Outcome]
) -> dict[str, Explanation | str]:
    """The same for measurements in files, whose ONNX files lie beside them; by operator and layer."""
    found: dict[str, Explanation | str] = {}
    for target, outcome in zip(targets, outcomes, strict=True):
        fitting = [path for path in paths if not differing(target, load_measurement(path))]
        own = [path for path in fitting if load_measurement(path).target_sha256 == target.sha256]
        if fitting and not outcome.error:
            path = (own or fitting)[0]
            found[outcome.target] = _told(path, outcome.verdicts, None, target, None)
    return found


def _told(
    path: Path, verdicts: Sequence[Verdict], model: Path | None, target: Target, run: RunFolder | None
) -> Explanation | str:
    """An explanation, or why there is none: whatever is wrong with it, the verdicts stand."""
    try:
        measurement = load_measurement(path)
        known = Known(why_not=ALONE) if run is None else known_of(run)
        beside = path.parent / measurement.artifact.path.name
        return _explain(measurement, verdicts, model or beside, target, known)
    except EdgepruneError as error:
        return str(error)


def _explain(
    measurement: Measurement, verdicts: Sequence[Verdict], model: Path, target: Target, known: Known
) -> Explanation:
    artifact = load_artifact(model)
    if artifact.sha256 != measurement.artifact.sha256:
        raise ArtifactError(
            "could not say where the figures come from",
            where=str(model),
            value="another file than the one that was measured",
            expected=f"sha256 {measurement.artifact.sha256[:12]}…",
            hint="Measure again, or put the measured file beside the measurement.",
        )
    if model.suffix == ".ort":
        raise ArtifactError(
            "could not say where the figures come from",
            where=str(model),
            value="in onnxruntime's own format",
            expected="an .onnx file",
            hint="Measure the file that it was made of.",
        )
    return explain(measurement, verdicts, read_nodes(model), profile_of(model, target), known)


def check_artifacts(measurements: Sequence[Measurement], paths: Sequence[Path]) -> None:
    """Refuse measurements of other files than these: whoever exports again must measure again.

    Args:
        measurements: To be gated.
        paths: ONNX files; none: nothing is checked.

    Raises:
        ArtifactError: A measurement is of none of them.
    """
    known = {load_artifact(path).sha256 for path in paths}
    for one in measurements if paths else ():
        if one.artifact.sha256 not in known:
            raise ArtifactError(
                "could not gate the ONNX file",
                where=f"the measurement on {one.target_name}",
                value=f"of another file (sha256 {one.artifact.sha256[:12]}…)",
                expected=f"of {' or '.join(map(str, paths))}",
                hint="Measure again with `edgeprune bench`, and commit the measurement with the file.",
            )


def profile_of(model: Path, target: Target) -> dict[str, Any] | str:
    """The worker's profile of a file on the target's device, or why there is none."""
    try:
        with runner_for(target.runtime) as runner:
            found = runner.run("profile", [model])
    except MeasurementError as error:
        return str(error)
    if not found["kernels"]:
        return f"{target.runtime.provider} shows no kernels in onnxruntime's profile."
    return found


def known_of(run: RunFolder) -> Known:
    """What a run folder tells of its groups and scores.

    Raises:
        RunError: A file of the run is not there or broken.
    """
    facts = run.facts("plan")
    if "groups" not in facts:
        why = f"No channel groups: none are noted yet. `edgeprune prune --out {run.path}` notes them."
        return Known(folder=str(run.path), why_not=why)
    plan = read_json(run.file("plan.json"), RunError, "plan")
    totals, scores = {}, {}
    try:
        keeps = {group["name"]: group["keep"] for group in plan["groups"]}
        with run.file("scores.npz").open("rb") as file, np.load(file) as stored:
            for name in stored.files:
                values = stored[name]
                totals[name] = float(values.sum())
                scores[name] = values[keeps.get(name, slice(None))].tolist()
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as reason:
        raise RunError(
            "could not read the run's plan and scores",
            where=f"{run.file('plan.json')} or {run.file('scores.npz')}",
            value=f"broken ({type(reason).__name__}: {reason})",
            expected="the files that `edgeprune prune` wrote",
            hint=f"Run `edgeprune prune --out {run.path}` again.",
        ) from None
    step = int(facts.get("options", {}).get("channel_multiple") or 1)
    return Known(facts["groups"], scores, totals, step, str(run.path))
