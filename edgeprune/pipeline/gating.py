"""Several targets in one gate, each with a measurement and verdicts of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeprune.errors import EdgepruneError, MeasurementError, UsageError
from edgeprune.measurement import Measurement
from edgeprune.outcome import Outcome
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.device import differing, gate_on, outcome_of, short_name
from edgeprune.pipeline.folder import Listener, RunFolder
from edgeprune.pipeline.stages import STAGES, Stage, run_stages
from edgeprune.release import Release
from edgeprune.target import Target


def named_targets(targets: Sequence[Target]) -> dict[str, Target]:
    """Targets by their short names.

    Raises:
        UsageError: Two have the same name, or are the same.
    """
    found: dict[str, Target] = {}
    for target in targets:
        name = short_name(target)
        if name in found:
            raise UsageError(
                "could not gate on several targets",
                where="--target",
                value=f"{name} twice",
                expected="files of different names, since verdicts are told apart by them",
            )
        found[name] = target
    return found


def gate_run(run: RunFolder, targets: Sequence[Target], listener: Listener) -> tuple[Outcome, ...]:
    """Gate a run on each target, and measure it there if its measurement is missing or stale.

    The first target is the run's own; the files of the others carry their short names. The report comes
    last, since it tells the verdicts of all.

    Raises:
        EdgepruneError: Nothing could be decided, and not for want of a device: a mistake of the caller's.
    """
    outcomes, faults = [], []
    for number, (name, target) in enumerate(named_targets(targets).items()):
        context = Context(run, listener, further=(name, target) if number else None)
        try:
            run_stages(context, ("bench", "gate"), [_of_further(stage, context) for stage in STAGES])
        except EdgepruneError as fault:
            faults.append(fault)
            outcomes.append(Outcome(name, target.name, error=str(fault)))
        else:
            outcomes.append(outcome_of(context))
    wrong = [fault for fault in faults if fault.exit_code != MeasurementError.exit_code]
    if len(faults) == len(outcomes) and wrong:
        raise wrong[0]
    if not outcomes[0].error:
        run_stages(Context(run, listener), ("report",))
    return tuple(outcomes)


def gate_files(
    measurements: Sequence[Measurement], targets: Sequence[Target], release: Release | None
) -> tuple[Outcome, ...]:
    """Gate measurements on targets: each target takes the measurement that was made as it asks.

    Raises:
        UsageError: Two measurements are a target's, or one is nobody's.
    """
    outcomes, used = [], set()
    for name, target in named_targets(targets).items():
        fitting = [number for number, one in enumerate(measurements) if not differing(target, one)]
        own = [number for number in fitting if measurements[number].target_sha256 == target.sha256]
        fitting = own if len(fitting) > 1 and own else fitting
        if len(fitting) > 1:
            raise UsageError(
                "could not choose a measurement",
                where=f"the target {target.path.name}",
                value=f"what {len(fitting)} of them were made for",
                expected="one measurement for each way to run",
                hint="Gate them one by one.",
            )
        used |= {*fitting}
        try:
            if len(measurements) > 1 and not fitting:
                raise MeasurementError(
                    "could not hold a measurement against the target",
                    where=target.path.name,
                    value=f"what none of the {len(measurements)} measurements was made for",
                    expected="one that was made as its [runtime] asks",
                    hint=f"Measure with it: `edgeprune bench --target {target.option} …`.",
                )
            measurement = measurements[fitting[0] if fitting else 0]
            verdicts = gate_on(target, measurement, release)
            outcomes.append(Outcome(name, target.name, verdicts, measurement.artifact.path.name))
        except MeasurementError as fault:
            outcomes.append(Outcome(name, target.name, error=str(fault)))
    idle = [measurements[number] for number in range(len(measurements)) if number not in used]
    # A target without a measurement says so itself, and an idle one may have been meant for it.
    if idle and not any(outcome.error for outcome in outcomes):
        raise UsageError(
            "could not gate every measurement",
            where=f"the measurement on {idle[0].target_name}",
            value="made in a way that no target asks for",
            expected="a --target for each measurement",
        )
    return tuple(outcomes)


def _of_further(stage: Stage, context: Context) -> Stage:
    """A stage of the device, as a further target has it: under its own name, with its own files."""
    if context.further is None or stage.command not in ("bench", "gate"):
        return stage
    reads = tuple(context.named(name) if name == "measurement.json" else name for name in stage.reads)
    writes = tuple(map(context.named, stage.writes))
    return replace(stage, name=f"{stage.name}.{context.further[0]}", reads=reads, writes=writes)
