"""The stages that need no torch: bench, gate, report."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from edgeprune.artifact import load_artifact
from edgeprune.benchmark import bench
from edgeprune.errors import ArtifactError, MeasurementError, RunError
from edgeprune.files import read_json, sha256_json, write_json, write_text
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.metrics import GATED
from edgeprune.outcome import Outcome, outcomes_to_json
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.stages import variant_of
from edgeprune.release import Release
from edgeprune.report import (
    class_structure,
    junit_xml,
    make_report,
    report_html,
    report_markdown,
    training_curves,
)
from edgeprune.runners import follow, open_runner
from edgeprune.target import Target
from edgeprune.verdict import Verdict, gate, verdicts_from_json

FACTS = {
    "certificate": "largest duality gap of a solution, as a share of the objective at 0",
    "tolerance": "duality gap asked for",
}
"""Facts of schemes whose names do not say enough."""


def identity_of_machine(context: Context) -> Any:
    """How and where the target runs; whether a budget needs, or would like, counted instructions."""
    counting = [one for one in context.target.budgets if one.metric.startswith("instructions")]
    return {
        "runtime": runtime_hash(context.target),
        "machine": platform.node(),
        "onnxruntime": version("onnxruntime"),
        "counts": sorted({budget.optional for budget in counting}),
    }


def identity_of_target(context: Context) -> Any:
    """The whole target file, and the earlier release."""
    release = context.release
    return [context.target.sha256, None if release is None else sha256_json(release.to_json())]


def identity_of_report(context: Context) -> Any:
    """The target, the facts of the stages before, and the verdicts of further targets."""
    run = context.run
    stages = ("train", "score", "plan", "slim", "refit", "finetune", "export", "convert")
    others = {name: [asdict(one) for one in found] for name, found in verdicts_of_others(context).items()}
    return [context.target.sha256, run.settings.to_json(), {name: run.facts(name) for name in stages}, others]


def runtime_hash(target: Target) -> str:
    """Hash of how a target runs a network."""
    return sha256_json(asdict(target.runtime))


def bench_both(context: Context) -> dict[str, Any]:
    """Measure the slim network beside the dense one, both in the target's precision."""
    run, variant = context.run, variant_of(context)
    with open_runner(context.target.runtime, say=context.listener.say) as runner:
        measurement = bench(
            load_artifact(run.file(f"slim{variant}.onnx")),
            context.target,
            baseline=load_artifact(run.file(f"dense{variant}.onnx")),
            processes=run.settings.processes,
            budget_seconds=run.settings.budget_seconds,
            instructions=run.settings.instructions,
            latency=run.settings.latency,
            on_progress=follow(runner, context.listener.step),
            runner=runner,
        )
    write_json(run.file(context.named("measurement.json")), measurement.to_json())
    return {"runtime": runtime_hash(context.target)}


def differing(target: Target, measurement: Measurement) -> list[str]:
    """What of its ``[runtime]`` a target wants to have otherwise than a measurement was made."""
    wanted = asdict(target.runtime)
    # A measurement in JSON holds lists where a target holds tuples.
    return sorted(
        key for key in wanted if sha256_json(wanted[key]) != sha256_json(measurement.runtime.get(key))
    )


def gate_on(target: Target, measurement: Measurement, release: Release | None = None) -> tuple[Verdict, ...]:
    """Hold a measurement against the budgets of a target.

    Raises:
        MeasurementError: It was measured in another way than the target asks for.
    """
    wanted, other = asdict(target.runtime), differing(target, measurement)
    if other:
        raise MeasurementError(
            "could not hold the measurement against the target",
            where=", ".join(f"runtime.{key}" for key in other),
            value=", ".join(repr(measurement.runtime.get(key)) for key in other),
            expected=f"{', '.join(repr(wanted[key]) for key in other)}, as {target.path.name} asks",
            hint="Give gate the --input and --dim that bench was given, or measure again."
            if {*other} <= {"input", "inputs", "dims"}
            else f"Measure with it: `edgeprune bench --target {target.option} …`.",
        )
    return gate(target.budgets, measurement, release=release)


