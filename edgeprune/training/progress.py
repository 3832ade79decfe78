"""What a training tells while it runs and when it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

INTERVAL_S = 0.1


@dataclass(frozen=True)
class Progress:
    """Where a training stands; handed to ``on_progress`` about ten times a second and after each epoch.

    Attributes:
        phase: What is being trained, e.g. ``"train"`` or ``"proximal-ns"``.
        epoch: Running epoch, from 1.
        epochs: Number of epochs.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        images_per_s: Rate of this epoch's training steps.
        seconds_left: Estimated, validation included.
        loss: Mean over this epoch so far.
        objective: ``loss`` plus the penalty now; None without a penalty.
        sparsity: Share of the scheme's variables at exactly 0; None without a scheme.
        val_accuracy: Top-1 in 0..1 after the last whole epoch.
        macs_ratio: MACs that would remain if what is at 0 after the last whole epoch were cut, to dense;
            None: not known.
        lr: Learning rate of the last step.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    seconds_left: float
    loss: float
    objective: float | None
    sparsity: float | None
    val_accuracy: float | None
    macs_ratio: float | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Epoch:
    """One whole epoch: ``lr`` is that of its last step; see `Progress` for the others."""

    epoch: int
    lr: float
    loss: float
    objective: float | None
    sparsity: float | None
    val_accuracy: float
    duration_s: float
    images_per_s: float = 0.0
    macs_ratio: float | None = None


@dataclass(frozen=True)
class History:
    """What a training did.

    Attributes:
        start_val_accuracy: Of the weights as they were given; None if there was nothing to train.
        epochs: Every epoch in order.
        chosen_epoch: The epoch whose weights the network has now; 0: those that were given.
        val_accuracy: Of these weights; None if there was nothing to train.
    """

    start_val_accuracy: float | None
    epochs: tuple[Epoch, ...]
    chosen_epoch: int
    val_accuracy: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON."""
        return asdict(self)


class Reporter:
    """Calls ``on_progress`` at most every ``interval_s``, and after each epoch."""

    def __init__(
        self,
        phase: str,
        epochs: int,
        steps: int,
        steps_before: int,
        penalty: Callable[[], float] | None,
        sparsity: Callable[[], float] | None,
        on_progress: Callable[[Progress], None] | None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.phase, self.epochs, self.steps, self.steps_before = phase, epochs, steps, steps_before
        self.penalty, self.sparsity, self.on_progress = penalty, sparsity, on_progress
        self.interval_s = interval_s
        self.started, self.told = perf_counter(), -math.inf

    def due(self) -> bool:
        """Whether the last report is old enough; if so, this moment counts as that of the next."""
        now = perf_counter()
        if now - self.told < self.interval_s:
            return False
        self.told = now
        return True

    def tell(
        self,
        epoch: int,
        step: int,
        *,
        images: int,
        loss: float,
        epoch_s: float,
        lr: float,
        val_accuracy: float | None,
        macs_ratio: float | None,
        ended: bool = False,
    ) -> None:
        """Report.

        Args:
            epoch: From 0.
            step: Steps done in this epoch.
            images: Images seen in this epoch.
            loss: Mean over them.
            epoch_s: Time that they took.
            lr: Learning rate of the last step.
            val_accuracy: After the last whole epoch.
            macs_ratio: Likewise.
            ended: The epoch is whole: a look at the clock belongs to it.
        """
        if self.on_progress is None:
            return
        if ended:
            self.told = perf_counter()
        done = epoch * self.steps + step - self.steps_before
        left = (self.epochs - epoch) * self.steps - step
        self.on_progress(
            Progress(
                phase=self.phase,
                epoch=epoch + 1,
                epochs=self.epochs,
                step=step,
                steps=self.steps,
                images_per_s=images / max(epoch_s, 1e-9),
                seconds_left=(self.told - self.started) * left / max(done, 1),
                loss=loss,
                objective=loss + self.penalty() if self.penalty is not None else None,
                sparsity=self.sparsity() if self.sparsity is not None else None,
                val_accuracy=val_accuracy,
                macs_ratio=macs_ratio,
                lr=lr,
            )
        )
