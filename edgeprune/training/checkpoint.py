"""What a training has got to, in memory and as a checkpoint from which it goes on to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from edgeprune.errors import TrainingError
from edgeprune.training.averaging import WeightMean, copied, wearing
from edgeprune.training.checkpoint_files import FORMAT, Checkpoints
from edgeprune.training.progress import Epoch, History

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


@dataclass
class Tally:
    """What the running epoch has summed up. The tensors lie where the network does and are () each.

    Attributes:
        step: Steps done.
        images: Images seen.
        seconds: Time that they took, restarts left out.
        loss_sum: Of loss times images, float64.
        watch: Sum of losses and gradient norms: once not finite it stays so.
        good: Steps before ``watch`` was not finite, int64.
    """

    step: int
    images: int
    seconds: float
    loss_sum: Tensor
    watch: Tensor
    good: Tensor

    @staticmethod
    def empty(device: torch.device) -> Tally:
        """Before the first step."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return Tally(0, 0, 0.0, zero, zero.clone(), zero.to(torch.int64))

    def loss(self) -> float:
        """Mean over the images."""
        return float(self.loss_sum) / self.images


class Run:
    """What a training has got to: everything that a checkpoint holds.

    ``settings`` is a hash of all that decides the result; a checkpoint with another one is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Stateful | None,
        mean: WeightMean | None,
        select: Selection,
        settings: str,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.extra, self.mean = model, optimizer, extra, mean
        self.select, self.settings, self.device = select, settings, device
        self.start_accuracy: float | None = None
        self.records: list[Epoch] = []
        self.best: tuple[float, int] = (-1.0, 0)
        self.best_state: dict[str, Tensor] = {}
        self.tally = Tally.empty(device)
        self.saved_at = ""

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
            self.best_state = copied(self.model.state_dict())

    def epochs_without_progress(self) -> int:
        """Epochs since the validation accuracy was last higher than ever before."""
        accuracies = [self.start_accuracy or 0.0, *(record.val_accuracy for record in self.records)]
        return len(accuracies) - 1 - accuracies.index(max(accuracies))

    def finish(self) -> History:
        """Give the network the weights that were chosen."""
        accuracy, epoch = self.accuracy, len(self.records)
        if self.select == "best":
            accuracy, epoch = self.best
            self.model.load_state_dict(self.best_state)
        elif self.mean is not None:
            with wearing(self.mean):
                chosen = copied(self.model.state_dict())
            self.model.load_state_dict(chosen)
        return History(self.start_accuracy, tuple(self.records), epoch, accuracy)

    def place(self) -> str:
        """Where it is, for people; both numbers count what is done."""
        return f"epoch {len(self.records) + 1}, step {self.tally.step}"

    def save(self, files: Checkpoints) -> None:
        """Write the checkpoint."""
        files.write(
            {
                "settings": self.settings,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "extra": self.extra.state_dict() if self.extra is not None else None,
                "mean": self.mean.state_dict() if self.mean is not None else None,
                "start_accuracy": self.start_accuracy,
                "records": [asdict(record) for record in self.records],
                "best": self.best,
                "best_state": self.best_state,
                "tally": vars(self.tally),
            }
        )
        self.saved_at = f"{files.path} ({self.place()})"

    def load(self, files: Checkpoints) -> bool:
        """Take over the newest checkpoint. False: there is none."""
        state = files.read()
        if state is None:
            return False
        if (state["format"], state["settings"]) != (FORMAT, self.settings):
            raise TrainingError(
                "could not go on from the checkpoint",
                where=str(files.there()[0]),
                value="of another training",
                expected="the same network, data, scheme and settings",
                hint=files.how_to_start_again(),
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.extra is not None:
            self.extra.load_state_dict(state["extra"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.start_accuracy = state["start_accuracy"]
        self.records = [Epoch(**record) for record in state["records"]]
        self.best, self.best_state = tuple(state["best"]), state["best_state"]
        self.tally = Tally(**state["tally"])
        for name in ("loss_sum", "watch", "good"):
            setattr(self.tally, name, state["tally"][name].to(self.device))
        self.saved_at = f"{files.path} ({self.place()})"
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