def gate_measurement(context: Context) -> dict[str, Any]:
    """Judge every budget of the target."""
    run, target = context.run, context.target
    measurement = load_measurement(run.file(context.named("measurement.json")))
    verdicts = gate_on(target, measurement, context.release)
    outcome = Outcome(label_of(context), target.name, verdicts, measurement.artifact.path.name)
    write_json(run.file(context.named("verdicts.json")), outcomes_to_json([outcome]))
    write_text(run.file(context.named("junit.xml")), junit_xml([outcome]))
    return {}


def label_of(context: Context) -> str:
    """Short name of the target."""
    return context.further[0] if context.further else short_name(context.target)


def short_name(target: Target) -> str:
    """Name of a target's file, for the names of other files."""
    return "".join(char if char.isalnum() or char in "-_" else "-" for char in target.path.stem)


def verdicts_of(context: Context) -> tuple[Verdict, ...]:
    """The verdicts on the run's own target."""
    return verdicts_from_json(read_json(context.run.file("verdicts.json"), RunError, "verdicts"))


def check_verdicts(context: Context) -> None:
    """See that the verdicts of the run's own target are what the gate says now, before a report tells them.

    Budgets against an earlier release are left out: releasing the run itself changes that file.

    Raises:
        RunError: The network was measured, or the target or a file was changed, since.
    """
    run, target = context.run, context.target
    own = tuple(budget for budget in target.budgets if not GATED[budget.metric].basis)
    now = gate_on(replace(target, budgets=own), load_measurement(run.file("measurement.json")))
    if now != tuple(verdict for verdict in verdicts_of(context) if not GATED[verdict.metric].basis):
        raise RunError(
            "could not report the verdicts",
            where=str(run.file("verdicts.json")),
            value=f"of another measurement than measurement.json, or of another target than {target.name}",
            expected="what the gate says now",
            hint=f"Run `edgeprune gate {run.path}`.",
        )


def verdicts_of_others(context: Context) -> dict[str, tuple[Verdict, ...]]:
    """The verdicts of further targets, by their names; of a network that has been made anew since: none."""
    run = context.run
    found: dict[str, tuple[Verdict, ...]] = {}
    for stage, entry in sorted(run.stages.items()):
        label = stage.removeprefix("gate.")
        if label in (stage, label_of(context)):
            continue
        if not run.is_current(stage, entry["inputs"], tuple(entry["outputs"])):
            continue
        measured = load_measurement(run.file(f"measurement.{label}.json")).artifact
        file = run.file(measured.path.name)
        if file.is_file() and load_artifact(file).sha256 == measured.sha256:
            content = read_json(run.file(f"verdicts.{label}.json"), RunError, "verdicts")
            name = content["targets"][0]["name"]
            found[f"{name} ({label})" if name in (context.target.name, *found) else name] = (
                verdicts_from_json(content)
            )
    return found


def outcome_of(context: Context) -> Outcome:
    """What the gate has found for the target."""
    content = read_json(context.run.file(context.named("verdicts.json")), RunError, "verdicts")
    verdicts = verdicts_from_json(content)
    network = content["targets"][0]["network"] if content.get("targets") else ""
    return Outcome(label_of(context), context.target.name, verdicts, network)


