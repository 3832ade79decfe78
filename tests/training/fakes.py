"""Small data and a small network for what trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgeprune.data import Data, Normalization

CLASSES = 3


@dataclass
class TensorLoader:
    images: Tensor
    labels: Tensor
    shuffle: bool = False
    epoch: int = 0
    epochs_seen: list[int] = field(default_factory=list)
    batch_size: int = 16

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(self.batch_size):
            yield self.images[rows], self.labels[rows]

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    @property
    def samples(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.epochs_seen.append(epoch)


class Forbidden:
    """A split that must not be read."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("the test split was read")


def blobs(samples: int, seed: int, *, shuffle: bool = False, contrast: float = 0.5) -> TensorLoader:
    """Three classes, each a fixed pattern in noise."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=draw)
    noise = torch.randn(samples, 3, 8, 8, generator=draw)
    return TensorLoader(patterns[labels] * contrast + noise, labels, shuffle)


def make_data(contrast: float = 0.5) -> Data:
    train = blobs(72, 1, shuffle=True, contrast=contrast)
    return Data(
        name="blobs",
        train=train,
        val=blobs(40, 2, contrast=contrast),
        test=Forbidden(),  # type: ignore[arg-type]
        calib=train,
        example=train.images[:1],
        classes=("a", "b", "c"),
        normalization=Normalization(),
        identity="blobs-1",
    )


def make_net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
