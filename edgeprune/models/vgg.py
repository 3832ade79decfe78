"""VGG with batch norm for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from edgeprune.models.layers import conv3x3, initialise, pooled

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Per depth, the convolutions of each stage; a pooling stands between stages."""


class VGG(nn.Module):
    """VGG-16/19 as network slimming (Liu et al. 2017) prunes it: one linear layer after the convolutions.

    Args:
        depth: 16 or 19.
        num_classes: Rows of the last layer.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage, (channels, convolutions) in enumerate(zip(CHANNELS, CONVOLUTIONS[depth], strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [conv3x3(in_channels, channels), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                in_channels = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        logits: Tensor = self.classifier(pooled(self.features(x)))
        return logits
