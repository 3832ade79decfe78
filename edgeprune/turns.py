"""Times of several models, in turns inside each of several fresh processes. Device side: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgeprune.runners import Runner

Samples = list[list[list[float]]]
"""Seconds, by model, process and run. Run k of one model and run k of another are neighbours in time."""


def time_in_turns(
    runner: Runner,
    paths: Sequence[Path],
    *,
    processes: int,
    runs: int,
    seconds: float,
    on_step: Callable[[str], None] | None = None,
) -> Samples:
    """Time models in turns (ABBA) inside each of ``processes`` fresh processes.

    Args:
        runner: Of the target.
        paths: ONNX files.
        processes: The unit of every interval.
        runs: Timed inferences of each model in each process.
        seconds: A process ends before that many runs once it has timed for so long.
        on_step: Called before each process with a text.

    Raises:
        ArtifactError: A file is at fault.
        MeasurementError: The provider, the interpreter or the device is.
    """
    samples: Samples = [[] for _ in paths]
    for process in range(processes):
        if on_step:
            on_step(f"process {process + 1} of {processes}")
        # Who loads and starts first changes from process to process.
        step = 1 if process % 2 == 0 else -1
        options = {"runs": runs, "min_runs": 1, "seconds": seconds}
        found = runner.run("latency", list(paths)[::step], **options)["models"][::step]
        for taken, one in zip(samples, found, strict=True):
            taken.append([ns / 1e9 for ns in one["samples_ns"]])
    return samples
