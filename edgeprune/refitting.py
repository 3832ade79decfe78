"""Refit: the weights of a slim network, layer by layer, by least squares against the dense network."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.calibration import calibration_of
from edgeprune.cutting import device_of, first_line, tensors_of
from edgeprune.data import Data
from edgeprune.errors import DataError, EdgepruneError, ModelError
from edgeprune.flow import Follow, Site, Steps, channels_first, operand, product_of
from edgeprune.moments import Moments, sampled_places
from edgeprune.plan import Plan
from edgeprune.training.evaluation import mode

PROBLEM = "could not refit the slim network"

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried for each layer."""

HELD_OUT = 4
"""One image in so many is not fitted to: the ridge, and whether to refit at all, are chosen on it."""

EXACT = 1e-9
"""Share of a layer's variance below which it lacks nothing but rounding."""

FAINT = 1e-4
"""A norm's weight below this share of the largest lets too little through to say what its channel lacks."""


@dataclass(frozen=True)
class LayerFit:
    """What became of one layer.

    Attributes:
        layer: Name.
        before: What it lacks on held-out images: squared difference to what it should return, relative to
            the variance of that.
        after: The same, refitted; ``before`` if that did not help.
        ridge: The one that lacks least; None: the weights stay as they were.
    """

    layer: str
    before: float
    after: float
    ridge: float | None


@dataclass(frozen=True)
class Refit:
    """What a refit has done.

    Attributes:
        kept: ``"weights"``: the refitted ones; ``"weights and norms"``: and re-estimated batch norm
            statistics; ``"norms"``: these alone; ``"nothing"``: the network was best as it was.
        errors: For each of these, the squared difference of the network's outputs to the dense network's,
            relative to the variance of these, on held-out images.
        layers: In the order of the forward pass.
        images: Calibration images, those that were held out included.
    """

    kept: str
    errors: dict[str, float]
    layers: tuple[LayerFit, ...]
    images: int


