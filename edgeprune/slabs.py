"""Inner products of images by a layer's maps, in as little memory as is given.

An inner product is a sum over channels and places. So the maps of a layer can be looked at in slabs, each
some channels at some places of all images: a slab is kept until its last image has come, and gives its part
of the sum. One pass over the images fills as many slabs as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import BATCH, observe

Side = Literal["receives", "returns"]

_BLOCK = 64 * 2**20  # bytes of float64 that one product reads


@dataclass(frozen=True)
class Shape:
    """What one image is to a layer.

    Attributes:
        places: Of the maps that it receives, and of those that it returns; one number per use of the layer.
        channels: Of the maps that it returns.
        dtype: Of the maps.
    """

    places: dict[Side, tuple[int, ...]]
    channels: int
    dtype: torch.dtype


def shapes_of(model: nn.Module, image: Tensor, layers: Sequence[str]) -> dict[str, Shape]:
    """The shapes of layers; without those that the network does not call.

    Args:
        model: Network.
        image: (1, C, H, W).
        layers: Names of layers.
    """
    found: dict[str, Shape] = {}

    def visitor(name: str) -> Callable[[Tensor, Tensor], None]:
        def visit(received: Tensor, returned: Tensor) -> None:
            received, returned = received.flatten(2), returned.flatten(2)
            before = found[name].places if name in found else {"receives": (), "returns": ()}
            places: dict[Side, tuple[int, ...]] = {
                "receives": (*before["receives"], received.shape[2]),
                "returns": (*before["returns"], returned.shape[2]),
            }
            dtype = torch.promote_types(received.dtype, returned.dtype)
            found[name] = Shape(places, returned.shape[1], dtype)

        return visit

    observe(model, image, {name: visitor(name) for name in layers})
    return found


@dataclass(frozen=True)
class Request:
    """Asks for one inner-product matrix per row.

    Attributes:
        layer: Name of the layer.
        side: Which of its maps.
        rows: Per row the channels whose maps, side by side, are compared.
    """

    layer: str
    side: Side
    rows: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Slab:
    """A part of a request: rows of equally many channels, at some places.

    Attributes:
        request: Number of the request.
        layer: Of the request.
        side: Of the request.
        rows: Which of its rows.
        channels: (rows, channels) positions.
        start: First place, counted through all uses of the layer.
        stop: The place after the last.
        size: Bytes of ``maps``.
        maps: (rows, n, channels, places), once filled.
    """

    request: int
    layer: str
    side: Side
    rows: list[int]
    channels: Tensor
    start: int
    stop: int
    size: int
    maps: Tensor | None = None


def inner_products(
    model: nn.Module,
    images: Tensor,
    shapes: Mapping[str, Shape],
    requests: Sequence[Request],
    memory: int,
) -> Iterator[Tensor]:
    """Per request, in order, the products ``<x_i, x_j>`` of all pairs of images: (rows, n, n) float64.

    Args:
        model: Network; the products are made on its device.
        images: (n, C, H, W).
        shapes: Of the layers.
        requests: What to compare by.
        memory: Bytes that the maps of one pass may take; one channel at one place is always taken.
    """
    slabs = [
        slab
        for number, request in enumerate(requests)
        for slab in _slabs(number, request, shapes[request.layer], len(images), memory)
    ]
    sums: dict[int, Tensor] = {}
    done = 0
    while slabs:
        count, total = 1, slabs[0].size
        while count < len(slabs) and total + slabs[count].size <= memory:
            total += slabs[count].size
            count += 1
        taken, slabs = slabs[:count], slabs[count:]
        _fill(model, images, shapes, taken)
        for slab in taken:
            while done < slab.request:
                yield sums.pop(done)
                done += 1
            assert slab.maps is not None
            if slab.request not in sums:
                rows = len(requests[slab.request].rows)
                shape = (rows, len(images), len(images))
                sums[slab.request] = torch.zeros(shape, dtype=torch.float64, device=slab.maps.device)
            _add(sums[slab.request], slab.rows, slab.maps.flatten(2))
            slab.maps = None
    yield from (sums.pop(number) for number in range(done, len(requests)))


def _slabs(number: int, request: Request, shape: Shape, images: int, memory: int) -> Iterator[Slab]:
    """Cut a request by rows; a row that does not fit by channels, and then by places."""
    places = sum(shape.places[request.side])
    one = images * places * shape.dtype.itemsize
    by_length: dict[int, list[int]] = {}
    for row, channels in enumerate(request.rows):
        by_length.setdefault(len(channels), []).append(row)
    for length, rows in by_length.items():
        table = torch.tensor([request.rows[row] for row in rows]).reshape(len(rows), length)
        height = max(1, memory // max(1, one * length))
        width = max(1, min(length, memory // max(1, one)))
        depth = max(1, min(places, memory // max(1, images * shape.dtype.itemsize)))
        for top in range(0, len(rows), height):
            for left in range(0, length, width):
                for start in range(0, places, depth):
                    part = table[top : top + height, left : left + width]
                    stop = min(start + depth, places)
                    size = part.numel() * images * (stop - start) * shape.dtype.itemsize
                    chosen = rows[top : top + height]
                    yield Slab(number, request.layer, request.side, chosen, part, start, stop, size)


def _fill(model: nn.Module, images: Tensor, shapes: Mapping[str, Shape], slabs: Sequence[Slab]) -> None:
    """One pass over the images; every slab takes what it is made of."""
    by_layer: dict[str, list[Slab]] = {}
    for slab in slabs:
        by_layer.setdefault(slab.layer, []).append(slab)

    def visitor(layer: str) -> Callable[[Tensor, Tensor], None]:
        places = shapes[layer].places
        uses, calls = len(places["receives"]), 0

        def visit(received: Tensor, returned: Tensor) -> None:
            nonlocal calls
            received, returned = received.flatten(2), returned.flatten(2)
            use, first = calls % uses, calls // uses * BATCH
            calls += 1
            for slab in by_layer[layer]:
                maps = received if slab.side == "receives" else returned
                offset = sum(places[slab.side][:use])
                start, stop = max(slab.start, offset), min(slab.stop, offset + maps.shape[2])
                if start >= stop:
                    continue
                rows, width = slab.channels.shape
                if slab.maps is None:
                    shape = (rows, len(images), width, slab.stop - slab.start)
                    slab.maps = torch.empty(shape, dtype=shapes[layer].dtype, device=maps.device)
                part = maps[:, slab.channels.flatten().to(maps.device), start - offset : stop - offset]
                part = part.reshape(len(maps), rows, width, stop - start).transpose(0, 1)
                slab.maps[:, first : first + len(maps), :, start - slab.start : stop - slab.start] = part

        return visit

    observe(model, images, {layer: visitor(layer) for layer in by_layer}, batch=BATCH)


def _add(sums: Tensor, rows: Sequence[int], maps: Tensor) -> None:
    """Add ``maps maps'`` of maps (rows, n, d) to some rows of the sums, in float64, block by block."""
    count, images, length = maps.shape
    width = max(1, min(length, _BLOCK // (8 * images)))
    height = max(1, _BLOCK // (8 * images * max(width, images)))
    for top in range(0, count, height):
        chosen = torch.tensor(rows[top : top + height], device=sums.device)
        for left in range(0, length, width):
            block = maps[top : top + height, :, left : left + width].double()
            sums.index_add_(0, chosen, block @ block.mT)
