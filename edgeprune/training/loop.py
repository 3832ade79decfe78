"""The loop itself: SGD, schedule, distillation, hooks, choice of the epoch."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.data import Data
from edgeprune.errors import TrainingError, UsageError
from edgeprune.files import sha256_json
from edgeprune.launch import world
from edgeprune.training.checkpoint import Run, Selection, Stateful, digest
from edgeprune.training.evaluation import device_of, evaluate, mode
from edgeprune.training.progress import Epoch, History, Progress, Reporter
from edgeprune.training.ranks import Gradients, own_part, share_state
from edgeprune.training.sync_norms import synchronised

Schedule = Literal["cosine", "step"]
Precision = Literal["fp32", "bf16"]

TEMPERATURE = 4.0
TEACHER_SHARE = 0.5


def train(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    schedule: Schedule = "cosine",
    teacher: nn.Module | None = None,
    seed: int = 0,
    select: Selection = "best",
    precision: Precision = "fp32",
    after_step: Callable[[float], None] | None = None,
    penalty: Callable[[], float] | None = None,
    sparsity: Callable[[], float] | None = None,
    extra_state: Stateful | None = None,
    checkpoint: Path | None = None,
    phase: str = "train",
    on_progress: Callable[[Progress], None] | None = None,
) -> History:
    """Train ``model`` in place by SGD on cross-entropy, on the device that it lives on.

    Randomness (order, augmentation, dropout) depends on the seeds and the epoch alone, and the caller's
    random state is left as it was, so that a training resumed from its checkpoint ends, on the CPU, with
    the same bits as one that was never stopped.

    Args:
        model: Network from (N, C, H, W) to logits (N, classes).
        data: Trains on ``data.train``; every choice is made on ``data.val``; ``data.test`` is not read.
        epochs: Passes over ``data.train``; 0 returns at once.
        lr: Learning rate at the start.
        momentum: Of SGD.
        weight_decay: On every parameter, norms included, as the papers do.
        nesterov: Nesterov momentum.
        schedule: ``"cosine"``: from ``lr`` to 0, changing each step; ``"step"``: x 0.1 after 50 % and after
            75 % of the epochs.
        teacher: Adds distillation: half cross-entropy, half KL divergence to the teacher at temperature 4.
        seed: Of what is random in the network itself, such as dropout.
        select: ``"best"``: end with the weights of the best validation accuracy, among the start (a
            fine-tuning never ends worse than it began) and every epoch, the later one on a tie;
            ``"last"``: with those of the last epoch.
        precision: ``"bf16"``: convolutions and matrix products of the training steps in bfloat16
            (torch.autocast), images and kernels laid out channels last; weights, losses, batch-norm
            statistics and every evaluation stay float32. Faster where the processor has bfloat16.
        after_step: Called with the learning rate after each optimizer step.
        penalty: What the hook adds to the loss; for display.
        sparsity: Share of the hook's variables at 0; for display.
        extra_state: The hook's state; it goes into the checkpoint.
        checkpoint: File written after each epoch. If it exists, training goes on from it. It stays there
            at the end: delete it when the result is safe.
        phase: Name for ``on_progress``.
        on_progress: Told how it goes.

    Raises:
        UsageError: An argument is out of range.
        TrainingError: The loss is not finite; the network does not fit the data; the checkpoint is broken,
            belongs to other settings or cannot be written.

    Example:
        >>> history = train(model, data, epochs=10, lr=0.05)  # doctest: +SKIP
        >>> history.val_accuracy  # doctest: +SKIP
        0.987
    """
    _check_arguments(epochs, lr, momentum, weight_decay, nesterov, schedule, select, precision)
    if teacher is model:
        raise UsageError(
            "could not distil",
            where="teacher",
            value="the network that is trained",
            expected="another one",
            hint="Pass copy.deepcopy(model) to distil from its present state.",
        )
    if epochs == 0:
        return History(None, (), 0, None)
    _check_fit(model, data)
    steps, device = len(data.train), device_of(model)
    share_state(model)
    batches, gradients = own_part(data.train), Gradients(model)
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
    settings = ""
    if checkpoint is not None:
        decisive = {
            "sgd": [
                epochs,
                float(lr),
                float(momentum),
                float(weight_decay),
                nesterov,
                schedule,
                seed,
                select,
                precision,
            ],
            "data": [data.identity, steps, data.train.samples, data.val.samples],
            "model": digest(model.state_dict()),
            "teacher": digest(teacher.state_dict()) if teacher is not None else None,
            "extra": digest(extra_state.state_dict()) if extra_state is not None else None,
        }
        settings = sha256_json(decisive)
    run = Run(model, optimizer, extra_state, select, settings)
    if checkpoint is None or not run.load(checkpoint):
        run.note_accuracy(evaluate(model, data.val))

    reporter = Reporter(phase, epochs, steps, len(run.records), penalty, sparsity, on_progress)
    for epoch in range(len(run.records), epochs):
        batches.set_epoch(epoch)
        began, loss_sum, images, now_lr = perf_counter(), 0.0, 0, lr
        with (
            _seeded(device, seed, epoch),
            mode(model, True),
            mode(teacher, False),
            _laid_out(precision, model, teacher),
            synchronised(model, lambda: gradients.images > 0),
        ):
            for step, (inputs, labels) in enumerate(batches):
                now_lr = learning_rate(schedule, lr, epoch, epochs, step, steps)
                part = gradients.take(inputs.to(device), labels.to(device))
                loss, count = _step(model, teacher, *part, optimizer, gradients, now_lr, precision)
                if not math.isfinite(loss):
                    raise _diverged(f"the loss at epoch {epoch + 1}, step {step + 1}", loss, now_lr)
                if after_step is not None:
                    after_step(now_lr)
                images += count
                loss_sum += loss * count
                if step + 1 < steps:  # the epoch's own report follows its validation
                    reporter.tell(
                        epoch,
                        step + 1,
                        images=images,
                        loss=loss_sum / images,
                        epoch_s=perf_counter() - began,
                        val_accuracy=run.accuracy,
                    )
        trained_s, mean = perf_counter() - began, loss_sum / images
        # The last step's weights have met no loss yet: check them before they can reach a checkpoint.
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise _diverged(f"a weight after epoch {epoch + 1}", "not finite", now_lr)
        record = Epoch(
            epoch=epoch + 1,
            lr=now_lr,
            loss=mean,
            objective=mean + penalty() if penalty is not None else None,
            sparsity=sparsity() if sparsity is not None else None,
            val_accuracy=evaluate(model, data.val),
            duration_s=perf_counter() - began,
        )
        run.records.append(record)
        run.note_accuracy(record.val_accuracy)
        if checkpoint is not None and world().first:
            run.save(checkpoint)
        reporter.tell(
            epoch,
            steps,
            images=images,
            loss=mean,
            epoch_s=trained_s,
            val_accuracy=run.accuracy,
            always=True,
        )
    return run.finish()


def learning_rate(schedule: Schedule, lr: float, epoch: int, epochs: int, step: int, steps: int) -> float:
    """Learning rate of one step; ``epoch`` and ``step`` count from 0.

    Args:
        schedule: ``"cosine"`` changes each step, ``"step"`` each epoch.
        lr: At the start.
        epoch: Whole epochs done.
        epochs: Of the training.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
    """
    if schedule == "step":
        drops = {int(epochs * 0.5), int(epochs * 0.75)}  # a set: in a short training they may coincide
        return float(lr * 0.1 ** sum(0 < drop <= epoch for drop in drops))
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / epochs))


def _step(
    model: nn.Module,
    teacher: nn.Module | None,
    inputs: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    gradients: Gradients,
    lr: float,
    precision: Precision,
) -> tuple[float, int]:
    """One optimizer step; gives loss and images. A loss that is not finite changes nothing."""
    if precision == "bf16" and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(inputs)
    if not isinstance(logits, Tensor):
        raise TrainingError(
            "could not train",
            where="the network's output in training mode",
            value=f"a {type(logits).__name__}",
            expected="one tensor of logits",
            hint="Build the network without auxiliary outputs.",
        )
    logits = logits.float() if precision == "bf16" else logits
    loss = F.cross_entropy(logits, labels)
    if teacher is not None:
        place = device_of(teacher)
        with (
            torch.no_grad(),
            torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            target = teacher(inputs.to(place)).to(logits)
        # The factor T^2 keeps the gradient's size as the temperature changes (Hinton et al. 2015).
        distance = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(target / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        loss = (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * distance
    optimizer.zero_grad()
    done = gradients.backward(loss)
    value = float(done.loss)
    if math.isfinite(value):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return value, done.images


@contextlib.contextmanager
def _laid_out(precision: Precision, *networks: nn.Module | None) -> Iterator[None]:
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


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int, epoch: int) -> Iterator[None]:
    """Random state from (seed, epoch) alone; the caller's is put back."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


def _diverged(where: str, value: object, lr: float) -> TrainingError:
    return TrainingError(
        "could not go on training",
        where=where,
        value=value,
        expected="finite numbers",
        hint=f"Lower the learning rate: it was {lr:.3g}, try {lr / 10:.3g}.",
    )


def _check_fit(model: nn.Module, data: Data) -> None:
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


def _check_arguments(
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    schedule: str,
    select: str,
    precision: str,
) -> None:
    rules: list[tuple[str, object, bool, str]] = [
        ("epochs", epochs, isinstance(epochs, int) and epochs >= 0, "a whole number, 0 or more"),
        ("lr", lr, 0 < lr < math.inf, "more than 0"),
        ("momentum", momentum, 0 <= momentum < 1, "from 0 to below 1"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
        ("nesterov", nesterov, not nesterov or momentum > 0, "False, or a momentum above 0"),
        ("schedule", schedule, schedule in ("cosine", "step"), "cosine or step"),
        ("select", select, select in ("best", "last"), "best or last"),
        ("precision", precision, precision in get_args(Precision), "fp32 or bf16"),
    ]
    for name, value, fine, rule in rules:
        if not fine:
            raise UsageError("could not train", where=name, value=value, expected=rule)
