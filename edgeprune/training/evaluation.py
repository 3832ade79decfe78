"""Accuracy and predictions of a network, and the mode that it is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgeprune.data import Loader, UserLoader
from edgeprune.errors import DataError
from edgeprune.launch import world
from edgeprune.training.ranks import own_part


def evaluate(model: nn.Module, loader: Loader) -> float:
    """Top-1 accuracy in 0..1, in eval mode; the network's mode is restored. Ranks share the images.

    Raises:
        DataError: The split is empty.
    """
    predicted, labels = _predictions(model, own_part(loader))
    counts = world().gather((int((predicted == labels).sum()), len(labels)))
    right, images = sum(count[0] for count in counts), sum(count[1] for count in counts)
    if images == 0:
        raise DataError("could not evaluate", where="the split", value="empty", expected="images")
    return right / images


def predict(model: nn.Module, loader: Loader) -> Tensor:
    """Predicted classes (images,) int64 on the CPU, in the loader's order; the network's mode is restored."""
    return _predictions(model, loader)[0]


def _predictions(model: nn.Module, loader: UserLoader) -> tuple[Tensor, Tensor]:
    """Predicted classes and labels, each (images,) int64 on the CPU."""
    device = device_of(model)
    predicted: list[Tensor] = []
    truth: list[Tensor] = []
    with mode(model, False), torch.inference_mode():
        for inputs, labels in loader:
            if not len(labels):
                continue  # of a batch with fewer images than ranks
            # Left where they are until the end: fetching them here would stall a GPU at each batch.
            predicted.append(model(inputs.to(device, non_blocking=True)).argmax(1))
            truth.append(labels)
    nothing = torch.empty(0, dtype=torch.int64)
    if not predicted:
        return nothing, nothing
    return torch.cat(predicted).cpu(), torch.cat(truth).cpu()


def device_of(model: nn.Module) -> torch.device:
    """Where a network lives."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


@contextlib.contextmanager
def mode(model: nn.Module | None, training: bool) -> Iterator[None]:
    """Put a network into training or eval mode, and every module back into its own."""
    before = [(module, module.training) for module in model.modules()] if model is not None else []
    if model is not None:
        model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
