"""Pre-activation ResNet with bottleneck blocks for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.models.layers import conv1x1, conv3x3, initialise, pooled

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each after its norm and ReLU.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the 3x3 convolution; the output has ``EXPANSION`` times as many.
        stride: Of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, EXPANSION * channels, H / stride, W / stride)."""
        shortcut: Tensor = self.shortcut(x)
        x = self.conv1(F.relu(self.bn1(x)))
        x = self.conv2(F.relu(self.bn2(x)))
        x = self.conv3(F.relu(self.bn3(x)))
        return x + shortcut


class PreactResNet(nn.Module):
    """ResNet-164 of He et al. 2016, as network slimming (Liu et al. 2017) prunes it.

    Args:
        depth: 9 n + 2 for n blocks per stage.
        num_classes: Rows of the last layer.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 9
        self.conv1 = conv3x3(3, 16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(64, 32, blocks, stride=2)
        self.layer3 = _stage(128, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(256)
        self.linear = nn.Linear(256, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(pooled(F.relu(self.bn(x))))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride)
    rest = (Bottleneck(EXPANSION * channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
