"""Calibration: class-balanced images, and what a network's layers receive and return on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor, nn

from edgeprune.channels import ChannelGroup
from edgeprune.cutting import device_of, first_line
from edgeprune.data import Data
from edgeprune.data.splits import seeded
from edgeprune.errors import DataError, EdgepruneError, ModelError, SchemeError
from edgeprune.training.evaluation import mode

PROBLEM = "could not calibrate"

BATCH = 100
"""Images of one forward pass."""


@dataclass(frozen=True)
class Calibration:
    """Images to look at a network with.

    Attributes:
        images: (n, C, H, W), normalised, not augmented, on the CPU; class after class: 0, 1, 2, ..., 0, 1 ...
        labels: (n,) int64.
        classes: Class names.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def calibration_of(
    data: Data,
    per_class: int,
    *,
    or_fewer: bool = False,
    joined: Sequence[Sequence[int]] | None = None,
    seed: int | None = None,
) -> Calibration:
    """``per_class`` images of each class of ``data.calib``.

    Args:
        data: Data set.
        per_class: Images per class, or per joined class.
        or_fewer: If a class has fewer, take as many of each as it has, but one at least.
        joined: Classes that count as one; each class stands in one of them. None: each for itself.
        seed: Of a random choice; None: the first ones.

    Raises:
        DataError: A class has fewer, or the images are not finite.
    """
    images, labels = _images_of(data)
    names = data.classes
    if joined is not None:
        home = torch.empty(len(names), dtype=torch.int64)
        for number, members in enumerate(joined):
            home[list(members)] = number
        labels, names = home[labels], tuple(_joined_name(data.classes, members) for members in joined)
    places = [(labels == number).nonzero()[:, 0] for number in range(len(names))]
    counts = [len(found) for found in places]
    short = min(range(len(counts)), key=counts.__getitem__)
    if or_fewer:
        per_class = max(1, min(per_class, counts[short]))
    if counts[short] < per_class:
        hint = f"Ask for at most {counts[short]} per class." if counts[short] else "Add images of this class."
        raise DataError(
            PROBLEM,
            where=f"class {names[short]} of data.calib",
            value=f"{counts[short]} images",
            expected=f"at least {per_class}",
            hint=hint,
        )
    if seed is not None:
        draw = seeded(seed, "calibration")
        places = [found[torch.randperm(len(found), generator=draw)] for found in places]
    order = torch.stack([found[:per_class] for found in places], 1).flatten()
    return Calibration(_finite(images[order]), labels[order], names)


def random_images(data: Data, count: int, seed: int) -> Calibration:
    """``count`` images of ``data.calib``, whatever their classes; all are of one class, ``"any"``.

    Raises:
        DataError: There are fewer, or the images are not finite.
    """
    images, labels = _images_of(data)
    if len(images) < count:
        rule = f"at least {count}"
        raise DataError(PROBLEM, where="data.calib", value=f"{len(images)} images", expected=rule)
    order = torch.randperm(len(images), generator=seeded(seed, "calibration"))[:count]
    return Calibration(_finite(images[order]), torch.zeros_like(labels[order]), ("any",))


def _images_of(data: Data) -> tuple[Tensor, Tensor]:
    batches = list(data.calib)
    if not batches:
        raise DataError(PROBLEM, where="data.calib", value="empty", expected="images of every class")
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, labels


def _finite(images: Tensor) -> Tensor:
    if not bool(images.isfinite().all()):
        rule = "finite numbers"
        raise DataError(PROBLEM, where="the images of data.calib", value="not finite", expected=rule)
    return images


def _joined_name(names: Sequence[str], members: Sequence[int]) -> str:
    return names[members[0]] + (f" and {len(members) - 1} more" if len(members) > 1 else "")


