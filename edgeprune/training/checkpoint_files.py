"""Checkpoint files: written atomically, the last few kept, a broken newest one replaced by the one before."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune.errors import CheckpointWarning, TrainingError, UsageError
from edgeprune.files import replacing

FORMAT = 2


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a training is written down. None of it changes what the training gives.

    Attributes:
        path: The newest checkpoint. Those before it lie beside it: ``train.checkpoint``,
            ``train.1.checkpoint`` …, the higher the number the older.
        steps: Write one after so many steps of an epoch; 0: by time alone. One is written after each epoch
            and on SIGINT and SIGTERM in any case.
        seconds: Write one when the last is so old.
        keep: Checkpoints that are kept.

    Raises:
        UsageError: A number is out of range.
    """

    path: Path
    steps: int = 0
    seconds: float = 60.0
    keep: int = 2

    def __post_init__(self) -> None:
        for name, value, least in (("steps", self.steps, 0), ("keep", self.keep, 1)):
            if value < least:
                raise UsageError(
                    "could not keep checkpoints", where=name, value=value, expected=f"{least} or more"
                )

    def beside(self, name: str) -> Checkpoints:
        """The same for another training: ``score.checkpoint`` becomes ``score.NAME.checkpoint``."""
        path = self.path.with_name(f"{self.path.stem}.{name}{self.path.suffix}")
        return Checkpoints(path, self.steps, self.seconds, self.keep)

    def file(self, age: int) -> Path:
        """The newest (0) or one before it."""
        return self.path.with_name(f"{self.path.stem}.{age}{self.path.suffix}") if age else self.path

    def there(self) -> list[Path]:
        """The files that exist, the newest first."""
        return [path for age in range(self.keep) if (path := self.file(age)).exists()]

    def how_to_start_again(self) -> str:
        """A hint: all of them must go, else the one before the newest is taken."""
        older = ", ".join(path.name for path in self.there()[1:])
        return f"Delete it and {older} to start again." if older else "Delete it to start again."

    def write(self, state: dict[str, Any]) -> None:
        """Write the newest; the ones before stay whole until it is.

        Raises:
            TrainingError: The disk is full or the folder not writable. No checkpoint is lost.
        """
        try:
            with replacing(self.path) as temporary:
                torch.save({"format": FORMAT, **state}, temporary)
                # Now it is whole: a kill between these renames leaves a checkpoint that `read` finds.
                for age in reversed(range(self.keep - 1)):
                    if self.file(age).exists():
                        self.file(age).replace(self.file(age + 1))
            _sync_folder(self.path.parent)
        except (OSError, RuntimeError) as reason:  # torch reports a full disk as RuntimeError
            raise TrainingError(
                "could not write the checkpoint",
                where=str(self.path),
                value=f"not writable ({reason})",
                expected="a file in a folder with free space",
                hint="Make room and run the same again: it goes on from the checkpoint before.",
            ) from reason

    def read(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None: there is none at all.

        A broken one is dropped for the one before it, with a `CheckpointWarning`.

        Raises:
            TrainingError: All that are there are broken.
        """
        found = self.there()
        broken = ""
        for path in found:
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                _ = state["format"], state["settings"]
            except (
                Exception
            ) as reason:  # a broken file fails in the zip, pickle or tensor reader, each its way
                broken = broken or type(reason).__name__
                continue
            if path != found[0]:
                warnings.warn(
                    f"the newest checkpoint {found[0]} is broken ({broken}): training goes on from the one "
                    "before it",
                    CheckpointWarning,
                    stacklevel=2,
                )
                path.replace(self.path)  # in place of the broken one, which must not push out a good one
            return state
        if found:
            raise TrainingError(
                "could not go on from the checkpoint",
                where=str(found[0]),
                value=f"broken ({broken})",
                expected="a checkpoint of edgeprune",
                hint=self.how_to_start_again(),
            )
        return None


def _sync_folder(folder: Path) -> None:
    """Have the renames on the disk, too, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
