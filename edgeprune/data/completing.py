"""A loader with all that training asks for, out of one that has the least."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from edgeprune.data.base import Loader, UserLoader, first_step, part_of
from edgeprune.data.copying import copied


def completed(loader: UserLoader) -> Loader:
    """The loader itself if it lacks nothing of ``Loader``."""
    return loader if isinstance(loader, Loader) else Completed(loader)


class Completed:
    """Makes up for what a loader lacks of ``Loader``.

    Without ``shard`` its whole batches are cut, without ``on`` they are copied, and without ``skip_to`` every
    pass begins at its start.

    Args:
        loader: The user's.
    """

    def __init__(self, loader: UserLoader) -> None:
        self.loader = loader
        self.rank, self.ranks = 0, 1
        self.device: torch.device | None = None  # where batches are copied to; None: nowhere

    @property
    def samples(self) -> int:
        """Number of images in one pass."""
        return self.loader.samples

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Fix the order and the augmentation of the next pass."""
        self.loader.set_epoch(epoch)

    def shard(self, rank: int, ranks: int) -> Self:
        """The part of one of several processes, see ``Loader.shard``.

        Raises:
            UsageError: There is no such rank.
        """
        part_of(0, rank, ranks)
        part = copy.copy(self)
        if hasattr(self.loader, "shard"):
            part.loader = self.loader.shard(rank, ranks)
        else:
            part.rank, part.ranks = rank, ranks
        return part

    def skip_to(self, step: int) -> int:
        """Let the next pass begin with this batch if the user's loader can, see ``Loader.skip_to``.

        Raises:
            UsageError: There is no such batch.
        """
        first_step(step, len(self))
        if not hasattr(self.loader, "skip_to"):
            return 0
        begins: int | None = self.loader.skip_to(step)
        return step if begins is None else begins

    def on(self, device: torch.device | str) -> Self:
        """The same batches on a device, see ``Loader.on``."""
        moved, place = copy.copy(self), torch.device(device)
        if hasattr(self.loader, "on"):
            moved.loader = self.loader.on(place)
        else:
            moved.device = place if place.type != "cpu" else None
        return moved

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._parts() if self.device is None else copied(self._parts(), self.device)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._whole():
            part = part_of(len(labels), self.rank, self.ranks)
            yield images[part], labels[part]

    def _whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The user's batches."""
        return iter(self.loader)
