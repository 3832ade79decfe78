"""ResNet for 32x32 images with parameter-free shortcuts (option A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.models.layers import conv3x3, initialise, pooled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where channels double, the shortcut is every second pixel between zero channels.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.shrinks = in_channels != channels
        self.zero_channels = channels // 4  # on each side; a constant of the block, whatever is cut from x
        self.conv1 = conv3x3(in_channels, channels, stride=2 if self.shrinks else 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W), or half of H and W where channels double."""
        shortcut = x
        if self.shrinks:
            pad = self.zero_channels
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet-20/32/44/56/110 of He et al. 2015, section 4.2.

    Parameter names are those of the public checkpoints of akamaster/pytorch_resnet_cifar10.

    Args:
        depth: 6 n + 2 for n blocks per stage.
        num_classes: Rows of the last layer.

    Example:
        >>> import torch
        >>> CifarResNet(20)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(pooled(x))
        return logits


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))
