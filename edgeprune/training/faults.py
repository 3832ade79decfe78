"""What goes wrong in a training, said so that one can act on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.data import Data, Loader
from edgeprune.errors import EdgepruneError, TrainingError
from edgeprune.training.evaluation import device_of, mode

Batch = tuple[Tensor, Tensor]


def diverged(where: str, value: object, lr: float, *, layer: str = "", checkpoint: str = "") -> TrainingError:
    """A number is not finite.

    Args:
        where: What is not.
        value: It.
        lr: Learning rate of the step.
        layer: What `first_fault` found.
        checkpoint: The last good one, and what it holds.
    """
    hints = [f"{layer}."] if layer else []
    hints.append(f"Lower the learning rate: it was {lr:.3g}, try {lr / 10:.3g}.")
    hints += [f"The last good checkpoint is {checkpoint}."] if checkpoint else []
    return TrainingError(
        "could not go on training", where=where, value=value, expected="finite numbers", hint=" ".join(hints)
    )


def first_fault(model: nn.Module, loss: Callable[[], Tensor]) -> str:
    """The first layer whose output, or else whose gradient, is not finite; empty: none was found.

    The network's statistics and gradients are put back.

    Args:
        model: In training mode.
        loss: Repeats the step's forward pass, with the same random numbers.
    """
    kept = {key: value.detach().clone() for key, value in model.state_dict().items()}
    order: list[tuple[str, nn.Module]] = []
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            order.append((name, module))
            if not found and not _finite(output):
                why = ""
                if not all(_finite(parameter) for parameter in module.parameters()):
                    why = ", whose weights are not finite"
                elif not all(_finite(value) for value in inputs):
                    why = ", whose input is not finite"
                found.append(f"The first output that is not finite is that of {_called(name, module)}{why}")

        return module.register_forward_hook(hook)

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [watch(name, module) for name, module in leaves]
    try:
        value = loss()
        if not found:
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            bad = {
                id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None and not _finite(g)
            }
            for name, module in reversed(order):
                if any(id(parameter) in bad for parameter in module.parameters()):
                    found.append(f"The first gradient that is not finite is that of {_called(name, module)}")
                    break
    finally:
        for handle in handles:
            handle.remove()
        model.load_state_dict(kept)
    return found[0] if found else ""


def unfinite_weight(model: nn.Module) -> str:
    """Name of the first parameter that is not finite; empty: all are."""
    named = list(model.named_parameters())
    if not named or bool(torch.stack([parameter.isfinite().all() for _, parameter in named]).all()):
        return ""
    return next(name for name, parameter in named if not bool(parameter.isfinite().all()))


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return all(_finite(item) for item in value) if isinstance(value, list | tuple) else True


def _called(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"layer {name} ({kind})" if name else f"the network itself ({kind})"


@contextlib.contextmanager
def memory_explained(loader: Loader, images: int) -> Iterator[None]:
    """Turn a lack of memory into an error that says what to try.

    Raises:
        TrainingError: Memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as reason:
        text = str(reason)
        on_cpu = "DefaultCPUAllocator" in text or "not enough memory" in text
        if not isinstance(reason, torch.OutOfMemoryError | MemoryError) and not on_cpu:
            raise
        size = int(getattr(loader, "batch_size", images) or images)
        line = text.splitlines()[0] if text else "out of memory"
        raise TrainingError(
            "could not train",
            where="the memory",
            value=f"too small for batches of {size} images ({line})",
            expected="room for the network, its gradients and one batch",
            hint=f"Try a batch size of {max(2, size // 2)} (--batch-size {max(2, size // 2)}).",
        ) from reason


def batches(loader: Loader, first: int, epoch: int, seed: Callable[[int], None]) -> Iterator[Batch]:
    """A pass over the split from one of its steps on.

    A loader that cannot leave batches out makes them again, each with the random states of its step, and
    they are dropped.

    Args:
        loader: Its epoch is set.
        first: Step to begin with.
        epoch: From 0, for messages.
        seed: Called with a step before its batch is fetched: sets the random states.

    Raises:
        TrainingError: The loader failed.
    """
    step = 0
    try:
        seed(0)
        step = loader.skip_to(first) if first else 0
        iterator = iter(loader)
        while True:
            seed(step)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if step >= first:
                yield batch
            step += 1
    except (EdgepruneError, GeneratorExit):
        raise
    except Exception as reason:  # any loader, so any exception
        raise TrainingError(
            "could not read the training images",
            where=f"data.train at epoch {epoch + 1}, step {step + 1}",
            value=f"failing ({type(reason).__name__}: {reason})",
            expected="a batch of images and labels",
            hint="Mend it and run the same again: a training with a checkpoint goes on from there.",
        ) from reason


def check_fit(model: nn.Module, data: Data) -> None:
    """The network takes the data's images and has an output for each of its classes."""
    problem, classes, shape = "could not train", len(data.classes), tuple(data.example.shape)
    if len(data.train) == 0:
        raise TrainingError(problem, where="data.train", value="empty", expected="at least one batch")
    try:
        with mode(model, False), torch.no_grad():
            logits = model(data.example.to(device_of(model)))
        found: object = tuple(logits.shape)
    except Exception as reason:  # any network, so any exception
        raise TrainingError(
            problem,
            where=f"the network on an example {shape} of the data",
            value=f"failing ({type(reason).__name__}: {reason})",
            expected="a network for this data",
        ) from reason
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise TrainingError(
            problem,
            where="the shape of the network's output",
            value=found,
            expected=f"(N, {classes}) for the data's {classes} classes",
            hint=f"Build the network with num_classes={classes}.",
        )
