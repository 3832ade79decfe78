"""The sweep folder: ``sweep.json``, a run folder for each point, and ``best``, a link to one of them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError, RunError
from edgeprune.files import TEMPORARY, read_json, write_json, write_text
from edgeprune.pipeline.folder import LOCK_FILE, RunFolder, is_run_folder, locked, open_run
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.sweeping.points import SweepPlan

SWEEP_FORMAT = 1
SWEEP_FILE = "sweep.json"
TOKEN_FILE = ".token"
POINTS = "points"
BEST = "best"


@dataclass(frozen=True)
class Failure:
    """Why a point has no verdicts.

    Attributes:
        text: The error.
        exit_code: Of a run that ends with it.
    """

    text: str
    exit_code: int

    @staticmethod
    def of(error: EdgepruneError) -> Failure:
        """An error's."""
        return Failure(str(error), error.exit_code)


@dataclass
class SweepFolder:
    """A folder with one sweep.

    Attributes:
        path: The folder.
        plan: What it goes through.
        failures: By point, why it has failed in this sweep.
        result: What has come out, see ``edgeprune.pipeline.sweeping.choice``; empty before the end.
    """

    path: Path
    plan: SweepPlan
    failures: dict[str, Failure] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    def run_path(self, name: str) -> Path:
        """Run folder of a point."""
        return self.path / POINTS / name

    def twins(self) -> tuple[Path, ...]:
        """The run folders of all points."""
        return tuple(self.run_path(point.name) for point in self.plan.points())

    def save(self) -> None:
        """Write ``sweep.json``, atomically."""
        failures = {name: asdict(failure) for name, failure in self.failures.items()}
        head = {"format": SWEEP_FORMAT, "plan": self.plan.to_json(), "failures": failures}
        write_json(self.path / SWEEP_FILE, {**head, **self.result})

    @contextlib.contextmanager
    def at_work(self) -> Iterator[str]:
        """Keep other processes out; gives a token that tells this sweep from all others.

        Workers that others see know by its file that they see the same folder, and when it is over.

        Raises:
            RunError: Another process works in the folder.
        """
        with locked(self.path):
            token = uuid.uuid4().hex
            write_text(self.path / TOKEN_FILE, token)
            try:
                yield token
            finally:
                (self.path / TOKEN_FILE).unlink(missing_ok=True)

    def choose(self, name: str | None) -> None:
        """Let ``best`` lead to a point; None: to nothing."""
        link = self.path / BEST
        if name is None:
            link.unlink(missing_ok=True)
            return
        temporary = self.path / f"{TEMPORARY}{os.getpid()}-{BEST}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(POINTS) / name)
        temporary.replace(link)


def run_of(path: Path, settings: Settings) -> RunFolder:
    """The run folder of a point, with these settings."""
    if not is_run_folder(path):
        return RunFolder(path, settings)
    run = open_run(path)
    run.settings = settings
    return run


def is_sweep_folder(path: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (path / SWEEP_FILE).is_file()


def open_sweep(path: Path) -> SweepFolder:
    """Read an existing sweep.

    Raises:
        RunError: Its file is broken or of another format.
    """
    value = read_json(path / SWEEP_FILE, RunError, "sweep")
    try:
        if value["format"] != SWEEP_FORMAT:
            raise ValueError(f"format {value['format']}")
        result = {key: item for key, item in value.items() if key not in ("format", "plan", "failures")}
        failures = {name: Failure(**failure) for name, failure in value.get("failures", {}).items()}
        return SweepFolder(path, SweepPlan.from_json(value["plan"]), failures, result)
    except (KeyError, TypeError, AttributeError, ValueError) as reason:
        raise RunError(
            "could not open the sweep",
            where=str(path / SWEEP_FILE),
            value=f"of another format ({type(reason).__name__}: {reason})",
            expected=f"format {SWEEP_FORMAT}",
            hint="Use a new folder.",
        ) from None


def check_new(path: Path) -> None:
    """See that a folder holds nothing that a sweep might write over.

    Raises:
        RunError: It has other files in it, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise RunError("could not start the sweep", where=str(path), value="a file", expected="a folder")
    own = {LOCK_FILE, TOKEN_FILE}
    others = [item.name for item in path.iterdir() if item.name not in own] if path.is_dir() else []
    others = [name for name in others if not name.startswith(TEMPORARY)]
    if others:
        raise RunError(
            "could not start the sweep",
            where=str(path),
            value=f"a folder with other files ({', '.join(sorted(others)[:3])} …)",
            expected="a sweep folder, an empty one or none",
            hint="Give another --out.",
        )
