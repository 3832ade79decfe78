"""The loop itself: optimizer, schedule, distillation, hooks, choice of the epoch, checkpoints."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Unpack, get_args

import torch
from torch import Tensor, nn

from edgeprune.data import Data
from edgeprune.errors import Interrupted, TrainingError, UsageError
from edgeprune.files import sha256_json
from edgeprune.launch import ALONE, being, world
from edgeprune.training.averaging import WeightMean, wearing
from edgeprune.training.checkpoint import Run, Selection, Stateful, Tally, digest
from edgeprune.training.checkpoint_files import Checkpoints
from edgeprune.training.evaluation import device_of, evaluate, mode
from edgeprune.training.faults import (
    batches,
    check_fit,
    diverged,
    first_fault,
    memory_explained,
    unfinite_weight,
)
from edgeprune.training.interruption import Interruption
from edgeprune.training.losses import loss_of, mix
from edgeprune.training.network import compiler_explained, is_gpu, laid_out, network_of, optimizer_of
from edgeprune.training.progress import INTERVAL_S, Epoch, History, Progress, Reporter
from edgeprune.training.randomness import kept_random_states, seed_step
from edgeprune.training.ranks import Gradients, own_part, share_state
from edgeprune.training.recipe import PROBLEM, Changes, Recipe, as_recipe
from edgeprune.training.schedule import learning_rate
from edgeprune.training.sync_norms import separate, synchronised

GPU_INTERVAL_S = 1.0
"""On a GPU the host looks at the loss so often; each look waits for the steps that are under way."""


@dataclass(frozen=True)
class Hooks:
    """What a scheme adds to a training; see `train`."""

    after_step: Callable[[float], None] | None = None
    penalty: Callable[[], float] | None = None
    sparsity: Callable[[], float] | None = None
    macs_ratio: Callable[[], float] | None = None
    extra_state: Stateful | None = None


def train(
    model: nn.Module,
    data: Data,
    *,
    recipe: Recipe | str | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    select: Selection = "best",
    after_step: Callable[[float], None] | None = None,
    penalty: Callable[[], float] | None = None,
    sparsity: Callable[[], float] | None = None,
    macs_ratio: Callable[[], float] | None = None,
    extra_state: Stateful | None = None,
    checkpoint: Path | Checkpoints | None = None,
    phase: str = "train",
    on_progress: Callable[[Progress], None] | None = None,
    **changes: Unpack[Changes],
) -> History:
    """Train ``model`` in place on cross-entropy, on the device that it lives on.

    Randomness (order, augmentation, mixup, dropout) depends on the seeds, the epoch and the step alone, and
    the caller's random states are left as they were, so that a training resumed from its checkpoint ends, on
    the CPU, with the same bits as one that was never stopped.

    Args:
        model: Network from (N, C, H, W) to logits (N, classes).
        data: Trains on ``data.train``; every choice is made on ``data.val``; ``data.test`` is not read.
        recipe: How to train: a `Recipe`, or the name of a preset, of which the one for dense training is
            taken (`find_preset` has the others); None: the defaults of `Recipe`.
        teacher: Adds distillation: half cross-entropy, half KL divergence to the teacher at temperature 4.
        seed: Of what is random in the loop and in the network itself, such as dropout.
        select: ``"best"``: end with the weights of the best validation accuracy, among the start (a
            fine-tuning never ends worse than it began) and every epoch, the later one on a tie;
            ``"last"``: with those of the last epoch.
        after_step: Called with the learning rate after each optimizer step.
        penalty: What the hook adds to the loss; for display.
        sparsity: Share of the hook's variables at 0; for display.
        macs_ratio: MACs that would be left if these were cut, to dense; called once per epoch, for display.
        extra_state: The hook's state; it goes into the checkpoint.
        checkpoint: File written after each epoch, every minute, and when SIGINT or SIGTERM ends the training;
            `Checkpoints` says more precisely when. If there is one, training goes on from it. It stays there
            at the end: delete it when the result is safe.
        phase: Name for ``on_progress``.
        on_progress: Told how it goes.
        **changes: Fields of `Recipe` that replace those of ``recipe``: ``epochs``, ``lr``, ``momentum``,
            ``weight_decay``, ``nesterov``, ``schedule``, ``precision`` and so on.

    Raises:
        UsageError: An argument is out of range.
        TrainingError: A number is not finite; memory runs out; the network does not fit the data; there is no
            compiler; the images cannot be read; the checkpoint is broken, belongs to other settings or cannot
            be written.
        Interrupted: SIGINT or SIGTERM came, and a checkpoint is written.

    Example:
        >>> history = train(model, data, epochs=10, lr=0.05)  # doctest: +SKIP
        >>> history.val_accuracy  # doctest: +SKIP
        0.987
    """
    chosen = as_recipe(recipe).changed(**changes)
    if select not in get_args(Selection):
        raise UsageError(PROBLEM, where="select", value=select, expected="best or last")
    if teacher is model:
        raise UsageError(
            "could not distil",
            where="teacher",
            value="the network that is trained",
            expected="another one",
            hint="Pass copy.deepcopy(model) to distil from its present state.",
        )
    if chosen.epochs == 0:
        return History(None, (), 0, None)
    check_fit(model, data)
    share_state(model)
    files = Checkpoints(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    hooks = Hooks(after_step, penalty, sparsity, macs_ratio, extra_state)
    training = Training(model, data, chosen, teacher, seed, select, hooks, files)
    with kept_random_states(training.device), Interruption(files is not None) as interruption:
        return training.run(interruption, phase, on_progress)


class Training:
    """One training on its way; `train` explains the arguments."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        teacher: nn.Module | None,
        seed: int,
        select: Selection,
        hooks: Hooks,
        files: Checkpoints | None,
    ) -> None:
        self.model, self.recipe, self.teacher, self.seed = model, recipe, teacher, seed
        self.hooks, self.files, self.device = hooks, files, device_of(model)
        self.on_gpu = is_gpu(self.device)
        settings = ""
        if files is not None:
            decisive = {
                "recipe": recipe.to_json(),
                "seed": seed,
                "select": select,
                "data": [data.identity, len(data.train), data.train.samples, data.val.samples],
                "model": digest(model.state_dict()),
                "teacher": digest(teacher.state_dict()) if teacher is not None else None,
                "extra": digest(hooks.extra_state.state_dict()) if hooks.extra_state is not None else None,
            }
            settings = sha256_json(decisive)
        if self.on_gpu:
            data = data.on(self.device)  # images that fit lie there, and are augmented there
        self.data, self.steps, self.lr = data, len(data.train), recipe.lr
        self.part, self.gradients, self.asked_to_stop = own_part(data.train), Gradients(model), False
        self.optimizer = optimizer_of(model, recipe, self.device)
        self.mean = WeightMean(model, recipe.ema) if recipe.ema else None
        self.run_ = Run(model, self.optimizer, hooks.extra_state, self.mean, select, settings, self.device)
        self.network = network_of(model, recipe, self.device)
        self.saved = perf_counter()

    def run(
        self, interruption: Interruption, phase: str, on_progress: Callable[[Progress], None] | None
    ) -> History:
        """Train to the end."""
        run, recipe = self.run_, self.recipe
        self.interruption = interruption
        if self.files is None or not run.load(self.files):
            run.note_accuracy(self._evaluate())
        before = len(run.records) * self.steps + run.tally.step
        self.reporter = Reporter(
            phase, recipe.epochs, self.steps, before, self.hooks.penalty, self.hooks.sparsity, on_progress,
            GPU_INTERVAL_S if self.on_gpu else INTERVAL_S,
        )  # fmt: skip
        while len(run.records) < recipe.epochs and not self._stopped():
            self._epoch(len(run.records))
        return run.finish()

    def _stopped(self) -> bool:
        """Whether the accuracy has not risen for too long."""
        patience = self.recipe.patience
        return bool(patience) and self.run_.epochs_without_progress() >= patience

    def _epoch(self, epoch: int) -> None:
        """One pass, or the rest of it; then validation."""
        run, hooks = self.run_, self.hooks
        tally = run.tally
        self.part.set_epoch(epoch)
        began = perf_counter() - tally.seconds
        if tally.step < self.steps:
            with mode(self.model, True), mode(self.teacher, False), self._laid_out(), self._synchronised():
                for inputs, labels in batches(self.part, tally.step, epoch, self._seeding(epoch)):
                    self._step(epoch, inputs, labels)
                    tally.seconds = perf_counter() - began
                    self._between_steps(epoch)
        self._check(epoch)
        trained_s = tally.seconds
        self._check_weights(f"a weight after epoch {epoch + 1}")
        accuracy = self._evaluate()
        record = Epoch(
            epoch=epoch + 1,
            lr=self.lr,
            loss=(mean := tally.loss()),
            objective=mean + hooks.penalty() if hooks.penalty is not None else None,
            sparsity=hooks.sparsity() if hooks.sparsity is not None else None,
            val_accuracy=accuracy,
            duration_s=perf_counter() - began,
            images_per_s=tally.images / max(trained_s, 1e-9),
            macs_ratio=hooks.macs_ratio() if hooks.macs_ratio is not None else None,
        )
        run.records.append(record)
        run.tally = Tally.empty(self.device)
        with wearing(self.mean):
            run.note_accuracy(accuracy)
        self._save()
        self._tell(epoch, tally, ended=True)
        for number in filter(None, world().gather(self.interruption.number)):
            raise self._interrupted(number)

    def _seeding(self, epoch: int) -> Callable[[int], None]:
        return lambda step: seed_step(self.device, self.seed, epoch, step)

    def _laid_out(self) -> contextlib.AbstractContextManager[None]:
        return laid_out(self.recipe.precision, self.model, self.teacher)

    def _synchronised(self) -> contextlib.AbstractContextManager[None]:
        own = separate(self.model)
        return synchronised(self.model, lambda: self.gradients.images > 0) if self.recipe.sync_norms else own

    def _stopping(self) -> bool:
        """Whether a signal came; of several ranks, whether all know that it came to one of them."""
        return self.asked_to_stop if world().size > 1 else self.interruption.number is not None

    def _between_steps(self, epoch: int) -> None:
        """After a step: whoever waits for a signal, a checkpoint or a report gets it."""
        tally, files = self.run_.tally, self.files
        if self._stopping():
            self._check(epoch)
            self._check_weights(f"a weight after epoch {epoch + 1}, step {tally.step}")
            self._save()
            raise self._interrupted(self.interruption.number or signal.SIGTERM)
        if tally.step >= self.steps:
            return  # the epoch's own checkpoint and report follow its validation
        if self.reporter.due():
            self._check(epoch)
            self._tell(epoch, tally)
        if files is None:
            return
        by_steps = files.steps and tally.step % files.steps == 0
        if by_steps or perf_counter() - self.saved >= files.seconds:
            self._check(epoch)
            self._check_weights(f"a weight after epoch {epoch + 1}, step {tally.step}")
            self._save()

    def _step(self, epoch: int, inputs: Tensor, labels: Tensor) -> None:
        """One optimizer step. A loss or gradient that is not finite changes no weight."""
        run, recipe, optimizer = self.run_, self.recipe, self.optimizer
        tally = run.tally
        self.lr = learning_rate(
            recipe.schedule, recipe.lr, epoch, recipe.epochs, tally.step, self.steps,
            warmup_epochs=recipe.warmup_epochs,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        optimizer.zero_grad()
        with memory_explained(self.data.train, len(labels)), compiler_explained(recipe.compile):
            loss = self._loss(*self.gradients.take(inputs, labels))
            done = self.gradients.backward(loss, stop=self.interruption.number is not None)
            if not self.on_gpu and not math.isfinite(value := float(done.loss)):
                raise self._diverged(epoch, tally.step, "the loss", value)
            norm = self._clip()
            tally.watch.add_(done.loss).add_(norm)
            if not self.on_gpu:
                if not math.isfinite(size := float(norm)):
                    raise self._diverged(epoch, tally.step, "the gradient's norm", size)
            else:
                # The fused optimizer reads this flag on the device and then leaves weights and state alone:
                # nothing has to wait for the host, which looks later (`_check`) and finds which step it was.
                fine = tally.watch.isfinite()
                tally.good.add_(fine)
                optimizer.found_inf = fine.logical_not().float()  # type: ignore[attr-defined]
            optimizer.step()
        if self.hooks.after_step is not None:
            self.hooks.after_step(self.lr)
        if self.mean is not None:
            self.mean.update(epoch * self.steps + tally.step)
        self.asked_to_stop = done.stop
        tally.loss_sum.add_(done.loss.double() * done.images)
        tally.images += done.images
        tally.step += 1

    def _loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, with its graph."""
        recipe, bf16 = self.recipe, self.recipe.precision == "bf16"
        inputs, labels = (tensor.to(self.device, non_blocking=True) for tensor in (inputs, labels))
        batch = mix(inputs, labels, recipe.mixup)
        images = batch.inputs
        if bf16 and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.network(images)
        if not isinstance(logits, Tensor):
            raise TrainingError(
                PROBLEM,
                where="the network's output in training mode",
                value=f"a {type(logits).__name__}",
                expected="one tensor of logits",
                hint="Build the network without auxiliary outputs.",
            )
        logits = logits.float() if bf16 else logits
        target = None
        if self.teacher is not None:
            place = device_of(self.teacher)
            with torch.no_grad(), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
                target = self.teacher(images.to(place)).to(logits)
        return loss_of(logits, batch, label_smoothing=recipe.label_smoothing, target=target)

    def _clip(self) -> Tensor:
        """Norm of all gradients together, before they are cut to the recipe's, ()."""
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(trained, self.recipe.clip, norm)
        return norm

    def _evaluate(self) -> float:
        """Validation accuracy of the weights, or of their mean. A signal ends it: it can be done again."""
        try:
            with self.interruption.at_once(), wearing(self.mean), memory_explained(self.data.val, 0):
                return evaluate(self.model, self.data.val)
        except Interrupted as signal:
            if self.run_.start_accuracy is not None:
                self._save()
            raise self._interrupted(signal.number) from None

    def _check(self, epoch: int) -> None:
        """Look at what the device has found.

        Raises:
            TrainingError: A loss or gradient was not finite.
        """
        tally = self.run_.tally
        if self.on_gpu and not math.isfinite(value := float(tally.watch)):
            raise self._diverged(epoch, int(tally.good), "the loss or its gradient", value)

    def _check_weights(self, where: str) -> None:
        """The last step's weights have met no loss yet: check them before they can reach a checkpoint."""
        name = unfinite_weight(self.model)
        if name:
            saved = self.run_.saved_at
            raise diverged(where, "not finite", self.lr, layer=f"It is of {name}", checkpoint=saved)

    def _diverged(self, epoch: int, step: int, what: str, value: float) -> TrainingError:
        """Find the layer by repeating the step, and tell."""

        def again() -> Tensor:
            self.part.set_epoch(epoch)
            inputs, labels = next(iter(batches(self.part, step, epoch, self._seeding(epoch))))
            return self._loss(*self.gradients.take(inputs, labels))

        network, self.network = self.network, self.model  # hooks see nothing of a compiled network
        with being(ALONE), mode(self.model, True), mode(self.teacher, False):
            layer = first_fault(self.model, again)
        self.network = network
        where = f"{what} at epoch {epoch + 1}, step {step + 1}"
        return diverged(where, value, self.lr, layer=layer, checkpoint=self.run_.saved_at)

    def _save(self) -> None:
        if self.files is not None and world().first:
            self.run_.save(self.files)
            self.saved = perf_counter()

    def _interrupted(self, number: int) -> Interrupted:
        saved = self.run_.saved_at
        return Interrupted(number, f"the checkpoint is {saved}" if saved else "nothing was done yet")

    def _tell(self, epoch: int, tally: Tally, *, ended: bool = False) -> None:
        run = self.run_
        self.reporter.tell(
            epoch, tally.step, images=tally.images, loss=tally.loss(), epoch_s=tally.seconds, lr=self.lr,
            val_accuracy=run.accuracy, macs_ratio=run.records[-1].macs_ratio if run.records else None,
            ended=ended,
        )  # fmt: skip
