"""How much the logits move when a layer's outputs do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgeprune.calibration import BATCH, PROBLEM, logits_on, maps_of, observe
from edgeprune.cutting import device_of
from edgeprune.errors import SchemeError
from edgeprune.training.evaluation import mode

DRAWS = 3
"""Random projections of the logits of each image."""


def sensitivities(
    model: nn.Module, images: Tensor, layers: tuple[str, ...], *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Tensor]:
    """Squared Jacobian of the logits, by layer and output channel.

    With J_o the derivative of the logits by a channel o at all of its places, the mean over images of
    ||J_o||_F^2: a change of the channel by independent numbers of variance v moves the logits by v times
    that, squared and summed. Estimated without bias from projections of the logits on normal numbers.

    Args:
        model: Network; it is left as it was.
        images: (n, C, H, W).
        layers: Names of convolutions and linear layers.
        seed: Of the projections.
        draws: Projections of each image.

    Returns:
        Layer -> float64 (C_out,), 0 where nothing of a layer reaches the logits; without layers that are
        never called.

    Raises:
        ModelError: The network does not run, or returns no logits.
        SchemeError: A gradient is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules(remove_duplicate=False))
    device = device_of(model)
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def visit(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                found[name] += maps_of(layer, gradient, size).double().flatten(2).square().sum((0, 2))

            width = maps_of(layer, output, size).shape[1]
            found.setdefault(name, torch.zeros(width, dtype=torch.float64, device=output.device))
            if output.requires_grad:
                output.register_hook(add)  # type: ignore[no-untyped-call]

        return visit

    handles = [modules[name].register_forward_hook(hook(name)) for name in layers]
    try:
        with mode(model, False), torch.enable_grad():
            for part in torch.split(images, BATCH):
                size = len(part)
                inputs = part.to(device).requires_grad_(True)
                logits = logits_on(model, inputs)
                for draw in range(draws if logits.requires_grad else 0):
                    noise = torch.randn(logits.shape, generator=generator).to(logits)
                    torch.autograd.grad(
                        logits, inputs, noise, retain_graph=draw + 1 < draws, allow_unused=True
                    )
    finally:
        for handle in handles:
            handle.remove()
    for name, squares in found.items():
        if not bool(squares.isfinite().all()):
            raise SchemeError(
                PROBLEM,
                where=f"the gradient of the logits at {name}",
                value="not finite",
                expected="finite numbers",
                hint="Check the weights and the images of the network.",
            )
    return {name: squares / (draws * len(images)) for name, squares in found.items()}


def stakes(model: nn.Module, images: Tensor, layers: tuple[str, ...], *, seed: int = 0) -> dict[str, float]:
    """What hangs on each layer: squared change of the logits if it returned its mean, to first order.

    ``sum_o ||J_o||_F^2 var_o`` with the Jacobian of `sensitivities` and the variance of a channel over images
    and places.

    Args:
        model: Network; it is left as it was.
        images: (n, C, H, W).
        layers: Names of convolutions and linear layers.
        seed: Of the projections.

    Returns:
        By layer, without layers that are never called.

    Raises:
        ModelError, SchemeError: As `sensitivities`.
    """
    squared = sensitivities(model, images, layers, seed=seed)
    sums: dict[str, Tensor] = {}
    count = dict.fromkeys(layers, 0)

    def visitor(name: str) -> Callable[[Tensor, Tensor], None]:
        def visit(received: Tensor, returned: Tensor) -> None:
            del received
            maps = returned.flatten(2).double()
            more = torch.stack([maps.sum((0, 2)), maps.square().sum((0, 2))])
            sums[name] = sums[name] + more if name in sums else more
            count[name] += maps.shape[0] * maps.shape[2]

        return visit

    observe(model, images, {name: visitor(name) for name in layers})
    found = {}
    for name, total in sums.items():
        mean, square = total / count[name]
        found[name] = float((squared[name] * (square - mean.square()).clamp(min=0)).sum())
    return found
