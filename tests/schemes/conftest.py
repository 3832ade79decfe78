from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgeprune.channels import ChannelGroup, Member
from edgeprune.data import Data
from tests.training.fakes import make_data


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
    return make_data(contrast=1.0)


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture
def groups() -> tuple[ChannelGroup, ...]:
    return make_groups()
