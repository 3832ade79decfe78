"""What the training steps call, and how its numbers lie in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from edgeprune.errors import TrainingError
from edgeprune.training.recipe import Precision, Recipe

Network = Callable[[Tensor], object]


def is_gpu(device: torch.device) -> bool:
    """Whether the host runs ahead of the device, so that looking at a number means waiting."""
    return device.type == "cuda"


def network_of(model: nn.Module, recipe: Recipe, device: torch.device) -> Network:
    """The network as the training steps call it: itself, or through torch.compile.

    What is called shares its weights with ``model``, from which they are read and saved; so their names stay,
    and a network that is slimmed afterwards is compiled anew by its own training.

    Raises:
        TrainingError: There is no compiler.
    """
    if not recipe.compile:
        return model
    with compiler_explained(True):
        torch.compile(_double)(torch.zeros(2, device=device))
    compiled: Network = torch.compile(model)
    return compiled


def _double(x: Tensor) -> Tensor:
    return x * 2


@contextlib.contextmanager
def compiler_explained(active: bool) -> Iterator[None]:
    """Turn what torch.compile says of itself into an error.

    Args:
        active: False: nothing is compiled, and torch's compiler is not even imported, which takes seconds.

    Raises:
        TrainingError: The compiler is missing, or fails on the network.
    """
    if not active:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except Exception as reason:
        if not isinstance(reason, TorchDynamoException) and not type(reason).__module__.startswith(
            ("torch._inductor", "torch._dynamo", "triton")
        ):
            raise
        line = next((text for text in str(reason).splitlines() if text.strip()), "")
        raise TrainingError(
            "could not compile the network",
            where="torch.compile",
            value=f"failing ({type(reason).__name__}: {line})",
            expected="a C++ compiler on a processor, Triton on a GPU, and a network that they take",
            hint="Install them, or train without compile.",
        ) from reason


def optimizer_of(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer over all that is to be trained; on a GPU a fused one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [{"params": trained}]
    if not recipe.decay_norms:
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim > 1]},
            {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    fused = True if is_gpu(device) else None
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=fused
        )
    return torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=fused,
    )


@contextlib.contextmanager
def laid_out(precision: Precision, *networks: nn.Module | None) -> Iterator[None]:
    """In bf16: kernels channels last, as the fast convolutions want them; contiguous again afterwards."""
    kernels = [
        parameter
        for network in networks
        if network is not None and precision == "bf16"
        for parameter in network.parameters()
        if parameter.ndim == 4 and parameter.is_contiguous()
    ]
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()
