"""Measuring an ONNX file on a target: what runs when, and when it is enough. Device side: no torch."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.errors import ArtifactError, UsageError
from edgeprune.instructions import count_instructions, instruction_notes, must_count, planned_launches
from edgeprune.measurement import Measurement
from edgeprune.measurement_format import MEMORY_FIGURES
from edgeprune.metrics import Estimate
from edgeprune.noise import (
    disturbance_notes,
    latency_notes,
    machine_notes,
    memory_notes,
    placement_notes,
    width_notes,
)
from edgeprune.placement import functional_only, with_share_of_macs
from edgeprune.precision import precision_notes
from edgeprune.runners import Runner, open_runner
from edgeprune.statistics import MIN_PROCESSES, MIN_SAMPLES, is_narrow, percentile_estimate, ratio_estimate
from edgeprune.target import Runtime, Target

MEMORY_REPEATS = 3
PROCESSES = 30
SECONDS_PER_PROCESS = 3.0  # of timed runs, once there are enough for the 95th percentile
NOT_TOLD = "this runner does not tell it"

OnProgress = Callable[[int, int, str], None]
_LOG = logging.getLogger(__name__)  # for what a person must do at a device, where no command line tells it


def bench(
    artifact: Artifact | Path | str,
    target: Target,
    *,
    baseline: Artifact | Path | str | None = None,
    processes: int = PROCESSES,
    runs: int = 70,
    budget_seconds: float | None = None,
    instructions: bool = False,
    latency: bool = True,
    on_progress: OnProgress | None = None,
    runner: Runner | None = None,
) -> Measurement:
    """Measure an ONNX file on a target, and its dense network in the same processes.

    Where each node runs is proven first, instructions are counted if that is asked for, and memory is taken
    in processes of its own. Then both networks are timed in turns inside fresh processes. That ends as soon
    as the interval of the ratio (of the median latency without a dense network) reaches no further than 3 %
    to either side after at least 20 processes, since nothing narrower is ever claimed; or when the next
    process would not end within ``budget_seconds``, or after ``processes``.

    Args:
        artifact: The ONNX file.
        target: The device.
        baseline: The dense network; None: no ratios.
        processes: Fresh processes at most, at least 2. The process is the unit of the intervals.
        runs: Timed inferences of each network in each process; fewer if they take longer than
            ``SECONDS_PER_PROCESS``, but enough in all for the 95th percentile.
        budget_seconds: Of the whole measurement; None: no limit. What comes before the timed processes, and
            the first two of these, is done in any case.
        instructions: Count those of one warm inference too, as is done if a budget of the target needs them.
        latency: Time the networks. On an emulated processor neither time nor memory is ever taken.
        on_progress: Called with (steps done, steps in all, what comes next).
        runner: One that is open; None: the target's, opened and closed here.

    Raises:
        UsageError: ``processes``, ``runs`` or ``budget_seconds`` is too small; instructions of several
            threads are asked for.
        ArtifactError: A file is at fault, or the two do not take the same input.
        MeasurementError: The provider, the interpreter, the device or what counts is absent, or took no part.

    Example:
        >>> target = load_target("local-cpu")
        >>> bench("slim.onnx", target, baseline="dense.onnx").latency_ratio  # doctest: +SKIP
        Estimate(value=0.61, low=0.59, high=0.63, confidence=0.95, more_runs=None)
    """
    started = time.monotonic()
    check_options(processes=processes, runs=runs, budget_seconds=budget_seconds)
    launches = planned_launches(target, instructions)
    artifacts = [_as_artifact(one) for one in (artifact, baseline) if one is not None]
    about_precision = precision_notes(artifacts, target.runtime)
    timing = Timing(processes if latency else 0, runs, budget_seconds, started)
    opened = contextlib.nullcontext(runner) if runner else open_runner(target.runtime, say=_LOG.warning)
    with opened as ready:
        measured = _measure(
            ready, target, artifacts, timing, (launches, must_count(target, instructions)), on_progress
        )
    return replace(measured, notes=(*about_precision, *measured.notes))


def _measure(
    runner: Runner,
    target: Target,
    artifacts: Sequence[Artifact],
    timing: Timing,
    counting: tuple[int, bool],
    on_progress: OnProgress | None,
) -> Measurement:
    """The measurement, with a runner that is ready; ``counting``: launches, and whether they must succeed."""
    launches, must = counting
    paths = [one.path for one in artifacts]
    progress = _Steps(1 + len(paths) * (1 + launches + MEMORY_REPEATS) + timing.most, on_progress)

    progress.next("environment")
    environment = runner.run("environment")
    player = environment.get("emulator")
    if player:
        progress.total -= timing.most + len(paths) * MEMORY_REPEATS
        timing.most = 0
    placements = []
    for given in artifacts:
        progress.next(f"placement of {given.path.name}")
        found = runner.run("placement", [given.path])
        placements.append(with_share_of_macs(found, given.provenance.get("macs_by_node")))
    _check_same_input(paths, placements)
    simulated = functional_only(placements[0])
    timing.most = 0 if simulated else timing.most
    why = simulated or (f"{player} plays the processor: memory would be its own" if player else None)
    # What may be absent comes first, so that nobody waits for the other figures in vain.
    counts = [count_instructions(runner, path, launches, progress.next, optional=not must) for path in paths]
    memories = [_no_memory(why) if why else _memory(runner, path, progress) for path in paths]
    timing.run(runner, paths, progress)
    progress.finish()

    if timing.most:
        environment = {**environment, **timing.disturbance()}
    measurements = [
        Measurement(
            target_name=target.name,
            target_sha256=target.sha256,
            runtime=_as_json(target.runtime),
            artifact=replace(one, path=Path(one.path.name)),
            environment=environment,
            placement=placement,
            memory=memory,
            latency_samples_s=tuple(tuple(ns / 1e9 for ns in answer["samples_ns"]) for answer in answers),
            load_s=tuple(answer["load_ns"] / 1e9 for answer in answers),
            first_inference_s=tuple(answer["first_ns"] / 1e9 for answer in answers),
            instructions=count,
        )
        for one, placement, memory, answers, count in zip(
            artifacts, placements, memories, timing.answers, counts, strict=True
        )
    ]
    notes = [f"Neither latency nor memory was measured: {simulated}."] if simulated else []
    if timing.most:
        notes += machine_notes(environment, target.runtime) + disturbance_notes(environment)
        notes += width_notes(timing.estimate(), len(timing.machines), timing.stopped, timing.budget_s)
    notes += runner.notes()
    for one in measurements:
        name = one.artifact.path.name
        notes += latency_notes(name, one.latency_samples_s)
        notes += memory_notes(name, one.memory["repeats"])
        notes += instruction_notes(name, one.instructions["repeats"])
        notes += placement_notes(name, target.runtime.provider, one.placement["left_to_cpu"])
        notes += one.placement.get("notes", [])
    dense = measurements[1] if len(measurements) > 1 else None
    return replace(measurements[0], baseline=dense, notes=tuple(notes))


def check_options(*, processes: int, runs: int, budget_seconds: float | None) -> None:
    """Refuse what could not be measured with."""
    for name, count, least in (("processes", processes, 2), ("runs", runs, 1)):
        if count < least:
            raise UsageError(
                "could not plan the measurement", where=name, value=count, expected=f">= {least}"
            )
    if budget_seconds is not None and not budget_seconds > 0:
        raise UsageError(
            "could not plan the measurement", where="budget_seconds", value=budget_seconds, expected="> 0"
        )


@dataclass
class Timing:
    """The timed processes of a measurement, as many as it takes.

    Attributes:
        most: Processes at most; 0: nothing is timed.
        runs: Timed inferences of each network in a process.
        budget_s: Of the whole measurement; None: no limit.
        started_s: When it began, on the monotonic clock.
        answers: For each network the worker's answer of each process.
        machines: What else happened on the machine, by process.
        stopped: Why there are no more processes.
    """

    most: int
    runs: int
    budget_s: float | None
    started_s: float
    answers: list[list[dict[str, Any]]] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    stopped: Literal["narrow", "budget", "processes"] = "processes"

    def run(self, runner: Runner, paths: Sequence[Path], progress: _Steps) -> None:
        """Time the networks in one process after another until it is enough."""
        self.answers = [[] for _ in paths]
        enough = math.ceil(MIN_SAMPLES[95] / max(1, min(self.most, MIN_PROCESSES)))
        seconds = SECONDS_PER_PROCESS
        if self.budget_s is not None:
            # A third of a process's share: starting, loading and warming up take time too, and more
            # processes tell more than more runs.
            seconds = min(seconds, max(0.0, self._left_s()) / (3 * MIN_PROCESSES))
        longest_s = 0.0
        for process in range(self.most):
            if process >= 2 and self._left_s() < longest_s:
                self.stopped = "budget"
                return
            progress.next(f"latency, process {process + 1} of at most {self.most}")
            # Who loads and starts first changes from process to process.
            step = 1 if process % 2 == 0 else -1
            options = {"runs": self.runs, "min_runs": min(self.runs, enough), "seconds": seconds}
            begun = time.monotonic()
            found = runner.run("latency", paths[::step], **options)
            longest_s = max(longest_s, time.monotonic() - begun)
            for answers, one in zip(self.answers, found["models"][::step], strict=True):
                answers.append(one)
            self.machines.append(found.get("machine") or {})
            estimate = self.estimate() if process else None
            if estimate is not None and is_narrow(estimate, process + 1):
                self.stopped = "narrow"
                return

    def estimate(self) -> Estimate | None:
        """Of the ratio, or of the median latency of one network alone: it decides when it is enough."""
        samples = [[answer["samples_ns"] for answer in answers] for answers in self.answers]
        if len(samples) == 1:
            return percentile_estimate(samples[0], 50)
        return ratio_estimate([list(zip(*both, strict=True)) for both in zip(*samples, strict=True)])

    def disturbance(self) -> dict[str, float | None]:
        """What the workers told of the machine: medians of shares, sums of events; None where none told."""
        found: dict[str, float | None] = {}
        for name in ("steal_share", "others_cpus", "throttled_share", "thermal_events"):
            values = [one[name] for one in self.machines if one.get(name) is not None]
            found[name] = (sum(values) if name == "thermal_events" else median(values)) if values else None
        return found

    def _left_s(self) -> float:
        return math.inf if self.budget_s is None else self.started_s + self.budget_s - time.monotonic()


class _Steps:
    """Counts steps for a progress display."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = -1, total, on_progress

    def next(self, text: str) -> None:
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, self.total, text)

    def finish(self) -> None:
        """All is done, however many steps were left."""
        self.done = self.total - 1
        self.next("done")


