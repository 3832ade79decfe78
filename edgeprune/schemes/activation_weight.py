"""Activation times outgoing weight: the cheap baseline that is hard to beat."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import Reader, Visitor, calibration_of, observe, readers_of
from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable


@dataclass(frozen=True)
class ActivationWeight(LookingScheme):
    """Score of a unit: the size of what it sends into the layers that read it.

    ``s_u = max_l sum_{channels j of u} a_lj ||W_l[:, j]||_2 / m_l`` over the layers l that read u, with a_lj
    the mean size of channel j at the layer's input over places and images, and m_l the mean of these products
    over all channels of the layer, so that layers compare. (Divided by their total, each unit of a wide layer
    is a small share, and the wide layers are emptied first.)

    Source:
        The idea is that of Wanda, Sun et al. 2023, arXiv 2306.11695, for channels instead of single weights.

    Example:
        >>> ActivationWeight().fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    images: int = option(200, "calibration images in all, equally many of each class", at_least=1)
    activation: Literal["rms", "mean"] = option("rms", "root mean square, or mean of the absolute values")
    readers: Literal["max", "sum"] = option("max", "over the layers that read a unit")
    normalize: Literal["mean", "total", "none"] = option(
        "mean", "divide a layer's terms by their mean, by their total, or not"
    )
    seed: int = option(0, "of the choice of images", at_least=0)

    name: ClassVar[str] = "activation-weight"

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every movable group that a convolution or linear layer reads.

        Raises:
            SchemeError: A layer receives or returns numbers that are not finite.
            DataError: The calibration split has too few images of a class.
        """
        calibration = calibration_of(data, max(1, self.images // len(data.classes)), seed=self.seed)
        readers = {group.name: readers_of(model, group) for group in movable(groups)}
        sent = self._sent(model, calibration.images, sorted({r.layer for rs in readers.values() for r in rs}))
        scores = {}
        for name, found in readers.items():
            terms = [_of_units(reader, sent[reader.layer]) for reader in found if reader.layer in sent]
            if terms:
                stack = torch.stack(terms)
                scores[name] = stack.amax(0) if self.readers == "max" else stack.sum(0)
        return Scores(scores, facts={"options": asdict(self), "images": len(calibration)})

    def _sent(self, model: nn.Module, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
        """By layer, what each input channel sends into it (C_in,), float64 on the CPU."""
        sums: dict[str, Tensor] = {}
        places = dict.fromkeys(layers, 0)

        def visitor(name: str) -> Visitor:
            def visit(received: Tensor, returned: Tensor) -> None:
                del returned
                maps = received.flatten(2).double()
                sizes = maps.square() if self.activation == "rms" else maps.abs()
                sums[name] = sums.get(name, 0) + sizes.sum((0, 2)).cpu()
                places[name] += maps.shape[0] * maps.shape[2]

            return visit

        observe(model, images, {name: visitor(name) for name in layers})
        modules = dict(model.named_modules(remove_duplicate=False))
        sent = {}
        for name, total in sums.items():
            mean = total / places[name]
            terms = (mean.sqrt() if self.activation == "rms" else mean) * column_norms(modules[name])
            if self.normalize != "none" and bool(terms.any()):
                terms = terms / (terms.sum() if self.normalize == "total" else terms.mean())
            sent[name] = terms
        return sent


def column_norms(layer: nn.Module) -> Tensor:
    """L2 norm of the weights that read each input channel (C_in,), float64 on the CPU."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().double().cpu()
    if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
        # (groups, C_out / groups, C_in / groups, kernel): each group of outputs reads its own inputs.
        split = weight.reshape(layer.groups, -1, weight.shape[1], weight[0, 0].numel())
        squares = split.square().sum((1, 3)).flatten()
    else:
        inputs = 1 if isinstance(layer, nn.Linear) else 0
        squares = weight.transpose(0, inputs).flatten(1).square().sum(1)
    return squares.sqrt()


def _of_units(reader: Reader, sent: Tensor) -> Tensor:
    return torch.stack([sent[list(channels)].sum() for channels in reader.channels])
