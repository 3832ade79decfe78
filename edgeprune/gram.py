"""Gram matrices of what layers receive and return, and the class-wise quadratics that are made of them.

A layer's units k have maps X_k (n, d), its output the map Y (n, q); centred Grams K_k and L (n, n) compare
the images by them. With the rows I_c of class c, ``A_c[:, k] = vec(K_k[I_c, :])`` and
``b_c = vec(L[I_c, :])``; only ``G_c = A_c' A_c``, ``h_c = A_c' b_c`` and ``t_c = ||b_c||^2`` are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import Calibration, readers_of
from edgeprune.channels import ChannelGroup
from edgeprune.errors import SchemeError
from edgeprune.slabs import Request, Shape, inner_products, shapes_of

Kernel = Literal["gaussian", "laplace", "linear"]
Scale = Literal["layer", "units", "channel", "none"]

MEMORY = 512 * 2**20
"""Bytes for the maps of one pass, and for the Grams of one layer."""

_ROUNDING = 1e-13  # of squared lengths: a distance below it is rounding


@dataclass(frozen=True)
class Columns:
    """The units that one layer reads.

    Attributes:
        layer: Name of the layer.
        units: (group name, unit) of each column; ("", channel) of a channel that no group holds.
        channels: Of each column, the input channels of the layer that hold it.
    """

    layer: str
    units: tuple[tuple[str, int], ...]
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Quadratic:
    """What is kept of a layer with p units and C classes: float64, divided by n^2, on the network's device.

    Attributes:
        columns: The layer and its units.
        gram: G (C, p, p).
        target: h (C, p).
        energy: t (C,).
        relatedness: r (C, C), cosines of the centred class means of the output maps.
        zero: (p,) the unit is 0 at every place of every image.
        constant: (p,) the unit is the same for every image; its Gram counts as 0.
    """

    columns: Columns
    gram: Tensor
    target: Tensor
    energy: Tensor
    relatedness: Tensor
    zero: Tensor
    constant: Tensor


def columns_of(model: nn.Module, groups: Iterable[ChannelGroup]) -> tuple[Columns, ...]:
    """What the layers read that read a movable group: each unit of whatever group, and each channel of none.

    A unit that cannot be removed explains the layer's output as any other does; it only gets no score.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[str, dict[tuple[str, int], tuple[int, ...]]] = {}
    # The order of the groups must not matter; a channel that a movable group holds is that group's.
    for group in sorted(groups, key=lambda group: (group.frozen_because is not None, group.name)):
        for reader in readers_of(model, group):
            if group.frozen_because is not None and reader.layer not in layers:
                continue
            held = layers.setdefault(reader.layer, {})
            known = {channel for (name, _), own in held.items() if name != group.name for channel in own}
            for unit, channels in enumerate(reader.channels):
                before = held.get((group.name, unit), ())
                left = [channel for channel in channels if channel not in known]
                held[group.name, unit] = tuple(dict.fromkeys((*before, *left)))
    found = []
    for layer, held in sorted(layers.items()):
        module = modules[layer]
        width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        known = {channel for channels in held.values() for channel in channels}
        held |= {("", channel): (channel,) for channel in range(int(width)) if channel not in known}
        held = {unit: channels for unit, channels in held.items() if channels}
        found.append(Columns(layer, tuple(held), tuple(held.values())))
    return tuple(found)


