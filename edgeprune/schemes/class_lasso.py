"""What the lassos on Grams share: from a network and its data to the lambda at which each unit enters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import Calibration, calibration_of, readers_of, super_classes
from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.errors import SchemeError
from edgeprune.gram import Columns, Quadratic, columns_of, quadratics
from edgeprune.lasso import Penalty, Problem, lambda_max, path
from edgeprune.launch import shares, world
from edgeprune.schemes.kept import digest, kept
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable
from edgeprune.schemes.sensitivity import stakes

MANY_CLASSES = 20
"""Classes are joined where there are more."""

TOLERANCE = 1e-6
"""Largest duality gap of a solution, as a share of the objective at 0."""

MISSED = 1e-3
"""A gap above it is an error: the order of the units could be another."""

FAINT = 1e-9
"""Smallest weight of a layer, of the largest."""

TINY = torch.finfo(torch.float32).tiny
_FIELDS = ("gram", "target", "energy")


@dataclass(frozen=True)
class GramLasso(LookingScheme):
    """A lasso on Grams, of which a unit's score is the strength of the penalty at which it enters."""

    images: int = option(200, "calibration images in all", at_least=2)
    kernel: Literal["gaussian", "laplace", "linear"] = option("gaussian", "what compares two images' maps")
    scale: Literal["layer", "units", "channel", "none"] = option(
        "layer",
        "divide the Grams by one number per layer, only the units' ones so, by one per channel, or not",
    )
    centre: bool = option(True, "take the means of rows and columns off the Grams")
    lambdas: int = option(60, "strengths of the penalty on the path", at_least=2)
    path_ratio: float = option(1e-4, "smallest strength over the largest", above=0, below=1)
    weigh: Literal["logits", "none"] = option(
        "logits", "weight of a layer's loss: how far the logits hang on its output, or the same for all"
    )
    seed: int = option(0, "of the choice of images", at_least=0)

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every movable group that a convolution or linear layer reads.

        Raises:
            SchemeError: A layer's output is the same for every image or not finite, or a solution is far from
                solved.
            DataError: The calibration split has too few images.
        """
        calibration, about = self.calibrate(model, data)
        columns = columns_of(model, groups)
        found = self.statistics(model, calibration, columns)
        entries = enter(found, self.pose, self.penalty, self.lambdas, self.path_ratio)
        found, entries = together(found, entries)
        scores = scores_of(found, entries.entry)
        order = [name for name, _ in model.named_modules(remove_duplicate=False)]
        layers = {
            layer.columns.layer: {
                "units": len(layer.columns.units),
                "constant_units": int(layer.constant.sum()),
                "certificate": entries.gap[layer.columns.layer],
                **self.structure(layer),
            }
            for layer in sorted(found, key=lambda layer: order.index(layer.columns.layer))
        }
        facts = {
            "options": asdict(self),
            **about,
            **facts_of(entries),
            "layers": layers,
            "skipped": skipped_of(model, groups, found),
        }
        wanted = [group.name for group in movable(groups) if group.name in scores]
        return Scores({name: scores[name] for name in wanted}, facts=facts)

    def statistics(
        self, model: nn.Module, calibration: Calibration, columns: tuple[Columns, ...]
    ) -> tuple[Quadratic, ...]:
        """The layers' weighed losses; the same for every scheme of the same options, see ``keeping``."""
        own = own_columns(columns)
        options = (self.kernel, self.centre, self.scale, self.weigh, self.seed)

        def look() -> tuple[Quadratic, ...]:
            grams = quadratics(
                model, own, calibration, kernel=self.kernel, centre=self.centre, scale=self.scale
            )
            return self.weighed(model, calibration, tuple(grams), tuple(layer.layer for layer in columns))

        images = (calibration.images, calibration.labels)
        return kept(lambda: digest(model, images, calibration.classes, columns, own, options), look)

    def weighed(
        self,
        model: nn.Module,
        calibration: Calibration,
        found: tuple[Quadratic, ...],
        names: tuple[str, ...],
    ) -> tuple[Quadratic, ...]:
        """The losses by the layers' weights, so that one lambda costs the network the same in all of them.

        Args:
            model: Network.
            calibration: The images.
            found: Some of its layers.
            names: All layers that are compared.
        """
        if self.weigh == "none":
            return found
        weights = stakes(model, calibration.images, names, seed=self.seed)
        most = max(weights.values(), default=0.0)
        if most <= 0:
            raise SchemeError(
                "could not weigh the layers",
                where="the gradient of the logits at every layer",
                value="0",
                expected="a network whose output hangs on its layers",
                hint='Set weigh to "none", or check the weights of the network.',
            )
        shares = {name: max(weight / most, FAINT) for name, weight in weights.items()}
        return tuple(
            replace(layer, **{name: getattr(layer, name) * shares[layer.columns.layer] for name in _FIELDS})
            for layer in found
        )

    @abstractmethod
    def calibrate(self, model: nn.Module, data: Data) -> tuple[Calibration, dict[str, Any]]:
        """The images, and facts about them."""

    @abstractmethod
    def penalty(self, layers: Sequence[Quadratic]) -> Penalty:
        """The norm of some layers' coefficients."""

    def pose(self, problem: Problem) -> Problem:
        """The problem that is solved."""
        return problem

    def structure(self, layer: Quadratic) -> dict[str, Any]:
        """What the penalty is made of, for the report."""
        del layer
        return {}


