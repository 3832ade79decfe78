"""First-order Taylor: what the loss would change by if a unit were 0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeprune.calibration import BATCH, calibration_of, logits_on, readers_of
from edgeprune.channels import ChannelGroup
from edgeprune.cutting import device_of
from edgeprune.data import Data
from edgeprune.errors import SchemeError
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable
from edgeprune.training.evaluation import mode


@dataclass(frozen=True)
class Taylor(LookingScheme):
    """Score of a unit: mean over images of |sum of activation x gradient of the loss| wherever it is read.

    ``s_u = mean_i |sum_{layers l that read u} sum_{channels, places} x_l dloss_i / dx_l|``, which is the
    derivative of image i's loss by a factor 1 at the unit; then divided by the group's l2 norm.

    Source:
        Molchanov et al. 2017, arXiv 1611.06440, equations 8 (criterion) and 13 (l2 norm per layer); a unit of
        several layers as one factor as in Molchanov et al. 2019, arXiv 1906.10771, section 3.2.

    Differs:
        - At the inputs of the layers that read a unit, where removing it takes effect; images in evaluation
          mode, on calibration images.
        - Channels that go together count as one factor: their terms are added before the absolute value.

    Example:
        >>> Taylor(images=200).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    images: int = option(200, "calibration images in all, equally many of each class", at_least=1)
    normalize: Literal["l2", "none"] = option("l2", "divide by the l2 norm of the group, or not")
    seed: int = option(0, "of the choice of images", at_least=0)

    name: ClassVar[str] = "taylor"

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every movable group that a convolution or linear layer reads.

        Raises:
            SchemeError: The gradient is not finite.
            DataError: The calibration split has too few images of a class.
        """
        calibration = calibration_of(data, max(1, self.images // len(data.classes)), seed=self.seed)
        readers = {group.name: readers_of(model, group) for group in movable(groups)}
        layers = sorted({reader.layer for found in readers.values() for reader in found})
        device = device_of(model)
        totals: dict[str, Tensor] = {}
        for part in range(0, len(calibration), BATCH):
            chosen = slice(part, part + BATCH)
            images, labels = calibration.images[chosen].to(device), calibration.labels[chosen].to(device)
            slopes = _slopes(model, images, labels, layers)
            for group in movable(groups):
                terms = [
                    torch.stack([slopes[reader.layer][:, list(unit)].sum(1) for unit in reader.channels], 1)
                    for reader in readers[group.name]
                    if reader.layer in slopes
                ]
                if terms:
                    size = torch.stack(terms).sum(0).abs().double().sum(0).cpu()  # (units,)
                    totals[group.name] = totals.get(group.name, 0) + size / len(calibration)
        for name, score in totals.items():
            if not bool(score.isfinite().all()):
                raise SchemeError(
                    "could not score the channels",
                    where=f"the gradient at {name}",
                    value="not finite",
                    expected="finite numbers",
                    hint="Check the weights and the images of the network.",
                )
            if self.normalize == "l2" and bool(score.any()):
                totals[name] = score / score.norm()
        return Scores(totals, facts={"options": asdict(self), "images": len(calibration)})


def _slopes(model: nn.Module, images: Tensor, labels: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """By layer, the derivative of each image's loss by a factor at each input channel (N, C_in)."""
    with mode(model, False), torch.enable_grad(), _factors(model, layers, len(images)) as factors:
        loss = nn.functional.cross_entropy(logits_on(model, images), labels, reduction="sum")
        used = {name: factor for name, factor in factors.items() if factor is not None}
        found = torch.autograd.grad(loss, list(used.values()), materialize_grads=True)
    return dict(zip(used, found, strict=True))


@contextlib.contextmanager
def _factors(model: nn.Module, layers: list[str], images: int) -> Iterator[Mapping[str, Tensor | None]]:
    """Multiply what each layer receives by a factor of 1 per image and channel, made at its first use."""
    factors: dict[str, Tensor | None] = {}
    modules = dict(model.named_modules(remove_duplicate=False))

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def scale(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            maps, *rest = args
            linear = isinstance(layer, nn.Linear)
            if factors.get(name) is None:
                width = maps.shape[-1] if linear else maps.shape[1]
                factors[name] = torch.ones(
                    images, width, dtype=maps.dtype, device=maps.device
                ).requires_grad_()
            factor = factors[name]
            assert factor is not None
            if linear:
                scaled = (maps.reshape(images, -1, maps.shape[-1]) * factor[:, None]).reshape(maps.shape)
            else:
                scaled = maps * factor.reshape(*factor.shape, *(1,) * (maps.ndim - 2))
            return (scaled, *rest)

        return scale

    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in layers]
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()