def quadratics(
    model: nn.Module,
    columns: Sequence[Columns],
    calibration: Calibration,
    *,
    kernel: Kernel = "gaussian",
    centre: bool = True,
    scale: Scale = "layer",
    memory: int = MEMORY,
) -> Iterator[Quadratic]:
    """The class-wise quadratics of layers, one after the other; of layers that are never called, none.

    Args:
        model: Network; the Grams are made on its device.
        columns: The layers and their units.
        calibration: Images, and labels 0 .. C-1.
        kernel: Of two images' maps x and y of length d: ``exp(-||x - y||^2 / d)``,
            ``exp(-sqrt(0.5 / d) ||x - y||)`` or ``x'y``.
        centre: Take the means of rows and columns off the Grams.
        scale: ``"layer"``: L is divided by its Frobenius norm and all K_k by that of their mean, so that
            layers compare and a layer's units keep their sizes among themselves. ``"units"``: only the K_k
            are, so that a layer whose output differs more between images counts more. ``"channel"``: L and
            every K_k are divided by their own. ``"none"``: nothing is divided.
        memory: Bytes for the maps of one pass, and for the Grams of one layer.

    Raises:
        SchemeError: A layer returns the same for every image, or numbers that are not finite.
    """
    images, labels = calibration.images, calibration.labels
    shapes = shapes_of(model, images[:1], [layer.layer for layer in columns])
    members = [(labels == number).nonzero()[:, 0] for number in range(len(calibration.classes))]

    def products(*requests: Request) -> Iterator[Tensor]:
        return inner_products(model, images, shapes, requests, memory)

    def quadratic(layer: Columns, outputs: Tensor, blocks: Blocks, height: int) -> Quadratic:
        shape = shapes[layer.layer]
        length = shape.channels * sum(shape.places["returns"])
        right, _, same = grams(outputs, torch.tensor([length]), kernel, centre)
        if bool(same):
            raise SchemeError(
                "could not compare the images",
                where=f"what {layer.layer} returns",
                value="the same for every calibration image",
                expected="maps that differ between images",
                hint="Check the weights of the network.",
            )
        found = _quadratic(layer, right[0], blocks, height, members)
        return _scaled(replace(found, relatedness=relatedness_of(outputs[0], members)), scale, len(images))

    def blocks_of(layer: Columns, found: Callable[[Request], Tensor]) -> Blocks:
        places = sum(shapes[layer.layer].places["receives"])

        def block(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
            rows = layer.channels[start:stop]
            lengths = torch.tensor([len(row) * places for row in rows])
            return grams(found(Request(layer.layer, "receives", rows)), lengths, kernel, centre)

        return block

    # Layers whose Grams fit share their passes over the images; of the others, blocks meet pair by pair.
    called = [layer for layer in columns if layer.layer in shapes]
    fitting = max(1, memory // (8 * len(images) ** 2))
    small = [layer for layer in called if len(layer.units) <= fitting]
    shared = products(*(request for layer in small for request in _requests(layer, shapes)))
    for layer in small:
        outputs = next(shared)
        yield quadratic(layer, outputs, blocks_of(layer, lambda _: next(shared)), fitting)
    for layer in called:
        if layer not in small:
            outputs = next(products(_requests(layer, shapes)[0]))
            yield quadratic(
                layer, outputs, blocks_of(layer, lambda asked: next(products(asked))), fitting // 2
            )


Blocks = Callable[[int, int], tuple[Tensor, Tensor, Tensor]]
"""Takes a range of columns and gives what `grams` gives of them."""


def grams(products: Tensor, lengths: Tensor, kernel: Kernel, centre: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrices from inner products.

    Args:
        products: ``<x_i, x_j>`` (p, n, n), float64; overwritten.
        lengths: d (p,).
        kernel: See `quadratics`.
        centre: Take the means of rows and columns off.

    Returns:
        K (p, n, n), 0 for a map that is the same for every image; where the map is 0 (p,); where it is the
        same for every image (p,).
    """
    squares = products.diagonal(dim1=-2, dim2=-1).clone()
    length = lengths.to(products)[:, None, None]
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    largest = squares.amax(-1)
    distances[distances <= _ROUNDING * largest[:, None, None]] = 0
    same = distances.flatten(1).amax(-1) == 0
    if kernel == "gaussian":
        found = distances.div_(-length).exp_()
    elif kernel == "laplace":
        found = distances.sqrt_().mul_(-(0.5 / length).sqrt()).exp_()
    else:
        found = products
    if centre:
        found = found - found.mean(-1, keepdim=True)
        found = found - found.mean(-2, keepdim=True)
    found[same] = 0
    return found, largest == 0, same


def relatedness_of(products: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Cosines (C, C) of the classes' mean maps, of which the mean over classes is taken off.

    Args:
        products: ``<y_i, y_j>`` (n, n).
        members: Of each class, its images.
    """
    means = products.new_zeros(len(members), len(products))
    for number, images in enumerate(members):
        means[number, images] = 1 / len(images)
    means -= means.mean(0)
    inner = means @ products @ means.mT
    lengths = inner.diagonal().clamp(min=0).sqrt()
    floor = 1e-7 * products.diagonal().amax().sqrt()  # below it a mean is rounding: related to no other class
    cosines = inner / (lengths[:, None] * lengths).clamp(min=1e-300)
    cosines[lengths <= floor] = 0
    cosines[:, lengths <= floor] = 0
    return cosines.clamp(-1, 1).fill_diagonal_(1)


def _requests(layer: Columns, shapes: Mapping[str, Shape]) -> tuple[Request, Request]:
    """Of the output map, and of the units."""
    everything = tuple(range(shapes[layer.layer].channels))
    return Request(layer.layer, "returns", (everything,)), Request(layer.layer, "receives", layer.channels)


def _quadratic(
    layer: Columns, right: Tensor, blocks: Blocks, height: int, members: Sequence[Tensor]
) -> Quadratic:
    """G, h and t of the Grams as they are; the rest is left to the caller."""
    count, height = len(layer.units), max(1, height)
    starts = range(0, count, height)
    gram = right.new_zeros(len(members), count, count)
    target = right.new_zeros(len(members), count)
    zero, constant = (torch.zeros(count, dtype=torch.bool, device=right.device) for _ in range(2))
    members = [rows.to(right.device) for rows in members]
    for start in starts:
        one = slice(start, min(start + height, count))
        left, zero[one], constant[one] = blocks(one.start, one.stop)
        for number, rows in enumerate(members):
            target[number, one] = left[:, rows].flatten(1) @ right[rows].flatten()
        for other in starts[starts.index(start) :]:
            two = slice(other, min(other + height, count))
            against = left if other == start else blocks(two.start, two.stop)[0]
            for number, rows in enumerate(members):
                block = left[:, rows].flatten(1)
                product = block @ (block if other == start else against[:, rows].flatten(1)).mT
                gram[number, one, two], gram[number, two, one] = product, product.mT
    energy = torch.stack([right[rows].square().sum() for rows in members])
    return Quadratic(layer, gram, target, energy, gram.new_empty(0), zero, constant)


def _scaled(found: Quadratic, scale: Scale, images: int) -> Quadratic:
    """With K_k and L divided as ``scale`` says, and all by n^2."""
    total = found.gram.sum(0)
    size = found.energy.sum().sqrt()
    if scale in ("layer", "units"):
        left = (total.sum().clamp(min=0).sqrt() / len(total)).expand(len(total))
    elif scale == "channel":
        left = total.diagonal().sqrt()
    else:
        left = torch.ones_like(total[0])
    if scale in ("units", "none"):
        size = torch.ones_like(size)
    left = torch.where(left > 0, left, 1.0)
    return replace(
        found,
        gram=found.gram / (left[:, None] * left) / images**2,
        target=found.target / (left * size) / images**2,
        energy=found.energy / size**2 / images**2,
    )
