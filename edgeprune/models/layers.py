"""What the built-in networks share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width at stride 1; the norm beside it has the bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution; the norm beside it has the bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def pooled(x: Tensor) -> Tensor:
    """Mean over height and width: (N, C, H, W) -> (N, C), for whatever C is left."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def initialise(model: nn.Module) -> None:
    """Draw weights as He et al. 2015 do, by fan-out; norms start as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # torch's own fan-out forgets the groups, which leaves depthwise weights far too small.
            fan_out = module.out_channels // module.groups * module.weight[0, 0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