@dataclass(frozen=True)
class ClassLasso(GramLasso):
    """A lasso with one column of coefficients per class, tied by how the classes are related."""

    super_classes: int = option(10, "many classes (over 20) are joined into so many", at_least=1)

    def calibrate(self, model: nn.Module, data: Data) -> tuple[Calibration, dict[str, Any]]:
        """Equally many images of each class."""
        calibration, joined = class_images(model, data, self.images, self.super_classes, self.seed)
        count = len(calibration.classes)
        return calibration, {
            "classes": list(calibration.classes),
            "joined_classes": joined,
            "images_per_class": len(calibration) // count,
        }

    def structure(self, layer: Quadratic) -> dict[str, Any]:
        """How the layer's output relates the classes."""
        return {"relatedness": [[round(value, 4) for value in row] for row in layer.relatedness.tolist()]}


def class_images(
    model: nn.Module, data: Data, images: int, joined: int, seed: int
) -> tuple[Calibration, dict[str, list[str]]]:
    """About ``images`` images, equally many of each class; many classes are joined into ``joined``.

    Returns:
        The images, and which classes were joined, by the name of the joined class.

    Raises:
        SchemeError: That is less than 2 per class.
        DataError: The calibration split has fewer.
        ModelError: There are many classes, and no classifier to join them by.
    """
    names = data.classes
    sets = None
    if len(names) > MANY_CLASSES and joined < len(names):
        sets = super_classes(model, len(names), joined)
    count = len(names) if sets is None else len(sets)
    if images // count < 2:
        raise SchemeError(
            "could not calibrate",
            where="images",
            value=images,
            expected=f"at least {2 * count}: 2 of each of {count} classes",
        )
    found = calibration_of(data, images // count, joined=sets, seed=seed)
    members = [] if sets is None else [[names[number] for number in members] for members in sets]
    return found, dict(zip(found.classes, members, strict=False))


@dataclass(frozen=True)
class Entries:
    """Where the units of some layers enter.

    Attributes:
        entry: By layer, the largest lambda at which each column is non-zero (p,).
        gap: By layer, the largest duality gap on its path, as a share of the objective at 0.
        lambdas: The path (N,).
    """

    entry: dict[str, Tensor]
    gap: dict[str, float]
    lambdas: Tensor


def enter(
    found: Sequence[Quadratic],
    pose: Callable[[Problem], Problem],
    penalty: Callable[[Sequence[Quadratic]], Penalty],
    lambdas: int,
    path_ratio: float,
) -> Entries:
    """Follow one path of lambdas through all layers.

    Args:
        found: The layers.
        pose: Makes the problem that is solved, e.g. with tied columns.
        penalty: Makes the penalty of some layers.
        lambdas: Number of lambdas, log-spaced.
        path_ratio: Smallest lambda over the largest, at which all layers are 0.

    Raises:
        SchemeError: No unit of any layer tells anything, or a solution is far from solved.
    """
    # Layers of one width are solved together.
    widths: dict[int, list[Quadratic]] = {}
    for layer in found:
        widths.setdefault(len(layer.columns.units), []).append(layer)
    problems = [
        (
            layers,
            pose(Problem(*(torch.stack([getattr(layer, name) for layer in layers]) for name in _FIELDS))),
        )
        for layers in widths.values()
    ]
    top = max((float(lambda_max(problem, penalty(layers)).max()) for layers, problem in problems), default=0)
    top = max(world().gather(top))
    if top <= 0:
        raise SchemeError(
            "could not score the channels",
            where="every unit",
            value="the same for every calibration image",
            expected="units that differ between images",
        )
    grid = top * torch.logspace(0, math.log10(path_ratio), lambdas, dtype=torch.float64)
    entry, gap = {}, {}
    for layers, problem in problems:
        result = path(problem, penalty(layers), grid, tolerance=TOLERANCE)
        for number, layer in enumerate(layers):
            entry[layer.columns.layer] = result.entry[number].cpu()
            gap[layer.columns.layer] = float(result.gap[number].max())
    worst = max(gap, key=gap.__getitem__, default="")
    if gap and not gap[worst] <= MISSED:
        raise SchemeError(
            "could not score the channels",
            where=f"the duality gap of {worst}",
            value=f"{gap[worst]:.1e}",
            expected=f"at most {TOLERANCE:g}",
            hint="Take a larger path_ratio, or another scale.",
        )
    return Entries(entry, gap, grid)


def own_columns(columns: Sequence[Columns]) -> tuple[Columns, ...]:
    """The layers that this rank compares; layers of one width, which are solved together, stay together.

    So every layer meets the same numbers in the same order as on one process, and has the same bits.
    """
    widths = sorted({len(layer.units) for layer in columns})
    # Grams grow with the square of the width, Newton steps with its cube.
    costs = [float(width) ** 3 * sum(len(layer.units) == width for layer in columns) for width in widths]
    here = world()
    mine = {widths[number] for number in shares(costs, here.size)[here.rank]}
    return tuple(layer for layer in columns if len(layer.units) in mine)


def together(found: Sequence[Quadratic], entries: Entries) -> tuple[tuple[Quadratic, ...], Entries]:
    """The layers and entries of all ranks; without the Grams where there are several."""
    here = world()
    if here.size == 1:
        return tuple(found), entries
    empty = torch.empty(0)
    light = [
        replace(
            layer, gram=empty, target=empty, energy=empty, relatedness=layer.relatedness.cpu(),
            zero=layer.zero.cpu(), constant=layer.constant.cpu(),
        )
        for layer in found
    ]  # fmt: skip
    parts = here.gather((light, entries))
    return tuple(layer for layers, _ in parts for layer in layers), Entries(
        {name: value for _, part in parts for name, value in part.entry.items()},
        {name: value for _, part in parts for name, value in part.gap.items()},
        entries.lambdas,
    )


def scores_of(found: Sequence[Quadratic], entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per group the largest entry of each unit over the layers that read it.

    A unit that is 0 wherever it is read scores 0: it is free to go. One that is the same for every image
    tells nothing, but is not free: it scores least.
    """
    best: dict[str, dict[int, float]] = {}
    for layer in found:
        values = entry[layer.columns.layer].clamp(min=TINY)
        values = values.masked_fill(layer.constant.cpu(), TINY).masked_fill(layer.zero.cpu(), 0.0)
        for (name, unit), value in zip(layer.columns.units, values.tolist(), strict=True):
            known = best.setdefault(name, {})
            known[unit] = max(known.get(unit, 0.0), value)
    return {
        name: torch.tensor([known.get(unit, TINY) for unit in range(max(known) + 1)])
        for name, known in best.items()
    }


def facts_of(entries: Entries) -> dict[str, Any]:
    """The path and its certificates, for the report."""
    return {
        "lambdas": [float(f"{value:.6g}") for value in entries.lambdas.tolist()],
        "certificate": max(entries.gap.values()),
        "tolerance": TOLERANCE,
        "stopped_short": {name: gap for name, gap in entries.gap.items() if gap > TOLERANCE},
    }


def skipped_of(
    model: nn.Module, groups: tuple[ChannelGroup, ...], found: Sequence[Quadratic]
) -> dict[str, str]:
    """By layer or group, why it says nothing about the units that it reads or holds."""
    looked_at = {layer.columns.layer for layer in found}
    reasons = {}
    for group in movable(groups):
        readers = {reader.layer for reader in readers_of(model, group)}
        named = {member.tensor.rpartition(".")[0] for member in group.members if member.role == "in"}
        for layer in sorted(named - readers):
            reasons[layer] = "reads them, but is no convolution or linear layer"
        for layer in sorted(readers - looked_at):
            reasons[layer] = "is never called as a layer"
        if not readers & looked_at:
            reasons[group.name] = "no layer that was looked at reads its units: the group is kept whole"
    return reasons
