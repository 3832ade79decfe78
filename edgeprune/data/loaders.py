"""Loaders whose order and augmentation depend on (seed, epoch) alone: a resumed training replays exactly."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from edgeprune.data.base import Normalization, first_step, part_of
from edgeprune.data.copying import copied
from edgeprune.data.pixels import crop_and_flip, cut_out, normalise
from edgeprune.data.splits import seeded
from edgeprune.errors import UsageError

RESIDENT_BYTES = 4 << 30
"""A split of more pixels than this stays in the memory of the CPU, and its batches are copied one by one."""


class SplitLoader(ABC):
    """What the loaders share: which images, in which order.

    A training pass is shuffled, and a last batch of one image is left out of it: batch norm cannot be
    trained on a single sample. Every other pass keeps the order of ``positions`` and is complete.

    All that is random is drawn on the CPU from (seed, epoch), for whole batches: a rank's part of a batch, a
    pass that starts in its middle and a pass on another device see the same images.

    Args:
        labels: Of the whole data set, int64 (images,).
        positions: Of this split's images in the data set, int64 (samples,).
        batch_size: Images per batch, all ranks together; the last batch may be smaller.
        normalization: Applied to pixels in 0..1.
        seed: Of the order and the augmentation.
        training: Shuffle and augment.
        cutout: Side in pixels of a square of each training image that is set to the mean colour; 0: none.

    Raises:
        UsageError: The batch size or the number of images is below 2 (below 1 when not training), or the
            square is smaller than nothing.
    """

    def __init__(
        self,
        labels: Tensor,
        positions: Tensor,
        *,
        batch_size: int,
        normalization: Normalization,
        seed: int,
        training: bool,
        cutout: int,
    ) -> None:
        least = 2 if training else 1
        for what, number, lowest in (
            ("batch_size", batch_size, least),
            ("the number of images", len(positions), least),
            ("cutout", cutout, 0),
        ):
            if number < lowest:
                raise UsageError(
                    "could not make batches", where=what, value=number, expected=f"at least {lowest}"
                )
        self.labels, self.positions = labels, positions
        self.batch_size, self.normalization = batch_size, normalization
        self.seed, self.training, self.cutout = seed, training, cutout
        self.epoch, self.first = 0, 0
        self.rank, self.ranks = 0, 1
        self.device: torch.device | None = None  # where batches are copied to; None: they are there

    @property
    def samples(self) -> int:
        """Number of images in one pass, all ranks together."""
        total = len(self.positions)
        return total - 1 if self.training and total % self.batch_size == 1 else total

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Fix the order and the augmentation of the next pass."""
        self.epoch = epoch

    def shard(self, rank: int, ranks: int) -> Self:
        """The part of one of several processes, see ``Loader.shard``.

        Raises:
            UsageError: There is no such rank.
        """
        part_of(0, rank, ranks)
        part = copy.copy(self)
        part.rank, part.ranks = rank, ranks
        return part

    def skip_to(self, step: int) -> int:
        """Let the next pass begin with this batch; no image before it is read.

        Returns:
            ``step``.

        Raises:
            UsageError: There is no such batch.
        """
        self.first = first_step(step, len(self))
        return step

    def on(self, device: torch.device | str) -> Self:
        """The same batches on a device, normalised there, see ``Loader.on``."""
        moved = copy.copy(self)
        place = torch.device(device)
        moved.device = place if place.type != "cpu" else None
        return moved

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, self.first = self.first, 0
        generator = seeded(self.seed, f"epoch {self.epoch}")
        order = self.positions
        if self.training:
            order = order[torch.randperm(len(order), generator=generator)]
        centres = None
        if self.training and self.cutout:
            # A generator of its own: with and without cutout, crops and flips are the same.
            centres = torch.rand(2, self.samples, generator=seeded(self.seed, f"cutout {self.epoch}"))
        batches = self._batches(torch.split(order[: self.samples], self.batch_size), generator, first)
        batches = batches if self.device is None else copied(batches, self.device)
        return self._finished(batches, first, centres)

    def _finished(
        self, batches: Iterator[tuple[Tensor, Tensor]], first: int, centres: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalise and cut out, where the pixels are; ``centres``: of the whole pass, (2, samples)."""
        for step, (pixels, labels) in enumerate(batches, first):
            images = normalise(pixels, self.normalization)
            if centres is not None:
                centres = centres.to(images.device)
                images = cut_out(images, self.cutout, centres[:, self._columns(step)])
            yield images, labels

    def _columns(self, step: int) -> slice:
        """Where this rank's images of a batch stand in the order of the whole pass."""
        start = step * self.batch_size
        part = part_of(min(self.batch_size, self.samples - start), self.rank, self.ranks)
        return slice(start + part.start, start + part.stop)

    @abstractmethod
    def _batches(
        self, batches: tuple[Tensor, ...], generator: torch.Generator, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's pixels and labels of the batches from ``first`` on, not yet normalised.

        Args:
            batches: Positions of the images of each whole batch of the pass.
            generator: What is random comes from it, the same whatever the rank and ``first``.
            first: Number of the first batch that is wanted.
        """


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
        cutout: Side in pixels of a square of each training image that is set to the mean colour; 0: none.

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
        cutout: int = 0,
    ) -> None:
        positions = torch.arange(len(images)) if positions is None else positions
        super().__init__(
            labels,
            positions,
            batch_size=batch_size,
            normalization=normalization,
            seed=seed,
            training=training,
            cutout=cutout,
        )
        self.images, self.pad, self.flip = images, pad, flip

    def on(self, device: torch.device | str) -> Self:
        """The same batches, made on a device: this split's images live there from now on.

        A split of more than 4 GiB stays where it is, and its batches are copied.
        """
        place = self.images[:0].to(device).device  # with its number, where the name has none
        if place != self.images.device and len(self.positions) * self.images[:1].nbytes > RESIDENT_BYTES:
            return super().on(place)
        moved = copy.copy(self)
        moved.device = None
        if place != self.images.device:
            moved.images = self.images[self.positions].to(place)
            moved.labels = self.labels[self.positions].to(place)
            moved.positions = torch.arange(len(self.positions))
        return moved

    def _batches(
        self, batches: tuple[Tensor, ...], generator: torch.Generator, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        augmented = self.training and (self.pad > 0 or self.flip)
        order = torch.cat(batches)[None]
        if augmented:
            order = torch.cat([order, self._draws(batches, generator)])
        order = order.to(self.images.device)  # one small copy for the whole pass
        for step in range(first, len(batches)):
            position, *draws = order[:, self._columns(step)]
            pixels = self.images.index_select(0, position)  # 20 times as fast as [position] on a CPU
            yield crop_and_flip(pixels, self.pad, *draws) if augmented else pixels, self.labels[position]

    def _draws(self, batches: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Of every image of the pass: top, left and mirrored, int64 (3, samples)."""
        draws = []
        for batch in batches:  # batch by batch, as they were always drawn: a number's place counts
            corner, mirrored = torch.zeros(2, len(batch), dtype=torch.int64), torch.zeros(len(batch))
            if self.pad:
                corner = torch.randint(2 * self.pad + 1, (2, len(batch)), generator=generator)
            if self.flip:
                mirrored = torch.rand(len(batch), generator=generator) < 0.5
            draws.append(torch.cat([corner, mirrored.long()[None]]))
        return torch.cat(draws, dim=1)