def _as_artifact(given: Artifact | Path | str) -> Artifact:
    return given if isinstance(given, Artifact) else load_artifact(given)


def _as_json(runtime: Runtime) -> dict[str, Any]:
    inputs = {name: list(shape) for name, shape in runtime.inputs.items()}
    return asdict(runtime) | {"input": runtime.input and list(runtime.input), "inputs": inputs}


def _check_same_input(paths: list[Path], placements: list[dict[str, Any]]) -> None:
    """Two networks that take different inputs are not dense and slim of one another."""
    texts = [
        ", ".join(f"{value['type']} {'x'.join(map(str, value['shape']))}" for value in placement["inputs"])
        for placement in placements
    ]
    if len(set(texts)) > 1:
        raise ArtifactError(
            "could not compare the networks",
            where=f"the input of {paths[1].name}",
            value=texts[1],
            expected=f"{texts[0]} as of {paths[0].name}",
        )


def _memory(runner: Runner, path: Path, progress: _Steps) -> dict[str, Any]:
    """Memory jobs of one model: medians over fresh processes. The arena's figures do not vary: asked once."""
    found = []
    for repeat in range(MEMORY_REPEATS):
        progress.next(f"memory of {path.name}, process {repeat + 1} of {MEMORY_REPEATS}")
        found.append(runner.run("memory", [path], arena=repeat == 0))
    why = found[0]["why"]
    middle = {name: None if why else int(median(one[name] for one in found)) for name in MEMORY_FIGURES}
    repeats = [] if why else [one["peak_bytes"] for one in found]
    parts = {name: found[0].get(name) or part for name, part in _untold_parts(NOT_TOLD).items()}
    return {**middle, "method": found[0]["method"], "why": why, "repeats": repeats, **parts}


def _no_memory(why: str) -> dict[str, Any]:
    """What stands for the memory of a device that is not there."""
    figures = dict.fromkeys(MEMORY_FIGURES)
    return {**figures, "method": None, "why": why, "repeats": [], **_untold_parts(why)}


def _untold_parts(why: str) -> dict[str, dict[str, Any]]:
    """The arena's and the device's figures where nobody tells them."""
    untold = {"peak_bytes": None, "method": None, "why": why}
    return {"arena": {**untold, "held_bytes": None}, "device": untold}
