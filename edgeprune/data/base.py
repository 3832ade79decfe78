"""The nouns of a data set: ``Data``, its ``Loader`` and its ``Normalization``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from edgeprune.errors import DataError

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
class Loader(Protocol):
    """Batches of (images (N, C, H, W) float32 normalised, labels (N,) int64)."""

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
