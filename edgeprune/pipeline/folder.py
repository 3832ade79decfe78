"""The run folder: settings, what each finished stage has read and written, and a lock."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeprune.errors import RunError
from edgeprune.files import TEMPORARY, read_json, sha256_file, write_json
from edgeprune.pipeline.settings import Settings

RUN_FORMAT = 1
RUN_FILE = "run.json"
LOCK_FILE = ".lock"


class Listener(Protocol):
    """Is told what a run does; the command line draws it."""

    def stage(self, name: str, status: str, text: str = "") -> None:
        """A stage has begun (``"begin"``), is done (``"done"``) or was skipped (``"skipped"``).

        ``"taken"``: another run has made the same of the same, and its files were taken; ``text`` names it.
        """
        ...

    def training(self, progress: Any) -> None:
        """A training goes on: an ``edgeprune.training.Progress``."""
        ...

    def step(self, done: int, total: int, text: str) -> None:
        """A measurement goes on."""
        ...

    def say(self, text: str) -> None:
        """A person has to do something, e.g. at the device."""
        ...


class Silent:
    """A listener that does nothing."""

    def stage(self, name: str, status: str, text: str = "") -> None:
        """See ``Listener``."""

    def training(self, progress: Any) -> None:
        """See ``Listener``."""

    def step(self, done: int, total: int, text: str) -> None:
        """See ``Listener``."""

    def say(self, text: str) -> None:
        """See ``Listener``."""


@dataclass
class RunFolder:
    """A folder with one run.

    Attributes:
        path: The folder.
        settings: What the run is made with.
        stages: Per finished stage ``inputs`` (hash of what it read), ``outputs`` (hash by file), ``facts``.
    """

    path: Path
    settings: Settings
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.path / name

    def save(self) -> None:
        """Write ``run.json``, atomically."""
        write_json(
            self.file(RUN_FILE),
            {"format": RUN_FORMAT, "settings": self.settings.to_json(), "stages": self.stages},
        )

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage found out; empty if it has not run."""
        return dict(self.stages.get(stage, {}).get("facts", {}))

    def is_current(self, stage: str, inputs: str, outputs: tuple[str, ...]) -> bool:
        """Whether a stage has run on the same inputs and its files are still what it wrote."""
        entry = self.stages.get(stage)
        if entry is None or entry["inputs"] != inputs or set(entry["outputs"]) != set(outputs):
            return False
        return all(
            self.file(name).is_file() and sha256_file(self.file(name)) == sha256
            for name, sha256 in entry["outputs"].items()
        )

    def record(self, stage: str, inputs: str, outputs: tuple[str, ...], facts: dict[str, Any]) -> None:
        """Note that a stage is finished."""
        hashes = {name: sha256_file(self.file(name)) for name in outputs}
        self.stages[stage] = {"inputs": inputs, "outputs": hashes, "facts": facts}
        self.save()

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """As ``locked``, for this folder."""
        return locked(self.path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder, and sweep away what a killed one has left half-written.

    Raises:
        RunError: Another process works in the folder.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                "could not start",
                where=str(path),
                value="in use by another edgeprune process",
                expected="a folder for this run alone",
                hint="Wait for it to end, or give another --out.",
            ) from None
        for leftover in path.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        yield


def is_run_folder(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / RUN_FILE).is_file()


def open_run(path: Path) -> RunFolder:
    """Read an existing run.

    Raises:
        RunError: The folder holds no run, or one of another format.
    """
    problem = "could not open the run"
    if not is_run_folder(path):
        raise RunError(
            problem,
            where=str(path),
            value="not a run folder",
            expected=f"a folder with a {RUN_FILE}",
            hint="`edgeprune run --model … --out FOLDER` makes one.",
        )
    value = read_json(path / RUN_FILE, RunError, "run")
    if (
        not isinstance(value, dict)
        or value.get("format") != RUN_FORMAT
        or set(value) != {"format", "settings", "stages"}
        or not isinstance(value["stages"], dict)
        or not all(map(_is_entry, value["stages"].values()))
    ):
        raise RunError(
            problem,
            where=str(path / RUN_FILE),
            value="of another format",
            expected=f"format {RUN_FORMAT}",
            hint="Use a new folder.",
        )
    return RunFolder(path, Settings.from_json(value["settings"]), value["stages"])


def _is_entry(value: Any) -> bool:
    """Whether a JSON value is what a finished stage has left."""
    return (
        isinstance(value, dict)
        and set(value) == {"inputs", "outputs", "facts"}
        and isinstance(value["outputs"], dict)
        and isinstance(value["facts"], dict)
    )


def new_run(path: Path, settings: Settings) -> RunFolder:
    """A run in a folder that holds nothing else.

    Raises:
        RunError: The folder has other files in it: they might be overwritten.
    """
    if path.exists() and not path.is_dir():
        raise RunError("could not start", where=str(path), value="a file", expected="a folder")
    others = [item.name for item in path.iterdir() if item.name != LOCK_FILE] if path.is_dir() else []
    if others:
        raise RunError(
            "could not start",
            where=str(path),
            value=f"a folder with other files ({', '.join(sorted(others)[:3])} …)",
            expected="a run folder, an empty one or none",
            hint="Give another --out.",
        )
    return RunFolder(path, settings)
