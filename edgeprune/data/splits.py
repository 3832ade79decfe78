"""Disjoint splits, fixed by a seed, and the identity of a split data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import DataError

CALIB_IMAGES = 512
CALIB_IMAGES_PER_CLASS = 2  # at least: one image of a class says nothing about how the class varies


@dataclass(frozen=True)
class Splits:
    """Positions (int64) of each split's images in the data set; ``calib`` is a part of ``train``."""

    train: Tensor
    val: Tensor
    test: Tensor
    calib: Tensor


def seeded(seed: int, stream: str) -> torch.Generator:
    """A CPU generator that depends on (seed, stream) alone, e.g. ``seeded(0, "epoch 3")``."""
    digest = hashlib.sha256(f"{seed} {stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def _by_class(labels: Tensor, positions: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The positions of each class that occurs, in random order."""
    shuffled = positions[torch.randperm(len(positions), generator=generator)]
    counts = torch.bincount(labels[positions])
    order = labels[shuffled].argsort(stable=True)
    return list(torch.split(shuffled[order], counts[counts > 0].tolist()))


def cut(labels: Tensor, positions: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut a share of every class, at least one image each: (rest, part), both in ascending order.

    Raises:
        DataError: Nothing of a class would be left.
    """
    classes = _by_class(labels, positions, generator)
    counts = [max(1, round(share * len(members))) for members in classes]
    if any(count >= len(members) for count, members in zip(counts, classes, strict=True)):
        smallest = min(classes, key=len)
        raise DataError(
            "could not cut a validation or test part from the training images",
            where=f"class number {int(labels[smallest[0]])}",
            value=f"{len(smallest)} images to cut from",
            expected="at least 2",
            hint="Add images of this class, or give the missing part as a folder of its own.",
        )
    pairs = list(zip(classes, counts, strict=True))
    rest = torch.cat([members[count:] for members, count in pairs]).sort().values
    part = torch.cat([members[:count] for members, count in pairs]).sort().values
    return rest, part


def balanced(labels: Tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
    """The same number of each class, class after class (0, 1, 2, ..., 0, 1, 2, ...), so batches balance too.

    About ``CALIB_IMAGES`` in all; fewer where the smallest class has fewer.
    """
    classes = _by_class(labels, positions, generator)
    wanted = max(CALIB_IMAGES_PER_CLASS, CALIB_IMAGES // len(classes))
    each = min(wanted, *(len(members) for members in classes))
    return torch.stack([members[:each] for members in classes], dim=1).flatten()


def identity(classes: tuple[str, ...], content: Iterable[Any], labels: Tensor, splits: Splits) -> str:
    """SHA-256 over class names, raw content (objects with a buffer), labels and split, in hex."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part in content:
        digest.update(part)
    for positions in (labels, splits.train, splits.val, splits.test, splits.calib):
        digest.update(f"{len(positions)}:".encode())
        digest.update(positions.contiguous().numpy().data)
    return digest.hexdigest()
