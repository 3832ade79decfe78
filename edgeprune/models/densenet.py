"""DenseNet without bottlenecks for 32x32 images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.models.layers import conv1x1, conv3x3, initialise, pooled


class DenseLayer(nn.Module):
    """Appends ``growth`` channels to its input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, in_channels + growth, H, W)."""
        return torch.cat([x, self.conv1(F.relu(self.bn1(x)))], dim=1)


class Transition(nn.Module):
    """Mixes channels and halves height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, channels, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet-40 (k=12) of Huang et al. 2017, as network slimming (Liu et al. 2017) prunes it.

    Like theirs it starts with 2 k channels and its transitions do not compress.

    Args:
        depth: 3 n + 4 for n layers per block.
        growth: Channels that each layer adds (k).
        num_classes: Rows of the last layer.
    """

    def __init__(self, depth: int, growth: int, num_classes: int = 10) -> None:
        super().__init__()
        layers = (depth - 4) // 3
        channels = 2 * growth
        self.conv1 = conv3x3(3, channels)
        self.dense1 = _block(channels, growth, layers)
        channels += growth * layers
        self.trans1 = Transition(channels)
        self.dense2 = _block(channels, growth, layers)
        channels += growth * layers
        self.trans2 = Transition(channels)
        self.dense3 = _block(channels, growth, layers)
        channels += growth * layers
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        logits: Tensor = self.linear(pooled(F.relu(self.bn(x))))
        return logits


def _block(channels: int, growth: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(channels + growth * layer, growth) for layer in range(layers)))
