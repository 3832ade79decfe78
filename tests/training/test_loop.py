from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import TrainingError, UsageError
from edgeprune.training import learning_rate, train
from edgeprune.training.checkpoint import digest


def test_learns_from_the_training_split_without_reading_the_test_split(net, data):
    model = net()
    history = train(model, data, epochs=12, lr=0.05)
    assert history.val_accuracy > 0.9 > history.start_val_accuracy
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 13))
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    assert data.train.epochs_seen == list(range(12))


def test_no_epochs_is_nothing_at_all(net, data):
    model = net()
    before = digest(model.state_dict())
    history = train(model, data, epochs=0)
    assert (history.start_val_accuracy, history.epochs, history.chosen_epoch) == (None, (), 0)
    assert digest(model.state_dict()) == before
    assert data.train.epochs_seen == []


def test_the_steps_are_those_of_plain_sgd(net, data):
    """The loop against ten lines of torch, bit for bit."""
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model[3].p = 0.0
    train(ours, data, epochs=4, lr=0.1, momentum=0.9, weight_decay=1e-2, schedule="step", select="last")
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    theirs.train()
    for epoch, lr in enumerate([0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1**2]):
        optimizer.param_groups[0]["lr"] = lr
        data.train.set_epoch(epoch)
        for images, labels in data.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(images), labels).backward()
            optimizer.step()
    assert digest(ours.state_dict()) == digest(theirs.state_dict())


def test_bf16_learns_like_fp32_and_leaves_fp32_contiguous_weights(net, data):
    exact, model, teacher = net(), net(), net()
    for network in (exact, model):
        network[3].p = 0.0  # its draws differ by type
    seen = set()

    def note(layer, inputs, output):
        if layer.training:
            weight = layer.weight
            last = torch.empty_like(weight, memory_format=torch.channels_last).stride()
            seen.add((output.dtype, weight.stride() == last, inputs[0].shape[1:] == data.example.shape[1:]))

    model[0].register_forward_hook(note)
    history = train(model, data, epochs=12, lr=0.05, precision="bf16")
    other = train(exact, data, epochs=12, lr=0.05)
    assert seen == {(torch.bfloat16, True, True)}
    assert history.val_accuracy > 0.9
    for epoch, reference in zip(history.epochs, other.epochs, strict=True):
        assert epoch.loss == pytest.approx(reference.loss, rel=0.1, abs=0.03)
    assert history.epochs[0].loss != other.epochs[0].loss
    distilled = train(model, data, epochs=1, lr=0.01, teacher=teacher, precision="bf16")
    assert math.isfinite(distilled.epochs[0].loss)
    for weight in (*model.state_dict().values(), *teacher.state_dict().values()):
        assert weight.is_contiguous()
        assert weight.dtype in (torch.float32, torch.int64)


def test_step_schedule_drops_at_half_and_three_quarters():
    rates = [learning_rate("step", 0.1, epoch, 160, 3, 10) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(("epochs", "factors"), [(1, [1]), (2, [1, 0.1]), (3, [1, 0.1, 0.01])])
def test_step_schedule_of_a_short_training(epochs, factors):
    rates = [learning_rate("step", 1.0, epoch, epochs, 0, 1) for epoch in range(epochs)]
    assert rates == pytest.approx(factors)


def test_cosine_schedule_goes_from_the_start_to_zero_step_by_step():
    rates = [learning_rate("cosine", 0.2, epoch, 5, step, 4) for epoch in range(5) for step in range(4)]
    expected = [0.1 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 0.2
    assert 0 < rates[-1] < 0.002


def test_the_hook_gets_the_rate_of_each_step(net, data):
    rates = []
    history = train(net(), data, epochs=2, lr=0.1, after_step=rates.append)
    assert rates == [
        learning_rate("cosine", 0.1, epoch, 2, step, 5) for epoch in range(2) for step in range(5)
    ]
    assert [epoch.lr for epoch in history.epochs] == [rates[4], rates[9]]


def test_the_hook_runs_after_the_optimizer(net, data):
    model = net()
    train(model, data, epochs=1, select="last", after_step=lambda lr: model[1].weight.data.fill_(lr))
    assert torch.all(model[1].weight == learning_rate("cosine", 0.1, 0, 1, 4, 5))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_distillation_is_half_cross_entropy_half_kl_at_temperature_4(net, data):
    student, teacher = net(0).eval(), net(7).eval()
    images, labels = data.val.images, data.val.labels
    with torch.no_grad():
        ours_logits, theirs_logits = student(images).double().numpy(), teacher(images).double().numpy()
    p, q = softmax(theirs_logits / 4), softmax(ours_logits / 4)
    kl = (p * np.log(p / q)).sum(1).mean()
    cross_entropy = -np.log(softmax(ours_logits)[np.arange(len(labels)), labels.numpy()]).mean()
    theirs = 0.5 * cross_entropy + 0.5 * 16 * kl

    # One batch of the whole split, in eval-like mode: no dropout, norms that do not use the batch.
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.forward = lambda x, norm=norm: nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    student[3].p = 0.0
    whole = dataclasses.replace(data.val, batch_size=len(labels))
    history = train(student, dataclasses.replace(data, train=whole), epochs=1, teacher=teacher)
    assert history.epochs[0].loss == pytest.approx(theirs, rel=1e-5)


def test_the_teacher_is_in_eval_mode_and_unchanged(net, data):
    teacher = net(7).train()
    before = digest(teacher.state_dict())
    train(net(), data, epochs=1, teacher=teacher)
    assert digest(teacher.state_dict()) == before
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([0.3, 0.5, 0.8, 0.6], 2),
        ([0.3, 0.8, 0.8, 0.6], 2),
        ([0.9, 0.5, 0.8, 0.6], 0),
        ([0.1, 0.2, 0.3, 0.4], 3),
    ],
    ids=["middle", "tie goes to the later", "the start", "last"],
)
def test_the_best_epoch_on_validation_is_restored(net, data, monkeypatch, accuracies, chosen):
    script, states = iter(accuracies), []

    def scripted(model, loader):
        assert loader is data.val
        states.append(digest(model.state_dict()))
        return next(script)

    monkeypatch.setattr("edgeprune.training.loop.evaluate", scripted)
    model = net()
    history = train(model, data, epochs=3)
    assert (history.chosen_epoch, history.val_accuracy) == (chosen, accuracies[chosen])
    assert digest(model.state_dict()) == states[chosen]
    assert len(set(states)) == 4


