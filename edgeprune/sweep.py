"""The same measurement over batch sizes and numbers of threads. Device side: no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.benchmark import PROCESSES, OnProgress, bench, check_options
from edgeprune.errors import ArtifactError, UsageError
from edgeprune.measurement import Measurement
from edgeprune.metrics import METRICS
from edgeprune.runners import runner_for
from edgeprune.target import Target
from edgeprune.verdict import format_measured

SWEEP_FORMAT = 1
COLUMNS = ("latency_p50", "latency_ratio", "throughput", "peak_memory")


@dataclass(frozen=True)
class Point:
    """One place of a sweep.

    Attributes:
        batch: Images in one inference.
        threads: Threads of one inference.
        measurement: What was measured there.
    """

    batch: int
    threads: int
    measurement: Measurement


def measure_sweep(
    artifact: Artifact | Path | str,
    target: Target,
    *,
    baseline: Artifact | Path | str | None = None,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    processes: int = PROCESSES,
    budget_seconds: float | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Point, ...]:
    """Measure at every batch size with every number of threads.

    Args:
        artifact: The ONNX file; its first dimension must be open unless one batch size is asked for, its own.
        target: The device; its threads and the first dimension of its input are what is varied.
        baseline: The dense network.
        batches: Batch sizes; none: the file's or target's own.
        threads: Numbers of threads; none: the target's.
        processes: At most, at each place.
        budget_seconds: Of the whole sweep, shared equally by what is left of it.
        on_progress: As of ``bench``, over all places.

    Returns:
        The places in the order of ``batches``, then ``threads``.

    Raises:
        UsageError: A batch size or number of threads is below 1, or given twice.
        ArtifactError: The batch size is fixed in a file.
    """
    started = time.monotonic()
    check_options(processes=processes, runs=1, budget_seconds=budget_seconds)
    if target.runtime.runner == "browser":
        raise UsageError(
            "could not plan the sweep",
            where="runtime.runner",
            value="'browser'",
            expected="a runner that needs nobody at the device",
            hint="Measure one batch size and number of threads at a time.",
        )
    for name, values in (("--sweep-batch", batches), ("--sweep-threads", threads)):
        if any(value < 1 for value in values) or len(set(values)) < len(values):
            raise UsageError(
                "could not plan the sweep",
                where=name,
                value=",".join(map(str, values)),
                expected="different whole numbers of at least 1, e.g. 1,2,4",
            )
    paths = [
        one.path if isinstance(one, Artifact) else load_artifact(one).path
        for one in (artifact, baseline)
        if one is not None
    ]
    shapes = _shapes(paths, target, batches)
    places = [(batch, count) for batch in shapes for count in threads or (target.runtime.threads,)]
    points: list[Point] = []
    for batch, count in places:
        runtime = replace(target.runtime, threads=count)
        if batches:
            runtime = replace(runtime, input=shapes[batch])
        left_s = None
        if budget_seconds is not None:
            left_s = (started + budget_seconds - time.monotonic()) / (len(places) - len(points))
        measurement = bench(
            artifact,
            replace(target, runtime=runtime),
            baseline=baseline,
            processes=processes,
            budget_seconds=None if left_s is None else max(left_s, 1e-3),
            on_progress=_within(on_progress, len(points), len(places), f"batch {batch}, threads {count}"),
        )
        points.append(Point(batch, count, measurement))
    return tuple(points)


def _within(listener: OnProgress | None, place: int, places: int, text: str) -> OnProgress | None:
    """Steps of one place as steps of the sweep."""
    if listener is None:
        return None

    def tell(done: int, total: int, what: str) -> None:
        listener(place * total + done, places * total, f"{text}: {what}")

    return tell


def _shapes(paths: Sequence[Path], target: Target, batches: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Batch size -> shape of the first input, each tried on every file before anything is timed."""

    def shape_on(path: Path, given: tuple[int, ...] | None) -> tuple[int, ...]:
        with runner_for(replace(target.runtime, input=given)) as runner:
            return tuple(runner.run("placement", [path])["inputs"][0]["shape"])

    own = shape_on(paths[0], target.runtime.input)
    if not batches:
        return {own[0] if own else 1: own}
    shapes = {}
    for batch in batches:
        shapes[batch] = (batch, *own[1:])
        for path in paths if shapes[batch] != own else ():
            try:
                shape_on(path, shapes[batch])
            except ArtifactError as error:
                raise ArtifactError(
                    "could not sweep over the batch size",
                    where=path.name,
                    value=f"unable to take a batch of {batch}: {error.value}",
                    expected="a file whose batch size is open",
                    hint="Export it with --dynamic-batch, or leave --sweep-batch out.",
                ) from None
    return shapes


def sweep_rows(points: Sequence[Point]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and rows of the table, as texts."""
    has_dense = any(point.measurement.baseline for point in points)
    names = [name for name in COLUMNS if has_dense or not METRICS[name].relative]
    header = ["batch", "threads", *(["dense: median latency"] if has_dense else [])]
    header += [METRICS[name].text for name in names]
    rows = []
    for point in points:
        measured, dense = point.measurement, point.measurement.baseline
        cells = [str(point.batch), str(point.threads)]
        readings = [(dense, "latency_p50")] if dense else []
        for one, name in [*readings, *((measured, name) for name in names)]:
            cells.append(format_measured(one.value(name), METRICS[name].quantity))
        rows.append(tuple(cells))
    return tuple(header), tuple(rows)


def sweep_to_json(points: Sequence[Point]) -> dict[str, Any]:
    """The table and every measurement behind it, as JSON values."""
    header, rows = sweep_rows(points)
    listed = [
        {"batch": point.batch, "threads": point.threads, "measurement": point.measurement.to_json()}
        for point in points
    ]
    return {
        "sweep_format": SWEEP_FORMAT,
        "header": list(header),
        "rows": [*map(list, rows)],
        "points": listed,
    }
