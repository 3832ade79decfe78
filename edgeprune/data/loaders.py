"""Loaders whose order and augmentation depend on (seed, epoch) alone: a resumed training replays exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.data.base import Normalization
from edgeprune.data.splits import seeded
from edgeprune.errors import UsageError


class SplitLoader(ABC):
    """What the loaders share: which images, in which order.

    A training pass is shuffled, and a last batch of one image is left out of it: batch norm cannot be
    trained on a single sample. Every other pass keeps the order of ``positions`` and is complete.

    Args:
        labels: Of the whole data set, int64 (images,).
        positions: Of this split's images in the data set, int64 (samples,).
        batch_size: Images per batch; the last batch may be smaller.
        seed: Of the order and the augmentation.
        training: Shuffle and augment.

    Raises:
        UsageError: The batch size or the number of images is below 2 (below 1 when not training).
    """

    def __init__(
        self, labels: Tensor, positions: Tensor, *, batch_size: int, seed: int, training: bool
    ) -> None:
        least = 2 if training else 1
        for what, number in (("batch_size", batch_size), ("the number of images", len(positions))):
            if number < least:
                raise UsageError(
                    "could not make batches", where=what, value=number, expected=f"at least {least}"
                )
        self.labels, self.positions = labels, positions
        self.batch_size, self.seed, self.training = batch_size, seed, training
        self.epoch = 0

    @property
    def samples(self) -> int:
        """Number of images in one pass."""
        total = len(self.positions)
        return total - 1 if self.training and total % self.batch_size == 1 else total

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Fix the order and the augmentation of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = seeded(self.seed, f"epoch {self.epoch}")
        order = self.positions
        if self.training:
            order = order[torch.randperm(len(order), generator=generator)]
        return self._batches(torch.split(order[: self.samples], self.batch_size), generator)

    @abstractmethod
    def _batches(
        self, batches: tuple[Tensor, ...], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels at these positions; what is random comes from the generator."""


class TensorLoader(SplitLoader):
    """Batches from images that are in memory.

    Augmentation works on whole batches: a random crop out of the image with ``pad`` black pixels around
    it, then a horizontal flip of every second image on average.

    Args:
        images: The whole data set (images, C, H, W): uint8, or float32 in 0..1. Not copied.
        labels: int64 (images,).
        positions: Of this split's images, int64 (samples,); None: all.
        batch_size: Images per batch.
        normalization: Applied to pixels in 0..1.
        seed: Of the order and the augmentation.
        training: Shuffle and augment.
        pad: Largest shift by the random crop, in pixels; 0: no crop.
        flip: Flip images at random.

    Raises:
        UsageError: The batch size or the number of images is too small.

    Example:
        >>> loader = TensorLoader(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5), batch_size=2,
        ...                       normalization=Normalization())
        >>> [len(labels) for _, labels in loader]
        [2, 2, 1]
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        positions: Tensor | None = None,
        *,
        batch_size: int,
        normalization: Normalization,
        seed: int = 0,
        training: bool = False,
        pad: int = 0,
        flip: bool = False,
    ) -> None:
        positions = torch.arange(len(images)) if positions is None else positions
        super().__init__(labels, positions, batch_size=batch_size, seed=seed, training=training)
        self.images, self.pad, self.flip = images, pad, flip
        self.normalization = normalization

    def _batches(
        self, batches: tuple[Tensor, ...], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in batches:
            pixels = self.images[chosen]
            if self.training:
                pixels = self._augment(pixels, generator)
            yield normalise(pixels, self.normalization), self.labels[chosen]

    def _augment(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = pixels.shape
        if self.pad:
            top, left = torch.randint(2 * self.pad + 1, (2, count), generator=generator)
            # A view of every possible crop, (N, C, top, left, H, W); indexing copies only the chosen ones.
            crops = F.pad(pixels, (self.pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            pixels = crops[torch.arange(count), :, top, left]
        if self.flip:
            flipped = torch.rand(count, generator=generator) < 0.5
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(3), pixels)
        return pixels


def normalise(pixels: Tensor, normalization: Normalization) -> Tensor:
    """Pixels (N, C, H, W), uint8 or float in 0..1, as a network's input in float32."""
    full = 255.0 if pixels.dtype == torch.uint8 else 1.0
    mean = torch.tensor(normalization.mean).view(-1, 1, 1)
    std = torch.tensor(normalization.std).view(-1, 1, 1)
    return pixels.to(torch.float32, copy=True).mul_(1 / (full * std)).sub_(mean / std)
