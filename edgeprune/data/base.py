"""The nouns of a data set: ``Data``, its ``Loader`` and its ``Normalization``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from edgeprune.errors import DataError, UsageError

PROBLEM = "could not load the data set"


@dataclass(frozen=True)
class Normalization:
    """How pixels in 0..1 become a network's input: ``(pixel - mean) / std`` per channel.

    The default is ImageNet's, which the public CIFAR checkpoints were trained with as well.

    Raises:
        DataError: The lengths differ, or a value is not finite, or a std is not positive.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if (
            not self.mean
            or len(self.mean) != len(self.std)
            or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            or min(self.std) <= 0
        ):
            raise DataError(
                "could not normalise images",
                where="the normalization",
                value=f"mean {self.mean}, std {self.std}",
                expected="one finite mean and one positive std per channel",
            )


@runtime_checkable
class UserLoader(Protocol):
    """The least that a loader must have.

    Its batches are (images (N, C, H, W) float32 normalised, labels (N,) int64).
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go over the split once."""
        ...

    def __len__(self) -> int:
        """Number of batches."""
        ...

    @property
    def samples(self) -> int:
        """Number of images in one pass."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Fix the order and the augmentation of the next pass: they depend on (seed, epoch) alone."""
        ...


@runtime_checkable
class Loader(UserLoader, Protocol):
    """A loader that can be split among processes, start in the middle of a pass, and feed a device.

    ``load_data`` gives these, also for a function of the user's whose loaders have less.
    """

    def shard(self, rank: int, ranks: int) -> Self:
        """The part of one of several processes: a contiguous part of every batch, see ``part_of``.

        All ranks' parts of a batch, one after the other, are the batch of a single process, images and
        augmentation included. ``len``, ``samples`` and the batch size stay those of the whole. A batch of
        fewer images than ranks gives some ranks an empty one, (0, C, H, W): every rank takes as many steps.
        This loader stays as it is; of a loader that is a part itself, it is again the part of the whole.
        """
        ...

    def skip_to(self, step: int) -> int:
        """Let the next pass, and no later one, begin with this batch (from 0); what follows is unchanged.

        Returns:
            The batch that it will begin with: 0 if it cannot leave any out. The caller drops those between.
        """
        ...

    def on(self, device: torch.device | str) -> Self:
        """The same batches on a device. This loader stays as it is."""
        ...


def part_of(count: int, rank: int, ranks: int) -> slice:
    """Which of a batch's images are one rank's: contiguous, and the ranks' numbers differ by one at most.

    Args:
        count: Images of the batch.
        rank: From 0.
        ranks: Number of processes.

    Raises:
        UsageError: There is no such rank.

    Example:
        >>> [part_of(5, rank, 2) for rank in range(2)]
        [slice(0, 2, None), slice(2, 5, None)]
    """
    if not 0 <= rank < ranks:
        raise UsageError(
            "could not split a batch among processes",
            where="rank",
            value=f"{rank} of {ranks}",
            expected="from 0 to below the number of ranks",
        )
    return slice(count * rank // ranks, count * (rank + 1) // ranks)


def first_step(step: int, steps: int) -> int:
    """``step``, if a pass of ``steps`` batches can begin there; at ``steps`` it is empty.

    Raises:
        UsageError: It cannot.
    """
    if not 0 <= step <= steps:
        raise UsageError(
            "could not start in the middle of an epoch",
            where="the first step",
            value=step,
            expected=f"from 0 to {steps}, the batches of an epoch",
        )
    return step


@dataclass(frozen=True)
class Data:
    """A data set, ready for use.

    Attributes:
        name: As given, e.g. ``"digits"``.
        train: Shuffled, augmented batches.
        val: For every choice (checkpoint, threshold). Cut from the training set where the set has no
            validation part of its own.
        test: Never used for a choice.
        calib: Class-balanced, not augmented, from the training part.
        example: One input (1, C, H, W), normalised.
        classes: Class names.
        normalization: What was applied to pixels in 0..1.
        identity: SHA-256 over the raw data and the split, hex.
    """

    name: str
    train: Loader
    val: Loader
    test: Loader
    calib: Loader
    example: Tensor
    classes: tuple[str, ...]
    normalization: Normalization
    identity: str

    def on(self, device: torch.device | str) -> Data:
        """The same data, its batches on a device; ``example`` stays on the CPU.

        Images in memory move there for good, each split's own, and are augmented there; others are decoded
        on the CPU, and copied while the batch before is in use. The images are the same on every device.

        Example:
            >>> from edgeprune.data import load_data
            >>> next(iter(load_data("digits").on("cpu").val))[0].device
            device(type='cpu')
        """
        from edgeprune.data.completing import completed

        parts = ("train", "val", "test", "calib")
        moved: dict[str, Any] = {part: completed(getattr(self, part)).on(device) for part in parts}
        return replace(self, **moved)
