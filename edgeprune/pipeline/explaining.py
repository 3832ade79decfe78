"""Gathering what an explanation of a gate's verdicts needs: the file, a profile, how it was pruned.

Device side: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.artifact import load_artifact
from edgeprune.errors import ArtifactError, MeasurementError, RunError
from edgeprune.explanation import Explanation, Known, explain
from edgeprune.files import read_json
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.onnx_nodes import read_nodes
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.folder import RunFolder
from edgeprune.pipeline.stages import variant_of
from edgeprune.runners import runner_for
from edgeprune.target import Target
from edgeprune.verdict import Verdict

ALONE = "Channel groups are known in a run folder alone: `edgeprune gate FOLDER --why` names them."


def explain_run(context: Context, verdicts: Sequence[Verdict]) -> Explanation:
    """Where the slim network of a run costs what it costs, by operator and by channel group.

    Raises:
        ArtifactError: The slim file is not the one that was measured.
        RunError: A file of the run is not there or broken.
    """
    run = context.run
    measurement = load_measurement(run.file("measurement.json"))
    model = run.file(f"slim{variant_of(context)}.onnx")
    return _explain(measurement, verdicts, model, context.target, known_of(run))


def explain_file(path: Path, target: Target, verdicts: Sequence[Verdict]) -> Explanation:
    """The same for a measurement in a file, whose ONNX file lies beside it; by operator and layer.

    Raises:
        ArtifactError: The ONNX file is not there, or is not the one that was measured.
    """
    measurement = load_measurement(path)
    model = path.parent / measurement.artifact.path.name
    return _explain(measurement, verdicts, model, target, Known(why_not=ALONE))


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
    keeps = {group["name"]: group["keep"] for group in plan["groups"]}
    totals, scores = {}, {}
    try:
        with np.load(run.file("scores.npz")) as stored:
            for name in stored.files:
                values = stored[name]
                totals[name] = float(values.sum())
                scores[name] = values[keeps.get(name, slice(None))].tolist()
    except (OSError, ValueError, IndexError) as reason:
        raise RunError(
            "could not read the run's scores",
            where=str(run.file("scores.npz")),
            value=f"broken ({reason})",
            expected="the file that `edgeprune prune` wrote",
            hint=f"Run `edgeprune prune --out {run.path}` again.",
        ) from None
    step = int(facts.get("options", {}).get("channel_multiple") or 1)
    return Known(facts["groups"], scores, totals, step, str(run.path))
