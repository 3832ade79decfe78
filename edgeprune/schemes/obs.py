"""Optimal brain surgeon, layer by layer: what a unit's removal costs once the others make up for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import Calibration, Reader, calibration_of, observe, readers_of
from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.flow import product_of_module
from edgeprune.launch import world
from edgeprune.moments import Moments, Product, sampled_places
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable, unit_costs
from edgeprune.schemes.sensitivity import sensitivities


@dataclass(frozen=True)
class OBS(LookingScheme):
    """Score of a unit: what the outputs lose when it goes, the other units being refitted, greedily.

    ====================  ===================================================  ==================
    symbol                meaning                                              shape
    ====================  ===================================================  ==================
    X                     what a reader reads at a place                       (rows, d)
    W                     its weight as a matrix                               (C_out, d)
    H = X'X / rows        second moments around the mean, plus the ridge       (d, d)
    S                     columns of a unit
    W_S [H^-1_SS]^-1 W_S' diagonal: least squares error without the unit       (C_out,)
    f                     squared gradient of the logits at the outputs        (C_out,)
    ====================  ===================================================  ==================

    Of all units of a group the one with the smallest cost sum_o f_o (...)_o, summed over the group's readers,
    goes first; W and H^-1 then become what they are without it, and so on. A unit's score is its cost at that
    moment, or that of an earlier one if it was higher, so that a threshold cuts in the order of removal.

    The costs estimate the squared change of the logits, so that they compare across layers. Divided by the
    multiply-adds (or params) of a unit they say what a saving costs.

    Source:
        Hassibi and Stork 1993, "Optimal brain surgeon", equation 5, on a layer's least-squares loss; blocks
        and greedy order as in Frantar and Alistarh 2022, "Optimal Brain Compression", arXiv 2208.11580.

    Differs:
        - Whole units, over all readers of a group at once.
        - Output channels are weighted by the network's Jacobian (random projections of the logits).

    Example:
        >>> OBS(images=300).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    name: ClassVar[str] = "obs"

    images: int = option(300, "calibration images in all", at_least=1)
    places: int = option(64, "places of each map that are looked at", at_least=1)
    ridge: float = option(1e-3, "added to the second moments, relative to their mean", above=0)
    per: Literal["macs", "params", "unit"] = option("macs", "what a score is divided by")
    seed: int = option(0, "of the places and of the projections", at_least=0)

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every group that a convolution or linear layer reads; not a transposed one.

        Raises:
            SchemeError: What a layer receives, returns or passes on to the logits is not finite.
            DataError: The calibration split has too few images of a class.
        """
        calibration = calibration_of(data, max(1, self.images // len(data.classes)))
        readers = {group.name: readers_of(model, group) for group in movable(groups)}
        layers = {
            reader.layer: model.get_submodule(reader.layer) for found in readers.values() for reader in found
        }
        layers = {name: layer for name, layer in layers.items() if not is_transposed(layer)}
        moments = self._moments(model, layers, calibration)
        weights = sensitivities(model, calibration.images, tuple(layers), seed=self.seed)
        costs = unit_costs(model, groups, data.example, self.per)

        def score_of(group: ChannelGroup) -> Tensor | None:
            parts = [
                Removal(reader, product_of_module(layers[reader.layer]), moments[reader.layer],
                        weights[reader.layer], self.ridge)
                for reader in readers[group.name]
                if reader.layer in moments
            ]  # fmt: skip
            return greedy(group.size, parts) / costs[group.name] if parts else None

        # Of several ranks each takes some of the groups.
        wanted = movable(groups)
        found = world().spread(wanted, [float(group.size) ** 3 for group in wanted], score_of)
        scores = {group.name: score for group, score in zip(wanted, found, strict=True) if score is not None}
        facts = {
            "options": asdict(self),
            "images": len(calibration),
            "readers_left_out": sorted({r.layer for found in readers.values() for r in found} - set(moments)),
            "without_score": [group.name for group in movable(groups) if group.name not in scores],
        }
        return Scores(scores, facts=facts)

    def _moments(
        self, model: nn.Module, layers: dict[str, nn.Module], calibration: Calibration
    ) -> dict[str, Moments]:
        """Second moments of what each layer reads."""
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[str, Moments] = {}

        def visitor(name: str, layer: nn.Module) -> Callable[[Tensor, Tensor], None]:
            product = product_of_module(layer)

            def visit(received: Tensor, returned: Tensor) -> None:
                count = returned.flatten(2).shape[2]
                places = sampled_places(len(received), count, self.places, generator).to(received.device)
                more = Moments.of_layer(product, received, places)
                found[name] = found[name] + more if name in found else more

            return visit

        observe(model, calibration.images, {name: visitor(name, layer) for name, layer in layers.items()})
        return found


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution."""
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def greedy(units: int, parts: list[Removal]) -> Tensor:
    """(units,) cost of each unit when its turn comes, at least that of those before it."""
    left = list(range(units))
    scores = torch.zeros(units, dtype=torch.float64)
    highest = 0.0
    while left:
        costs = torch.stack([part.costs(left) for part in parts]).sum(0)
        place = int(costs.argmin())
        highest = max(highest, float(costs[place]))
        unit = left.pop(place)
        scores[unit] = highest
        for part in parts if left else ():
            part.remove(unit)
    return scores


class Removal:
    """A reader that loses units one after the other, and is refitted each time.

    Args:
        reader: Which columns hold which unit.
        layer: Its weight.
        moments: Of what it reads.
        importance: (C_out,) weight of the squared error of each output.
        ridge: Relative to the mean of the second moments' diagonal.
    """

    def __init__(
        self, reader: Reader, layer: Product, moments: Moments, importance: Tensor, ridge: float
    ) -> None:
        self.weight = layer.rows.double()  # (groups, o, d)
        squares = moments.centred()[0] / moments.rows
        size = squares.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
        eye = torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
        self.inverse = torch.linalg.inv(squares + (ridge * size)[:, None, None] * eye)
        self.importance = importance.double().reshape(layer.groups, -1)
        kernel = layer.weight[0, 0].numel()
        steps = torch.arange(kernel, device=squares.device)
        places = torch.tensor(reader.columns, device=squares.device)  # (units, columns of a unit)
        self.columns = (places[:, :, None] * kernel + steps).flatten(1)

    def costs(self, units: list[int]) -> Tensor:
        """(len(units),) weighted squared error, per image and place, that each one's removal adds."""
        at = self.columns[units]
        blocks = self.inverse[:, at[:, :, None], at[:, None, :]]  # (groups, units, s, s)
        weights = self.weight[:, :, at].permute(0, 2, 3, 1)  # (groups, units, s, o)
        errors = (torch.linalg.solve(blocks, weights) * weights).sum(2)  # (groups, units, o)
        costs: Tensor = (errors * self.importance[:, None]).sum((0, 2)).cpu()
        return costs

    def remove(self, unit: int) -> None:
        """Without the unit, and with the others refitted."""
        at = self.columns[unit]
        step = torch.linalg.solve(self.inverse[:, at[:, None], at], self.inverse[:, at])  # (groups, s, d)
        self.weight = self.weight - self.weight[:, :, at] @ step
        self.inverse = self.inverse - self.inverse[:, at].mT @ step