def story_of(context: Context) -> dict[str, object]:
    """What happened on the way from the dense to the slim network, for the report."""
    run = context.run
    train, score, plan, slim = (run.facts(name) for name in ("train", "score", "plan", "slim"))
    refit, finetune = run.facts("refit"), run.facts("finetune")
    story: dict[str, object] = {"network": run.settings.model, "data": run.settings.data}
    story["recipe of the trainings"] = run.settings.recipe
    if score:
        options = ", ".join(f"{key} {value}" for key, value in score["options"].items())
        story["scheme"] = f"{score['scheme']} ({options})"
        story["removable for free"] = f"{score['zero_units']} of {score['scored_units']} scored units"
        for key, value in score["scheme_facts"].items():
            if isinstance(value, (int, float, str)):
                story[f"{score['scheme']}: {FACTS.get(key, key.replace('_', ' '))}"] = value
        if short := score["scheme_facts"].get("stopped_short"):
            story[f"{score['scheme']}: not solved so far"] = ", ".join(
                f"{layer} ({gap:.1e})" for layer, gap in short.items()
            )
        if score["frozen"]:
            story["frozen groups"] = "; ".join(
                f"{name}: {reason}" for name, reason in score["frozen"].items()
            )
    if plan:
        story["threshold on the scores"] = f"{plan['threshold']:.6g}"
        story["widths are multiples of"] = plan["options"]["channel_multiple"]
    for text, facts in (
        ("dense", train),
        ("after the scheme", score),
        ("straight after slimming", slim),
        ("after refitting", refit),
        ("after fine-tuning", finetune),
    ):
        if facts:
            story[f"accuracy {text} (torch)"] = (
                f"validation {facts['val_accuracy'] * 100:.2f} %, test {facts['test_accuracy'] * 100:.2f} %"
            )
    converted = run.facts("convert")
    if converted and converted["precision"] == context.target.runtime.precision:
        story |= precision_story(run.facts("export"), converted)
    if refit:
        story["refit"] = refit_story(refit["refit"])
    if slim:
        story["test images that slimming classifies as before"] = f"{slim['same_predictions'] * 100:.2f} %"
        if "inexact" in slim:
            story["inexact"] = slim["inexact"]
    return story


def mobile_story(context: Context) -> dict[str, object]:
    """What phones would take of the slim network, estimated; the reason why not where onnx is not."""
    from edgeprune.mobile import LABEL, estimate_partitions

    try:
        estimates = estimate_partitions(context.run.file("slim.onnx"))
    except (ModuleNotFoundError, ArtifactError) as reason:
        return {f"NNAPI and CoreML, {LABEL}": f"not estimated: {str(reason).rstrip('.')}"}
    return {f"{one.provider}, {LABEL}": one.text for one in estimates}


def precision_story(exported: dict[str, Any], converted: dict[str, Any]) -> dict[str, object]:
    """Both networks' files in both precisions."""
    story: dict[str, object] = {}
    for name in ("dense", "slim"):
        before, after = exported[name], converted[name]
        for precision, facts in (("fp32", before), (converted["precision"], after)):
            tests = (f"{part} {facts['accuracy'][part] * 100:.2f} %" for part in facts["accuracy"])
            error = f"parity error {facts['parity_error']:.2g}"
            story[f"{name} in {precision} (onnxruntime)"] = ", ".join(
                [*tests, f"{facts['size_bytes']:,} bytes", error]
            )
    return story


def refit_story(done: dict[str, Any]) -> str:
    """One line on a refit."""
    errors, layers = done["errors"], done["layers"]
    changed = sum(layer["ridge"] is not None for layer in layers)
    if done["kept"] == "nothing":
        what = "the weights stay as they were"
    else:
        what = f"new {done['kept']}" + (f" ({changed} of {len(layers)} layers)" if changed else "")
    now, before = (f"{errors[name] * 100:.2f} %" for name in (done["kept"], "nothing"))
    return (
        f"{what}; on held-out images the outputs differ from those of the network before slimming by {now} of"
        f" their variance ({before} without refit)"
    )


def histories_of(context: Context) -> dict[str, dict[str, Any] | None]:
    """What the trainings of a run noted of their epochs, by what a report calls them."""
    run = context.run
    score = run.facts("score")
    scheme = score.get("scheme_facts", {})
    return {
        "dense training": run.facts("train").get("history"),
        score.get("scheme", "the scheme"): scheme.get("history"),
        "debiasing": scheme.get("debias"),
        "fine-tuning": run.facts("finetune").get("history"),
    }


def write_reports(context: Context) -> dict[str, Any]:
    """Write report.md and report.html."""
    run = context.run
    report = make_report(
        load_measurement(run.file("measurement.json")),
        verdicts_of(context),
        command=run.settings.command(str(run.path)),
        extra=story_of(context) | mobile_story(context),
        plan=run.facts("plan"),
        classes=class_structure(run.facts("score").get("scheme_facts", {})),
        curves=training_curves(histories_of(context)),
        also=verdicts_of_others(context),
    )
    write_text(run.file("report.md"), report_markdown(report))
    write_text(run.file("report.html"), report_html(report))
    return {}
