"""Second moments of what a layer reads and of what it lacks: all that least squares needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**24
"""Entries of the patches that are held at a time."""


@dataclass(frozen=True)
class Product:
    """The arguments of a convolution or linear layer, besides its input.

    Attributes:
        weight: (C_out, columns, *kernel), or (C_out, columns) of a linear layer.
        stride: Per spatial axis; of a linear layer all of these are empty.
        padding: (before, after) per spatial axis.
        dilation: Per spatial axis.
        groups: Convolution groups.
        mode: What is padded with, as in ``torch.nn.functional.pad``.
    """

    weight: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    mode: str = "constant"

    @property
    def rows(self) -> Tensor:
        """(groups, C_out / groups, columns * kernel): the weight as matrices."""
        return self.weight.detach().reshape(self.groups, len(self.weight) // self.groups, -1)

    def patches(self, received: Tensor, places: Tensor) -> Tensor:
        """What the layer reads for some of its outputs.

        Args:
            received: (N, C, *spatial); of a linear layer (N, C, places).
            places: (N, P) int64: positions in the flattened spatial axes of the output.

        Returns:
            (groups, N * P, columns * kernel).
        """
        images = torch.arange(len(received), device=received.device)[:, None].expand_as(places)
        if not self.stride:
            return received[images, :, places].flatten(0, 1)[None]
        padding = [size for pair in reversed(self.padding) for size in pair]
        windows = F.pad(received, padding, self.mode) if any(padding) else received
        sizes = self.weight.shape[2:]
        for axis, (size, step, gap) in enumerate(zip(sizes, self.stride, self.dilation, strict=True), 2):
            windows = windows.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        # (N, C, *output, *kernel), a view: only the wanted places are copied.
        at = torch.unravel_index(places, windows.shape[2 : 2 + len(sizes)])
        found = windows.movedim(1, len(sizes) + 1)[(images, *at)]
        return found.reshape(places.numel(), self.groups, -1).transpose(0, 1)


@dataclass
class Moments:
    """Sums over rows of x (what a layer reads, d numbers) and r (what it lacks, o numbers), per group.

    Float64.

    Attributes:
        rows: Number of rows.
        xx: (groups, d, d).
        xr: (groups, d, o).
        rr: (groups, o): squares.
        x: (groups, d).
        r: (groups, o).
    """

    xx: Tensor
    xr: Tensor
    rr: Tensor
    x: Tensor
    r: Tensor
    rows: int = 0

    @staticmethod
    def of_layer(layer: Product, received: Tensor, places: Tensor, lacking: Tensor | None = None) -> Moments:
        """Sums over a sample of a layer's outputs, a few images at a time.

        Args:
            layer: The layer.
            received: As in ``Product.patches``.
            places: (N, P).
            lacking: (N, C_out, P); default: r has no numbers.
        """
        groups, outputs, columns = layer.rows.shape
        if lacking is None:
            lacking, outputs = received.new_zeros(len(received), 0, places.shape[1]), 0

        def empty(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=received.device)

        sums = Moments(
            empty(columns, columns), empty(columns, outputs), empty(outputs), empty(columns), empty(outputs)
        )
        images = max(1, CHUNK // max(1, groups * columns * places.shape[1]))
        for start in range(0, len(received), images):
            some = slice(start, start + images)
            rows = lacking[some].transpose(1, 2).flatten(0, 1)  # (rows, C_out)
            r = rows.reshape(len(rows), groups, outputs).transpose(0, 1)
            sums.add(layer.patches(received[some], places[some]), r)
        return sums

    def add(self, x: Tensor, r: Tensor) -> None:
        """Add rows x (groups, rows, d) and r (groups, rows, o)."""
        self.rows += x.shape[1]
        self.xx += x.mT @ x
        self.xr += x.mT @ r
        self.rr += r.double().square().sum(1)
        self.x += x.double().sum(1)
        self.r += r.double().sum(1)

    def __add__(self, other: Moments) -> Moments:
        """Sums over the rows of both."""
        return Moments(
            self.xx + other.xx, self.xr + other.xr, self.rr + other.rr, self.x + other.x, self.r + other.r,
            self.rows + other.rows,
        )  # fmt: skip

    def centred(self) -> tuple[Tensor, Tensor]:
        """(groups, d, d) and (groups, d, o): xx and xr around the means."""
        x, r = self.x[..., None], self.r[:, None]
        return self.xx - x @ x.mT / self.rows, self.xr - x @ r / self.rows

    def solved(self, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """What to add to weight and bias so that the layer lacks least, by ridge regression.

        Args:
            ridge: Weight of the change's squares, relative to the mean square of a column.
            intercept: The bias may change.

        Returns:
            (groups, o, d) and (groups, o).
        """
        xx, xr = self.centred() if intercept else (self.xx, self.xr)
        size = xx.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
        eye = torch.eye(xx.shape[-1], dtype=xx.dtype, device=xx.device)
        weight = torch.linalg.solve(xx + (ridge * size)[:, None, None] * eye, xr).mT
        bias = (self.r - (weight @ self.x[..., None])[..., 0]) / self.rows
        return weight, bias if intercept else torch.zeros_like(bias)

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(groups, o) sums of squares of r - weight x - bias."""
        squares = ((weight @ self.xx) * weight).sum(2) + self.rr + self.rows * bias.square()
        mixed = (weight * self.xr.mT).sum(2) + bias * self.r - bias * (weight @ self.x[..., None])[..., 0]
        return (squares - 2 * mixed).clamp(min=0)  # rounding may leave a little less than nothing


def sampled_places(images: int, places: int, most: int, generator: torch.Generator) -> Tensor:
    """(images, P) int64: at most ``most`` different places of each image, in random order; else all."""
    if places <= most:
        return torch.arange(places).expand(images, places)
    drawn = [torch.randperm(places, generator=generator)[:most] for _ in range(images)]
    return torch.stack(drawn)


def same_padding(sizes: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(before, after) per spatial axis of ``padding="same"``: the odd one goes after."""
    totals = [gap * (size - 1) for size, gap in zip(sizes, dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
