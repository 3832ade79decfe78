from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from edgeprune.errors import DataError, TrainingError
from edgeprune.training import Checkpoints, train
from edgeprune.training.checkpoint import digest


class Spoiled(nn.Module):
    """Passes its input on; at one of its training steps with something that is not finite."""

    def __init__(self, value: float, step: int, backward: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.value, self.step, self.backward, self.seen = value, step, backward, 0
        self.state = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        self.seen += 1
        if self.seen < self.step:
            return x * self.scale
        if self.backward:  # its value is right, and its slope is not: that of a root at 0
            return x * self.scale + (self.scale - self.scale.detach()).abs().sqrt()
        return x * self.scale * self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_layer_whose_output_is_not_finite_is_named(net, data, value):
    model = net()
    model.insert(4, Spoiled(value, 3))
    with pytest.raises(
        TrainingError,
        match=r"the loss at epoch 1, step 3 is nan, expected finite numbers\. The first output that is not "
        r"finite is that of layer 4 \(Spoiled\)\. Lower the learning rate",
    ):
        train(model, data, epochs=1)


def test_the_first_layer_whose_gradient_is_not_finite_is_named_before_it_reaches_a_weight(net, data):
    model = net()
    model.insert(4, Spoiled(1.0, 3, backward=True))
    with pytest.raises(
        TrainingError,
        match=r"the gradient's norm at epoch 1, step 3 is (nan|inf).* The first gradient that is not finite "
        r"is that of layer 4 \(Spoiled\)",
    ):
        train(model, data, epochs=1)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_weights_that_are_not_finite_are_said_to_be(net, data):
    model, steps = net(), []

    def spoil(lr: float) -> None:
        steps.append(lr)
        if len(steps) == 2:
            model[4].weight.data[0] = math.inf

    with pytest.raises(
        TrainingError, match=r"epoch 1, step 3 .* that of layer 4 \(Conv2d\), whose weights are not finite"
    ):
        train(model, data, epochs=1, after_step=spoil)


def test_statistics_gradients_and_hooks_are_as_before_the_search(net, data):
    model = net()
    model.insert(4, Spoiled(math.nan, 1))
    before = model[1].running_mean.clone()
    with pytest.raises(TrainingError, match="step 1 is nan"):
        train(model, data, epochs=1)
    assert not any(module._forward_hooks for module in model.modules())
    # The failed step has moved them once, its repetition has not.
    once = torch.nn.BatchNorm2d(6)
    once(net()[0](next(iter(data.train))[0]))
    del before
    torch.testing.assert_close(model[1].running_mean, once.running_mean)


def test_the_last_good_checkpoint_is_named_and_holds_nothing_bad(net, data, tmp_path):
    model = net()
    model.insert(4, Spoiled(math.nan, 9))
    files = Checkpoints(tmp_path / "x.checkpoint", steps=1)
    with pytest.raises(
        TrainingError,
        match=r"epoch 2, step 4 .* The last good checkpoint is .*x\.checkpoint \(epoch 2, step 3\)\.$",
    ):
        train(model, data, epochs=2, checkpoint=files)
    state = torch.load(files.path, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
    assert len(state["records"]) == 1


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The way of a GPU, on the CPU: a fused optimizer that skips steps by a flag, and late looks."""
    for module in ("network", "loop"):
        monkeypatch.setattr(f"edgeprune.training.{module}.is_gpu", lambda device: device.type == "cpu")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("backward", [False, True])
def test_on_a_gpu_it_is_found_late_and_yet_the_right_step_and_no_weight_has_moved(
    net, data, tmp_path, as_on_a_gpu, optimizer, backward
):
    del as_on_a_gpu
    model, after = net(), []
    model.insert(4, Spoiled(math.nan, 2, backward=backward))

    def note(lr: float) -> None:
        del lr
        after.append(digest(dict(model.named_parameters())))

    with pytest.raises(TrainingError, match="the loss or its gradient at epoch 1, step 2 is nan"):
        train(
            model, data, epochs=1, after_step=note, optimizer=optimizer, checkpoint=tmp_path / "x.checkpoint"
        )
    assert len(after) == 5  # nobody has looked before the end of the epoch
    assert len(set(after)) == 1
    assert not list(tmp_path.iterdir())


def test_on_a_gpu_the_training_is_the_same(net, data, tmp_path, as_on_a_gpu, monkeypatch):
    del as_on_a_gpu
    late = net()
    files = Checkpoints(tmp_path / "x.checkpoint", steps=2)
    history = train(late, data, epochs=2, checkpoint=files, clip=1.0)
    monkeypatch.undo()
    plain = net()
    reference = train(plain, data, epochs=2, clip=1.0)
    assert [epoch.loss for epoch in history.epochs] == pytest.approx(
        [epoch.loss for epoch in reference.epochs], rel=1e-4
    )
    torch.testing.assert_close(late[0].weight, plain[0].weight, rtol=1e-3, atol=1e-5)


class Hungry(nn.Module):
    """Wants more memory than there is, in training mode."""

    def __init__(self, reason: BaseException | None = None) -> None:
        super().__init__()
        self.reason = reason

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.reason is not None:
                raise self.reason
            torch.empty(2**50)
        return x


@pytest.mark.parametrize(
    "reason",
    [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()],
    ids=["cpu", "cuda", "python"],
)
def test_too_little_memory_names_the_batch_size_and_the_next(net, data, reason):
    model = net()
    model.append(Hungry(reason))
    with pytest.raises(
        TrainingError,
        match=r"memory is too small for batches of 16 images \(.+\), .*Try a batch size of 8 \(",
    ):
        train(model, data, epochs=1)


def test_another_failure_of_the_network_is_not_called_a_lack_of_memory(net, data):
    model = net()
    model.append(Hungry(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(model, data, epochs=1)


class Torn:
    """A loader that fails at one batch."""

    def __init__(self, loader, reason: Exception) -> None:
        self.loader, self.reason = loader, reason

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if number == 3:
                raise self.reason
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str):
        return getattr(self.loader, name)


def test_a_loader_that_fails_is_one_error(net, data):
    torn = dataclasses.replace(data, train=Torn(data.train, OSError("worker 3 is gone")))
    with pytest.raises(
        TrainingError,
        match=r"could not read the training images: data.train at epoch 1, step 4 is failing "
        r"\(OSError: worker 3 is gone\)",
    ):
        train(net(), torn, epochs=1)


def test_an_error_of_our_own_passes_through_the_loader(net, data):
    torn = dataclasses.replace(data, train=Torn(data.train, DataError("could not read an image")))
    with pytest.raises(DataError, match="could not read an image"):
        train(net(), torn, epochs=1)
