from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from edgeprune.data import Data, Normalization
from edgeprune.groups import ChannelGroup, Member


@dataclass
class TensorLoader:
    images: Tensor
    labels: Tensor
    shuffle: bool = False
    epoch: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(16):
            yield self.images[rows], self.labels[rows]

    def __len__(self) -> int:
        return -(-self.samples // 16)

    @property
    def samples(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Forbidden:
    """A split that must not be read."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("the test split was read")


def blobs(samples: int, seed: int, *, shuffle: bool = False) -> TensorLoader:
    """Three classes, each a fixed pattern in noise."""
    patterns = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (samples,), generator=draw)
    return TensorLoader(patterns[labels] + torch.randn(samples, 3, 8, 8, generator=draw), labels, shuffle)


def make_net(seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch norm and one without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        for norm in (net[1], net[4]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
        return net


def one_each(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((unit,) for unit in range(size))


def norm_members(key: str, size: int) -> tuple[Member, ...]:
    kinds = ("weight", "bias", "running_mean", "running_var")
    return tuple(Member(f"{key}.{kind}", 0, "out", one_each(size), kind) for kind in kinds)


def make_groups() -> tuple[ChannelGroup, ...]:
    """The groups of `make_net`, and a frozen one."""

    def group(name: str, size: int, norm: str | None, *consumers: str) -> ChannelGroup:
        members = [Member(f"{name}.weight", 0, "out", one_each(size))]
        if norm:
            members += norm_members(norm, size)
        else:
            members.append(Member(f"{name}.bias", 0, "out", one_each(size)))
        members += [Member(f"{consumer}.weight", 1, "in", one_each(size)) for consumer in consumers]
        closing = tuple(((f"{norm}.weight", unit),) if norm else None for unit in range(size))
        return ChannelGroup(name, size, tuple(members), None, closing)

    output = Member("10.weight", 0, "out", one_each(3))
    return (
        group("0", 6, "1", "3"),
        group("3", 8, "4", "6"),
        group("6", 4, None, "10"),
        ChannelGroup("10", 3, (output,), "the network's output", (None,) * 3),
    )


@pytest.fixture
def data() -> Data:
    train = blobs(72, 1, shuffle=True)
    return Data(
        name="blobs",
        train=train,
        val=blobs(40, 2),
        test=Forbidden(),  # type: ignore[arg-type]
        calib=train,
        example=train.images[:1],
        classes=("a", "b", "c"),
        normalization=Normalization(),
        identity="blobs-1",
    )


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture
def groups() -> tuple[ChannelGroup, ...]:
    return make_groups()
