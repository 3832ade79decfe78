"""Who does the work of a sweep: this process, several of this machine, or a cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures as local_futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from edgeprune.errors import RunError, UsageError
from edgeprune.pipeline.folder import Listener
from edgeprune.pipeline.sweeping.folder import TOKEN_FILE
from edgeprune.pipeline.sweeping.tasks import Outcome, Place, Task, at_place, check_place, do, do_there

ENGINES = ("dask",)
SCHEDULER_WAIT_S = 30


class Workers(Protocol):
    """Does tasks."""

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """What becomes of each task, in the order in which they end.

        Raises:
            RunError: A worker is gone, or does not see the folder.
        """
        ...


class Here:
    """This process, one task after the other.

    Args:
        listener: Is told what happens.
        place: Where the sweep was started.
    """

    def __init__(self, listener: Listener, place: Place) -> None:
        self.listener, self.place = listener, place

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """See ``Workers``."""
        from edgeprune.schemes.kept import keeping

        with keeping():
            for task in tasks:
                with at_place(self.place):
                    outcome = do(task, Narrator(self.listener, task.point))
                yield outcome


class Narrator:
    """Tells of a point's stages under its name, and is silent on those that are skipped.

    Args:
        listener: Is told.
        point: The name.
    """

    def __init__(self, listener: Listener, point: str) -> None:
        self.listener, self.point = listener, point

    def stage(self, name: str, status: str, text: str = "") -> None:
        """See ``Listener``."""
        if status != "skipped":
            self.listener.stage(f"{self.point}: {name}", status, text)

    def training(self, progress: Any) -> None:
        """See ``Listener``."""
        self.listener.training(progress)

    def step(self, done: int, total: int, text: str) -> None:
        """See ``Listener``."""
        self.listener.step(done, total, text)

    def say(self, text: str) -> None:
        """See ``Listener``."""
        self.listener.say(text)


class Processes:
    """Several processes of this machine.

    Args:
        jobs: Their number.
        place: Where the sweep was started.
    """

    def __init__(self, jobs: int, place: Place) -> None:
        self.jobs, self.place = jobs, place
        self.others = set(multiprocessing.active_children())
        spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half-way
        self.pool = ProcessPoolExecutor(jobs, spawn, initializer=prepare_worker)

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """See ``Workers``."""
        place = divided(self.place, min(self.jobs, len(tasks)))
        for future in local_futures.as_completed([self.pool.submit(do_there, task, place) for task in tasks]):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                raise gone("a process of this machine") from None
            if outcome.interrupted:
                raise gone("a process of this machine")
            yield outcome

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # what runs writes its checkpoint and ends, what waits is not begun
            (Path(self.place.directory) / self.place.sweep / TOKEN_FILE).unlink(missing_ok=True)
            for child in set(multiprocessing.active_children()) - self.others:
                child.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


def divided(place: Place, jobs: int) -> Place:
    """A place where so many tasks at once share torch's threads, unless their number is given."""
    if place.threads is not None:
        return place
    import torch

    return replace(place, threads=max(1, torch.get_num_threads() // jobs))


class Dask:
    """A cluster of Dask's.

    Args:
        client: ``distributed.Client``.
        place: Where the sweep was started.
        jobs: Workers of a cluster on this machine, which share its threads; None: it is elsewhere.
    """

    def __init__(self, client: Any, place: Place, jobs: int | None) -> None:
        self.client, self.place, self.jobs = client, place, jobs
        for fault in self.client.run(fault_of, place, on_error="return").values():
            if isinstance(fault, RunError):
                raise fault
            if isinstance(fault, ModuleNotFoundError):
                raise RunError(
                    "could not use a worker", where=f"its package {fault.name}", value="missing",
                    expected="edgeprune[train], as where the sweep was started",
                )  # fmt: skip
            if isinstance(fault, BaseException):
                raise fault
        wide = [address for address, threads in self.client.nthreads().items() if threads > 1]
        if wide:
            raise RunError(
                "could not use a worker",
                where=wide[0],
                value="of several threads",
                expected="one thread in each: they would share a working directory",
                hint="Start it by `dask worker --nthreads 1 ADDRESS`; --job-threads sets those of torch.",
            )

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """See ``Workers``."""
        from distributed import KilledWorker, as_completed

        place = self.place if self.jobs is None else divided(self.place, min(self.jobs, len(tasks)))
        futures = [self.client.submit(do_there, task, place, pure=False) for task in tasks]
        try:
            for future in as_completed(futures):  # type: ignore[no-untyped-call]
                yield future.result()
        except KilledWorker:
            raise gone("a worker of the cluster") from None
        finally:
            self.client.cancel(futures)


def fault_of(place: Place) -> RunError | None:
    """What is wrong with this worker."""
    try:
        check_place(place)
    except RunError as fault:
        return fault
    return None


@contextlib.contextmanager
def open_workers(
    listener: Listener,
    place: Place,
    *,
    jobs: int = 1,
    engine: str | None = None,
    scheduler: str | None = None,
) -> Iterator[Workers]:
    """Those who do the work.

    Args:
        listener: Is told what happens.
        place: Where the sweep was started.
        jobs: Processes on this machine.
        engine: None or ``"dask"``.
        scheduler: Address of an existing cluster; None: one of ``jobs`` workers on this machine.

    Raises:
        UsageError: The engine is not installed.
        RunError: The cluster does not answer, or a worker does not see the sweep folder.
    """
    if engine is None:
        if jobs == 1:
            yield Here(listener, place)
        else:
            with Processes(jobs, place) as processes:
                yield processes
        return
    dask, distributed = dask_packages()
    with contextlib.ExitStack() as stack:
        # A user's data may be loaded by processes of their own, which a daemon may not start.
        stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
        local = jobs if scheduler is None else None
        if scheduler is None:
            scheduler = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,  # a worker's threads would share one working directory
                    dashboard_address=None,
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            )
        try:
            client = stack.enter_context(distributed.Client(scheduler, timeout=SCHEDULER_WAIT_S))
            client.wait_for_workers(1, timeout=SCHEDULER_WAIT_S)
        except (OSError, TimeoutError, ValueError) as reason:
            raise RunError(
                "could not reach the cluster",
                where="--scheduler",
                value=f"{scheduler} ({str(reason) or type(reason).__name__})",
                expected="the address of a Dask scheduler with workers, e.g. tcp://127.0.0.1:8786",
                hint="`dask scheduler` and `dask worker ADDRESS` start one.",
            ) from None
        yield Dask(client, place, local)


def dask_packages() -> tuple[Any, Any]:
    """Dask and distributed.

    Raises:
        UsageError: They are not installed.
    """
    try:
        import dask
        import distributed
    except ImportError:
        raise UsageError(
            "could not start the engine",
            where="the package distributed",
            value="not installed",
            expected="it for --engine dask",
            hint='Install it with `pip install "edgeprune[dask]"`, or use --jobs.',
        ) from None
    return dask, distributed


def gone(who: str) -> RunError:
    """The error for a worker that has died."""
    return RunError(
        "could not finish the sweep",
        where=who,
        value="gone without a word, e.g. killed for its memory",
        expected="it to answer",
        hint="Run the same command again to go on, perhaps with fewer --jobs.",
    )


# --- in a worker of this machine ---------------------------------------------------------------------------


def prepare_worker() -> None:
    """Signals are obeyed while a task runs, see ``stoppable``; ^C is the parent's affair."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
