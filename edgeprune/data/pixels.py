"""What is done to pixels, a whole batch at once and on whatever device they are."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.data.base import Normalization


def crop_and_flip(pixels: Tensor, pad: int, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """A part of each image with ``pad`` black pixels around it, as large as the image, mirrored or not.

    Args:
        pixels: (N, C, H, W).
        pad: In pixels; 0: no crop.
        top: First row of each part, int64 (N,), 0 to ``2 * pad``.
        left: First column of each part, likewise.
        mirrored: Whether to mirror the part from left to right, int64 (N,), 0 or 1.
    """
    count, channels, height, width = pixels.shape
    if not count:
        return pixels
    padded = F.pad(pixels, (pad,) * 4) if pad else pixels
    both = torch.cat([padded, padded.flip(3)])
    # Every row of every part is `width` pixels on end somewhere in `both`; picking rows by their first pixel
    # copies them whole, on a CPU twice as fast as to index with `top` and `left` and choose with `where`.
    image = torch.arange(count, device=pixels.device) + mirrored * count
    column = torch.where(mirrored > 0, 2 * pad - left, left)
    row = torch.arange(height, device=pixels.device) + top[:, None]
    plane = image[:, None] * channels + torch.arange(channels, device=pixels.device)
    first = (plane[:, :, None] * both.shape[2] + row[:, None]) * both.shape[3] + column[:, None, None]
    rows = both.view(-1).unfold(0, width, 1).index_select(0, first.view(-1))
    return rows.view(count, channels, height, width)


def normalise(pixels: Tensor, normalization: Normalization) -> Tensor:
    """Pixels (N, C, H, W), uint8 or float in 0..1, as a network's input in float32."""
    full = 255.0 if pixels.dtype == torch.uint8 else 1.0
    factor, offset = _scale(normalization, full, pixels.device)
    return pixels.to(torch.float32, copy=True).mul_(factor).sub_(offset)


@lru_cache(maxsize=16)
def _scale(normalization: Normalization, full: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel, each (C, 1, 1); kept, since every copy to a GPU waits for it."""
    mean = torch.tensor(normalization.mean).view(-1, 1, 1)
    std = torch.tensor(normalization.std).view(-1, 1, 1)
    return (1 / (full * std)).to(device), (mean / std).to(device)


def cut_out(images: Tensor, size: int, centres: Tensor) -> Tensor:
    """Set a square of each image to 0, in place; what lies outside the image is left off.

    A square of normalised images becomes the mean colour (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
        images: (N, C, H, W).
        size: Side of the square in pixels.
        centres: Its middle's place in the height and in the width, each in 0..1, (2, N).
    """
    covered = []
    for place, length in zip(centres, images.shape[2:], strict=True):
        start = (place * length).long()[:, None] - size // 2
        at = torch.arange(length, device=images.device)
        covered.append((at >= start) & (at < start + size))
    return images.masked_fill_((covered[0][:, :, None] & covered[1][:, None, :])[:, None], 0)
