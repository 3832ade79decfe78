"""MobileNet-V2 for 32x32 images."""

from __future__ import annotations

from torch import nn

from edgeprune.models.layers import initialise

# Expansion, channels, blocks, stride of each stage: Sandler et al. 2018, table 2, where the stem and the
# second stage halve the image as well. At 32x32 that would leave a single pixel.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_32(num_classes: int = 10) -> nn.Module:
    """MobileNet-V2 of torchvision with its parameter names, but strides for 32x32 images and no dropout."""
    from torchvision.models import MobileNetV2

    model: nn.Module = MobileNetV2(
        num_classes, inverted_residual_setting=[list(stage) for stage in STAGES], dropout=0.0
    )
    stem = model.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    initialise(model)
    return model