def test_select_last_keeps_the_last(net, data, monkeypatch):
    script = iter([0.3, 0.9, 0.2])
    monkeypatch.setattr("edgeprune.training.loop.evaluate", lambda *_: next(script))
    history = train(net(), data, epochs=2, select="last")
    assert (history.chosen_epoch, history.val_accuracy) == (2, 0.2)


def test_same_seed_same_bits_and_the_callers_random_state_is_untouched(net, data):
    models = [net(), net(), net()]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        torch.manual_seed(len(data.train.epochs_seen))  # the caller's state must not matter
        before = torch.get_rng_state()
        train(model, data, epochs=1, seed=seed, select="last")
        assert torch.equal(torch.get_rng_state(), before)
    first, second, third = (digest(model.state_dict()) for model in models)
    assert first == second != third  # the networks have dropout


def test_modes_are_restored_also_after_a_failure(net, data):
    model = net().eval()
    train(model, data, epochs=1)
    assert not any(module.training for module in model.modules())
    with pytest.raises(TrainingError):
        train(model, data, epochs=1, lr=1e30)
    assert not any(module.training for module in model.modules())


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_advice(net, data):
    with pytest.raises(
        TrainingError,
        match=r"epoch 1, step 2 is (nan|inf), expected finite numbers\. The first output that is not finite "
        r"is that of layer \d \(\w+\).*\. Lower the learning rate: it was .*, try ",
    ):
        train(net(), data, epochs=2, lr=1e30)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(net, data, tmp_path):
    model = net()
    steps = iter(range(5))

    def poison_the_last_step(lr: float) -> None:
        if next(steps) == 4:
            model[9].weight.data.fill_(math.inf * lr)

    with pytest.raises(TrainingError, match="a weight after epoch 1 is not finite"):
        train(
            model,
            data,
            epochs=1,
            checkpoint=tmp_path / "checkpoint.pt",
            after_step=poison_the_last_step,
        )
    assert not list(tmp_path.iterdir())


def test_frozen_parameters_stay(net, data):
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, data, epochs=1)
    assert torch.equal(model[0].weight, before)


def test_a_network_with_too_few_outputs_is_refused(net, data):
    model = net()
    model[9] = nn.Linear(32, 2)
    with pytest.raises(TrainingError, match=r"output is \(1, 2\), expected \(N, 3\).*num_classes=3"):
        train(model, data, epochs=1)


def test_a_network_for_other_images_is_refused(net, data):
    model = net()
    model[0] = nn.Conv2d(1, 6, 3)
    with pytest.raises(TrainingError, match=r"example \(1, 3, 8, 8\) of the data is failing \(RuntimeError"):
        train(model, data, epochs=1)


def test_auxiliary_outputs_are_refused(net, data):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            return (self.body(x), self.body(x)) if self.training else self.body(x)

    with pytest.raises(TrainingError, match="output in training mode is a tuple, expected one tensor"):
        train(TwoHeads(), data, epochs=1)


def test_an_empty_training_split_is_refused(net, data, loader):
    with pytest.raises(TrainingError, match=r"data\.train is empty"):
        train(net(), dataclasses.replace(data, train=loader(0, 0)), epochs=1)


def test_a_network_is_not_its_own_teacher(net, data):
    model = net()
    with pytest.raises(UsageError, match=r"teacher is the network that is trained.*copy\.deepcopy"):
        train(model, data, epochs=1, teacher=model)
    train(model, data, epochs=1, teacher=copy.deepcopy(model))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"epochs": 1.5},
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"nesterov": True, "momentum": 0.0},
        {"schedule": "linear"},
        {"select": "first"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_name(net, data, wrong):
    with pytest.raises(UsageError, match=rf"could not train: {next(iter(wrong))} is .*, expected "):
        train(net(), data, **{"epochs": 1, **wrong})
