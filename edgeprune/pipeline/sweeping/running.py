"""Running a sweep: everything is made first, then each point is measured with the machine to itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeprune.errors import UsageError
from edgeprune.pipeline.folder import Listener
from edgeprune.pipeline.stages import COMMANDS, HOST, STAGES, VARIANTS
from edgeprune.pipeline.sweeping.choice import Outcome, outcome_of, outcome_to_json
from edgeprune.pipeline.sweeping.folder import POINTS, Failure, SweepFolder
from edgeprune.pipeline.sweeping.page import write_pages
from edgeprune.pipeline.sweeping.points import PROBLEM, Point
from edgeprune.pipeline.sweeping.tasks import Task, place_here
from edgeprune.pipeline.sweeping.workers import ENGINES, Here, Workers, open_workers

MADE = tuple(
    dict.fromkeys(stage.command for stage in STAGES if stage.work.partition(":")[0] in (HOST, VARIANTS))
)
"""Commands that make the networks; the others measure them."""
MEASURED = tuple(command for command in COMMANDS if command not in MADE)


def run_sweep(
    folder: SweepFolder,
    listener: Listener,
    *,
    jobs: int = 1,
    threads: int | None = None,
    engine: str | None = None,
    scheduler: str | None = None,
    download: bool = False,
) -> Outcome:
    """Run every point of a sweep, as far as it has not been run, and choose among them.

    The dense network is made once and each scheme fitted once. An error of one point is noted in
    ``folder.failures`` and stops no other.

    Args:
        folder: The sweep.
        listener: Is told what happens.
        jobs: Processes that make networks at the same time; of a cluster that is started here, its workers.
        threads: Of torch in each of them; None: what torch takes here, divided by those that work at the
            same time, or what a worker of an existing cluster has.
        engine: None or ``"dask"``.
        scheduler: Address of an existing cluster.
        download: Fetch a data set that is not there.

    Returns:
        What came out; written to ``sweep.json``, ``sweep.html`` and ``sweep.md`` too.

    Raises:
        UsageError: The plan or an option is wrong.
        RunError: The folder is in use, or a worker is gone.
        EdgepruneError: The dense network cannot be made.
    """
    points = folder.plan.points()
    check_workers(folder, jobs, engine, scheduler)
    with folder.at_work() as token:
        folder.failures, folder.result = {}, {}
        folder.save()
        folder.choose(None)  # it might lead to a network that is made anew and has not passed
        place = place_here(folder.path, token, threads=threads, leashed=engine is not None)
        with open_workers(listener, place, jobs=jobs, engine=engine, scheduler=scheduler) as workers:
            _make(folder, points, workers, listener, download)
        here = Here(listener, replace(place, threads=None))
        _do(folder, here, [_task(folder, point, MEASURED) for point in _left(folder, points)], listener)
        outcome = outcome_of(folder)
        folder.choose(outcome.best.point.name if outcome.best else None)
        runs = [f"{POINTS}/{one.point.name}" for one in outcome.points]
        folder.result = outcome_to_json(outcome, runs)
        folder.save()
        write_pages(folder.path, folder.plan, outcome)
    return outcome


def check_workers(folder: SweepFolder, jobs: int, engine: str | None, scheduler: str | None) -> None:
    """See that the work may be done in this way.

    Raises:
        UsageError: It may not.
    """
    settings = [point.settings for point in folder.plan.points()]
    if jobs < 1:
        raise UsageError(PROBLEM, where="--jobs", value=jobs, expected="1 or more")
    if engine is not None and engine not in ENGINES:
        raise UsageError(PROBLEM, where="--engine", value=engine, expected=" or ".join(ENGINES))
    if scheduler is not None and engine is None:
        raise UsageError(
            PROBLEM, where="--scheduler", value=scheduler, expected="an engine", hint="Add --engine dask."
        )
    if (jobs > 1 or engine) and any(one.max_latency_ratio is not None for one in settings):
        raise UsageError(
            PROBLEM,
            where="--engine" if engine else "--jobs",
            value=engine or jobs,
            expected="neither beside a latency that the plan has to keep to, which is measured on the way",
            hint="Leave it out: nothing may run beside a measurement.",
        )


def _make(
    folder: SweepFolder, points: Sequence[Point], workers: Workers, listener: Listener, download: bool
) -> None:
    """Make the dense network, fit each scheme, then do all the rest."""

    def tasks(wanted: Sequence[Point], commands: tuple[str, ...], until: str | None = None) -> list[Task]:
        return [_task(folder, point, commands, until=until, download=download) for point in wanted]

    for outcome in workers.outcomes(tasks(points[:1], ("train", "export"), "export-dense")):
        if outcome.error:
            raise outcome.error  # it is every point's
    leaders = {point.scheme: point for point in reversed(points)}  # the first of each scheme
    fitted = tasks([leaders[name] for name in folder.plan.schemes], ("train", "prune"), "score")
    _do(folder, workers, fitted, listener)
    for point in points:
        failure = folder.failures.get(leaders[point.scheme].name)
        if failure:
            folder.failures[point.name] = failure
    folder.save()
    _do(folder, workers, tasks(_left(folder, points), MADE), listener)


def _left(folder: SweepFolder, points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.name not in folder.failures]


def _do(folder: SweepFolder, workers: Workers, tasks: Sequence[Task], listener: Listener) -> None:
    """Do tasks, and note which points fail."""
    if not tasks:
        return
    for done, outcome in enumerate(workers.outcomes(tasks), 1):
        if outcome.error:
            folder.failures[outcome.point] = Failure.of(outcome.error)
            folder.save()
            listener.say(f"{outcome.point}: {outcome.error}")
        elif not isinstance(workers, Here):
            what = "its scheme fitted" if tasks[0].until else "made"
            listener.say(f"{outcome.point}: {what} in {outcome.seconds:.1f} s ({done} of {len(tasks)})")


def _task(
    folder: SweepFolder,
    point: Point,
    commands: tuple[str, ...],
    *,
    until: str | None = None,
    download: bool = False,
) -> Task:
    twins = tuple(str(path) for path in folder.twins())
    path, settings = folder.run_path(point.name), point.settings.to_json()
    return Task(point.name, str(path), settings, commands, until, twins, download)