def super_classes(model: nn.Module, classes: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Classes joined into ``count`` sets of nearly the same size, by what the classifier weighs alike.

    The rows of the classifier, of length 1, are clustered (Ward's linkage); the leaves of that tree, in
    order, are cut into sets. Clusters as they are could hold a single class and have too few images.

    Args:
        model: Network; its last linear layer with as many rows as classes is the classifier.
        classes: Number of classes.
        count: Number of sets.

    Raises:
        ModelError: There is no classifier.
    """
    rows = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not rows:
        raise ModelError(
            "could not join the classes into fewer",
            where="the network",
            value=f"without a linear layer of {classes} rows",
            expected="a classifier",
            hint=f"Set super_classes={classes} to keep the classes apart.",
        )
    weights = nn.functional.normalize(rows[-1].detach().double().cpu()).numpy()
    order = leaves_list(linkage(weights, method="ward"))
    bounds = [round(number * classes / count) for number in range(count + 1)]
    return tuple(tuple(sorted(order[start:stop].tolist())) for start, stop in pairwise(bounds))


@dataclass(frozen=True)
class Reader:
    """A layer that reads the units of a group.

    Attributes:
        layer: Name of the convolution or linear layer.
        channels: Per unit, the input channels of the layer that hold it.
        columns: Per unit, its positions along axis 1 of the layer's weight; of a grouped convolution they
            stand for a channel of every convolution group.
    """

    layer: str
    channels: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[int, ...], ...]


def readers_of(model: nn.Module, group: ChannelGroup) -> tuple[Reader, ...]:
    """The layers that read a group's units; without those whose weight no such layer owns.

    Transposed convolutions hold their inputs on another axis; they are among the readers too.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    readers = []
    for member in group.members:
        layer, _, name = member.tensor.rpartition(".")
        module = modules.get(layer)
        if member.role != "in" or name != "weight":
            continue
        if isinstance(module, nn.Linear):
            readers.append(Reader(layer, member.indices, member.indices))
        elif isinstance(module, nn.modules.conv._ConvNd):
            width = module.weight.shape[member.axis]
            starts = range(0, module.in_channels, width)
            channels = tuple(
                tuple(start + place for start in starts for place in unit) for unit in member.indices
            )
            readers.append(Reader(layer, channels, member.indices))
    return tuple(readers)


Visitor = Callable[[Tensor, Tensor], None]
"""Takes what a layer receives, (N, C, *spatial), and returns, (N, C_out, *spatial), see ``maps_of``."""


def observe(model: nn.Module, images: Tensor, visitors: Mapping[str, Visitor], *, batch: int = BATCH) -> None:
    """Show each named layer's inputs and outputs to its visitor, batch after batch.

    A layer that is used more than once is visited as often, in the order of its uses.

    Args:
        model: Network; it runs in evaluation mode, without gradients, and is left as it was.
        images: (n, C, H, W).
        visitors: By name of a convolution or linear layer.
        batch: Images of one forward pass.

    Raises:
        ModelError: The network does not run.
        SchemeError: A layer receives or returns numbers that are not finite.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def hook(name: str, visitor: Visitor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def visit(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            received, returned = maps_of(layer, args[0], size), maps_of(layer, output, size)
            for what, maps in (("receives", received), ("returns", returned)):
                if not bool(maps.isfinite().all()):
                    raise SchemeError(
                        PROBLEM,
                        where=f"what {name} {what}",
                        value="not finite",
                        expected="finite numbers",
                        hint="Check the weights and the images of the network.",
                    )
            visitor(received, returned)

        return visit

    hooks = [modules[name].register_forward_hook(hook(name, visitor)) for name, visitor in visitors.items()]
    try:
        with mode(model, False), torch.no_grad():
            for part in torch.split(images, batch):
                size = len(part)
                outputs_on(model, part.to(device_of(model)))
    finally:
        for handle in hooks:
            handle.remove()


def outputs_on(model: nn.Module, images: Tensor) -> Any:
    """What a network returns; images (N, C, H, W) are on its device.

    Raises:
        ModelError: It does not run.
    """
    try:
        return model(images)
    except (EdgepruneError, torch.OutOfMemoryError):
        raise  # a visitor's own
    except Exception as reason:  # the forward pass is the user's: it may raise anything
        raise ModelError(
            PROBLEM,
            where="the network on the calibration images",
            value=f"failing ({first_line(reason)})",
            expected="a network for this data",
        ) from reason


def logits_on(model: nn.Module, images: Tensor) -> Tensor:
    """The logits (N, classes) that a network returns.

    Raises:
        ModelError: It does not run, or returns something else.
    """
    logits = outputs_on(model, images)
    if not isinstance(logits, Tensor) or logits.ndim == 0 or len(logits) != len(images):
        raise ModelError(
            PROBLEM,
            where="the network's output",
            value=f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__,
            expected=f"one tensor of logits for each of {len(images)} images",
        )
    return logits


def maps_of(layer: nn.Module, tensor: Tensor, images: int) -> Tensor:
    """(N, C, *spatial) of what a layer receives or returns; of a linear layer (N, C, places).

    Tokens and windows of an image are its places.
    """
    maps = tensor.detach()
    return maps.reshape(images, -1, maps.shape[-1]).mT if isinstance(layer, nn.Linear) else maps
