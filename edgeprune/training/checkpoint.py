"""What a training has got to, in memory and in a file from which it goes on to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from edgeprune.errors import TrainingError
from edgeprune.files import replacing
from edgeprune.training.progress import Epoch, History

FORMAT = 1

Selection = Literal["best", "last"]


class Stateful(Protocol):
    """State that a hook changes and that must survive a restart, e.g. xi of proximal NS.

    The state at the start of training, settings included, tells one run's checkpoint from another's.
    """

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        ...


class Run:
    """What a training has got to: everything that a checkpoint holds.

    ``settings`` is a hash of all that decides the result; a checkpoint with another one is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Stateful | None,
        select: Selection,
        settings: str,
    ) -> None:
        self.model, self.optimizer, self.extra = model, optimizer, extra
        self.select, self.settings = select, settings
        self.start_accuracy: float | None = None
        self.records: list[Epoch] = []
        self.best: tuple[float, int] = (-1.0, 0)
        self.best_state: dict[str, Tensor] = {}

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the weights after the last whole epoch."""
        return self.records[-1].val_accuracy if self.records else self.start_accuracy

    def note_accuracy(self, accuracy: float) -> None:
        """Keep the weights if they are the best so far. On a tie the later ones: their rate was lower."""
        if not self.records:
            self.start_accuracy = accuracy
        if self.select == "best" and accuracy >= self.best[0]:
            self.best = (accuracy, len(self.records))
            self.best_state = {key: value.clone() for key, value in self.model.state_dict().items()}

    def finish(self) -> History:
        """Give the network the weights that were chosen."""
        accuracy, epoch = self.accuracy, len(self.records)
        if self.select == "best":
            accuracy, epoch = self.best
            self.model.load_state_dict(self.best_state)
        return History(self.start_accuracy, tuple(self.records), epoch, accuracy)

    def save(self, path: Path) -> None:
        """Write the checkpoint; the one before stays whole until the new one is."""
        state = {
            "format": FORMAT,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "extra": self.extra.state_dict() if self.extra is not None else None,
            "start_accuracy": self.start_accuracy,
            "records": [asdict(record) for record in self.records],
            "best": self.best,
            "best_state": self.best_state,
        }
        try:
            with replacing(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as reason:  # torch reports a full disk as RuntimeError
            raise TrainingError(
                "could not write the checkpoint",
                where=str(path),
                value=f"not writable ({reason})",
                expected="a file in a folder with free space",
            ) from reason

    def load(self, path: Path) -> bool:
        """Take over a checkpoint. False: there is none."""
        problem = "could not go on from the checkpoint"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            form, settings = state["format"], state["settings"]
        except Exception as reason:  # a broken file fails in the zip, pickle or tensor reader, each its way
            raise TrainingError(
                problem,
                where=str(path),
                value=f"broken ({type(reason).__name__})",
                expected="a checkpoint of edgeprune",
                hint="Delete it to start again.",
            ) from reason
        if (form, settings) != (FORMAT, self.settings):
            raise TrainingError(
                problem,
                where=str(path),
                value="of another training",
                expected="the same network, data, scheme and settings",
                hint="Delete it to start again.",
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.extra is not None:
            self.extra.load_state_dict(state["extra"])
        self.start_accuracy = state["start_accuracy"]
        self.records = [Epoch(**record) for record in state["records"]]
        self.best, self.best_state = state["best"], state["best_state"]
        return True


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state of tensors, lists of them and plain values."""
    sha256 = hashlib.sha256()
    for key, value in state.items():
        sha256.update(f"{key} ".encode())
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Tensor):
                sha256.update(f"{item.dtype} {tuple(item.shape)} ".encode())
                sha256.update(item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            else:
                sha256.update(f"{item!r} ".encode())
    return sha256.hexdigest()
