"""One piece of a sweep's work, here or in a worker elsewhere; both do the same."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import __version__
from edgeprune.errors import EdgepruneError, Interrupted, RunError
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.folder import Listener, Silent
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.stages import run_stages, stages_until
from edgeprune.pipeline.sweeping.folder import SWEEP_FILE, TOKEN_FILE, run_of

LOOK_EVERY_S = 1.0
"""How often a worker elsewhere looks whether the sweep goes on."""


@dataclass(frozen=True)
class Task:
    """Stages of one point.

    Attributes:
        point: Its name.
        path: Its run folder, as seen from where the sweep was started.
        settings: Of the run, as JSON values.
        commands: Whose stages are run.
        until: The last stage; None: all.
        twins: Run folders to take things from.
        download: Fetch a data set that is not there.
    """

    point: str
    path: str
    settings: dict[str, Any]
    commands: tuple[str, ...]
    until: str | None
    twins: tuple[str, ...]
    download: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        point: Name of the point.
        seconds: It took.
        error: What was wrong with the point, or None.
        interrupted: It was stopped.
    """

    point: str
    seconds: float
    error: EdgepruneError | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Place:
    """Where a sweep was started: relative paths mean the same in every worker.

    Attributes:
        directory: The working directory, absolute.
        importable: Modules are imported from there.
        sweep: The sweep folder, as seen from there.
        token: Of the sweep.
        threads: Of torch in each worker; None: as it finds them.
        leashed: Workers may outlive the sweep, so that they have to look whether it goes on.
        version: Of edgeprune.
    """

    directory: str
    importable: bool
    sweep: str
    token: str
    threads: int | None = None
    leashed: bool = False
    version: str = __version__


def place_here(sweep: Path, token: str, *, threads: int | None = None, leashed: bool = False) -> Place:
    """This process's place."""
    here = Path.cwd()
    importable = any(not entry or Path(entry).resolve() == here.resolve() for entry in sys.path)
    return Place(str(here), importable, str(sweep), token, threads, leashed)


def do(task: Task, listener: Listener) -> Outcome:
    """Run the stages of a task; an error of its point ends the task, not the sweep."""
    started = time.monotonic()
    error: EdgepruneError | None = None
    run = run_of(Path(task.path), Settings.from_json(task.settings))
    context = Context(run, listener, task.download, twins=tuple(map(Path, task.twins)))
    try:
        run_stages(context, task.commands, stages_until(task.until))
    except EdgepruneError as reason:
        error = reason
    except OSError as reason:  # a full disk, a missing right: the user's to mend, as the command line has it
        where = str(reason.filename or "a file")
        error = RunError("could not read or write", where=where, value=reason.strerror or str(reason))
    return Outcome(task.point, time.monotonic() - started, error)


def do_there(task: Task, place: Place) -> Outcome:
    """``do`` in a worker, at the place where the sweep was started.

    Raises:
        RunError: The worker does not see the sweep folder, or has another version of edgeprune.
    """
    started = time.monotonic()
    check_place(place)
    with at_place(place):
        try:
            with stoppable():
                return do(task, Leash(place) if place.leashed else Silent())
        except KeyboardInterrupt:  # an Interrupted would not survive the way back
            return Outcome(task.point, time.monotonic() - started, interrupted=True)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends the work as ^C does; a training writes its checkpoint first."""

    def stop(number: int, _: object) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_place(place: Place) -> None:
    """See that this worker sees the folder of the sweep, and is of its version.

    Raises:
        RunError: It does not, or is not.
    """
    problem = "could not use a worker"
    if __version__ != place.version:
        raise RunError(
            problem,
            where=f"edgeprune on {socket.gethostname()}",
            value=__version__,
            expected=f"{place.version}, as where the sweep was started",
        )
    folder = Path(place.directory) / place.sweep
    if token_in(folder) != place.token:
        raise RunError(
            problem,
            where=f"{folder} on {socket.gethostname()}",
            value="another folder" if (folder / SWEEP_FILE).is_file() else "not there",
            expected="the sweep folder",
            hint="Workers need a file system that they share, with --out, data and weights on it: start the"
            " sweep there, or use --jobs on one machine.",
        )


def token_in(folder: Path) -> str | None:
    """Token of the sweep that is at work in a folder; None: none is, or the folder is not seen."""
    try:
        return (folder / TOKEN_FILE).read_text(encoding="utf-8")
    except OSError:
        return None


@contextlib.contextmanager
def at_place(place: Place) -> Iterator[None]:
    """Work in the directory, with the threads and the modules of the place."""
    import torch

    before = torch.get_num_threads()
    if place.importable and place.directory not in sys.path:
        sys.path.insert(0, place.directory)
    if place.threads is not None:
        torch.set_num_threads(place.threads)
    here = Path.cwd()
    os.chdir(place.directory)
    try:
        yield
    finally:
        os.chdir(here)
        torch.set_num_threads(before)


class Leash(Silent):
    """Ends the work once the sweep that has sent it is over, e.g. was killed and started again.

    Args:
        place: Of the sweep.
    """

    def __init__(self, place: Place) -> None:
        self.folder, self.token = Path(place.directory) / place.sweep, place.token
        self.looked = time.monotonic()

    def stage(self, name: str, status: str, text: str = "") -> None:  # noqa: ARG002
        """See ``Listener``."""
        self._look()

    def training(self, progress: Any) -> None:  # noqa: ARG002
        """See ``Listener``."""
        if time.monotonic() - self.looked >= LOOK_EVERY_S:
            self._look()

    def _look(self) -> None:
        self.looked = time.monotonic()
        if token_in(self.folder) != self.token:
            raise Interrupted(signal.SIGTERM, "the sweep that sent this work is over")