def refit(
    model: nn.Module,
    dense: nn.Module,
    plan: Plan,
    data: Data,
    *,
    images: int = 300,
    places: int = 256,
    seed: int = 0,
) -> Refit:
    """Let the weights that are left make up for those that are gone, in place, without training.

    Layer by layer, in the order of the forward pass and on what the layers before it return by now, ridge
    regression moves a convolution's or linear layer's weights towards what the dense layer returns; where
    its output (after a batch norm, if one follows) is added to what came before, as at the end of a residual
    block, towards the dense network's sum, so that the shortcut's own drift is made up for too. A layer
    without bias in front of a batch norm uses the norm's running mean as one. A layer keeps its weights if
    the change does not help on held-out images; so does the network.

    Layers that are used more than once, transposed convolutions and layers whose weight is computed stay.

    Args:
        model: Slim network, as ``slim`` made it.
        dense: The network that it was made of; it is not changed.
        plan: The plan that made it.
        data: Of which ``calib`` is used.
        images: From ``data.calib``, as many of each class, at most; all of them are held in memory at once,
            at the network's widest point.
        places: Of each map, drawn at random, that are looked at.
        seed: Of the draw.

    Raises:
        DataError: There are fewer than four images.
        ModelError: A network does not run on them.

    Example:
        >>> small = edgeprune.slim(dense, plan)  # doctest: +SKIP
        >>> edgeprune.refit(small, dense, plan, data).kept  # doctest: +SKIP
        'weights'
    """
    calibration = calibration_of(data, max(1, images // len(data.classes)), or_fewer=True)
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(calibration), generator=generator)[:images]  # fewer than classes, perhaps
    if len(order) < HELD_OUT:
        rule = f"at least {HELD_OUT} images"
        raise DataError(PROBLEM, where="the calibration images", value=len(order), expected=rule)
    pictures = calibration.images[order].to(device)
    held = torch.arange(len(order), device=device) % HELD_OUT == 0
    rows = {key: keep for (key, axis), keep in plan.cuts().items() if axis == 0}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    try:
        with torch.no_grad(), mode(dense, False), mode(model, False):
            pairs = common_sites(dense, model, pictures[:1])
            targets = Targets([theirs for theirs, _ in pairs], rows, places, generator)
            with targets:
                wanted = dense(pictures)
            ours = [site for _, site in pairs]
            errors = {"nothing": outputs_lack(model, pictures, wanted, held)}
            fitting = Fitting(model, ours, targets, held)
            with fitting:
                model(pictures)
            errors["weights"] = outputs_lack(model, pictures, wanted, held)
            states = {"nothing": before, "weights": copy_of(model)}
            for name, start in (("weights and norms", "weights"), ("norms", "nothing")):
                model.load_state_dict(states[start])
                if estimate_norms(model, pictures[~held]):
                    states[name] = copy_of(model)
                    errors[name] = outputs_lack(model, pictures, wanted, held)
        kept = min(errors, key=lambda name: errors[name])
        model.load_state_dict(states[kept])
    except BaseException as reason:
        model.load_state_dict(before)
        if isinstance(reason, (EdgepruneError, torch.OutOfMemoryError)) or not isinstance(reason, Exception):
            raise
        raise ModelError(
            PROBLEM,
            where="a forward pass on the calibration images",
            value=f"failing ({first_line(reason)})",
            expected="networks for this data",
        ) from reason
    return Refit(kept, errors, tuple(fitting.layers), len(pictures))


def common_sites(dense: nn.Module, model: nn.Module, example: Tensor) -> list[tuple[Site, Site]]:
    """The places of each layer in both networks; a sum counts only if it is one in both."""
    found = []
    for network in (dense, model):
        follow = Follow(network)
        with follow:
            network(example)
        found.append({site.weight: site for site in follow.sites()})
    theirs, ours = found
    pairs = [(theirs[key], ours[key]) for key in ours if key in theirs]
    return [(a, b) if a.sum and b.sum else (replace(a, sum=None), replace(b, sum=None)) for a, b in pairs]


class Targets(Steps):
    """While active on the dense network: what its layers return, or the sums, at a sample of places.

    Attributes:
        places: By weight key, (N, P) int64.
        wanted: By weight key, (N, C_out, P): the rows that the slim network keeps.
    """

    def __init__(
        self, sites: Iterable[Site], rows: dict[str, Tensor], most: int, draw: torch.Generator
    ) -> None:
        super().__init__()
        self.rows, self.most, self.generator = rows, most, draw
        self.layers = {site.number: site for site in sites}
        self.results = {site.sum.result if site.sum else site.number: site for site in self.layers.values()}
        self.kinds: dict[str, Callable[..., Any]] = {}
        self.places: dict[str, Tensor] = {}
        self.wanted: dict[str, Tensor] = {}

    def step(
        self, number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator and take what is wanted of its result."""
        result = func(*args, **kwargs)
        if number in self.layers:
            self.kinds[self.layers[number].weight] = func
        if number in self.results:
            key = self.results[number].weight
            maps = channels_first(self.kinds[key], result)
            places = sampled_places(len(maps), maps.shape[2], self.most, self.generator).to(maps.device)
            rows = self.rows.get(key)
            maps = maps if rows is None else maps[:, rows.to(maps.device)]
            self.places[key], self.wanted[key] = places, at_places(maps, places)
        return result


class Fitting(Steps):
    """While active on the slim network: fits each layer just before it is used.

    Attributes:
        layers: What became of them.
    """

    def __init__(self, model: nn.Module, sites: list[Site], targets: Targets, held: Tensor) -> None:
        super().__init__()
        self.model, self.targets, self.held = model, targets, held
        self.sites = {site.number: site for site in sites}
        self.wanted_later = {site.sum.other for site in sites if site.sum}
        self.others: dict[int, Tensor] = {}
        self.tensors = tensors_of(model)
        self.layers: list[LayerFit] = []

    def step(
        self, number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator, a layer with its new weights."""
        result = func(*args, **kwargs)
        site = self.sites.get(number)
        if site is not None and self.fit(site, func, args, kwargs, result):
            result = func(*args, **kwargs)
        if number in self.wanted_later:
            self.others[number] = result
        return result

    def fit(
        self,
        site: Site,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor,
    ) -> bool:
        """Fit one layer; whether its weights have changed."""
        places = self.targets.places.pop(site.weight)
        lacking = self.targets.wanted.pop(site.weight).double()
        present = at_places(channels_first(func, result), places).double()
        scale, offset = self.norm_after(site, present)
        if site.sum is not None:
            other = at_places(channels_first(func, self.others[site.sum.other]), places)
            variance = around_mean(lacking)
            lacking -= other + scale * present + offset
            usable = scale.abs() > FAINT * scale.abs().max()
            lacking = torch.where(usable, lacking / torch.where(usable, scale, 1), 0)
        else:
            variance = around_mean(lacking * scale)
            lacking -= present
        layer = product_of(func, args, kwargs)
        received = operand(args, kwargs)
        received = received if layer.stride else channels_first(func, received)
        fitted, checked = (
            Moments.of_layer(layer, received[some], places[some], lacking[some].to(received.dtype))
            for some in (~self.held, self.held)
        )
        importance = scale.square().reshape(layer.groups, -1)

        def lacks(weight: Tensor, bias: Tensor) -> float:
            error = float((checked.error(weight, bias) * importance).sum())
            return share_of(error, variance * float(self.held.double().mean()))

        nothing = torch.zeros_like(layer.rows, dtype=torch.float64), torch.zeros_like(fitted.r)
        before = lacks(*nothing)
        best: tuple[float, float | None, tuple[Tensor, Tensor]] = (before, None, nothing)
        intercept = site.bias is not None or site.norm is not None
        for ridge in RIDGES if before > EXACT else ():
            change = fitted.solved(ridge, intercept=intercept)
            found = lacks(*change)
            if found < best[0]:
                best = (found, ridge, change)
        after, chosen, (weight, bias) = best
        self.layers.append(LayerFit(site.weight.rpartition(".")[0], before, after, chosen))
        if chosen is None:
            return False
        self.change(site.weight, weight)
        if site.bias is not None:
            self.change(site.bias, bias)
        elif site.mean is not None:
            self.change(site.mean, -bias)
        return True

    def norm_after(self, site: Site, present: Tensor) -> tuple[Tensor, Tensor]:
        """(C_out, 1) factor and offset of the batch norm that follows a layer; 1 and 0 if there is none."""
        scale, offset = torch.ones_like(present[0, :, :1]), torch.zeros_like(present[0, :, :1])
        if site.mean is not None:
            norm = self.model.get_submodule(site.mean.rpartition(".")[0])
            assert isinstance(norm, _BatchNorm)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()[:, None]
            if norm.weight is not None:
                scale = scale * norm.weight.double()[:, None]
            offset = -scale * norm.running_mean.double()[:, None]
            if norm.bias is not None:
                offset = offset + norm.bias.double()[:, None]
        return scale, offset

    def change(self, key: str, by: Tensor) -> None:
        """Add to a parameter or buffer, in place."""
        tensor = self.tensors[key]
        tensor.data += by.reshape(tensor.shape).to(tensor.dtype)


def at_places(maps: Tensor, places: Tensor) -> Tensor:
    """(N, C, P) of maps (N, C, places) at (N, P)."""
    return maps.gather(2, places[:, None].expand(-1, maps.shape[1], -1))


def around_mean(maps: Tensor) -> float:
    """Squares around the mean of each channel, summed over (N, C, P)."""
    return float((maps - maps.mean((0, 2), keepdim=True)).square().sum())


def outputs_lack(model: nn.Module, pictures: Tensor, wanted: Tensor, held: Tensor) -> float:
    """Squared difference of the outputs on held-out images, relative to the variance of the wanted ones."""
    theirs = wanted[held].double().flatten(1)
    found = (model(pictures[held]).double().flatten(1) - theirs).square().sum()
    variance = (theirs - theirs.mean(0)).square().sum()
    return share_of(float(found), float(variance))


def share_of(error: float, variance: float) -> float:
    """Their ratio; the largest number there is, which JSON knows, where it would be none."""
    share = error / max(variance, sys.float_info.min)
    return share if math.isfinite(share) else sys.float_info.max


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """Its state dict, in memory of its own."""
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def estimate_norms(model: nn.Module, pictures: Tensor) -> bool:
    """Give the batch norms the statistics of these images, in place; whether there are any."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    with mode(model, False):
        for norm in norms:
            norm.train()
            norm.momentum = 1.0  # the new statistics replace the old ones
        model(pictures)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return bool(norms)
