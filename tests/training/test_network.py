from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from edgeprune.errors import TrainingError
from edgeprune.training import Recipe, train
from edgeprune.training.checkpoint import digest
from edgeprune.training.network import optimizer_of

CPU = torch.device("cpu")


def test_norms_and_biases_may_be_left_out_of_the_decay(net):
    model = net()
    everything, parts = (
        optimizer_of(model, Recipe(weight_decay=0.1, decay_norms=on), CPU).param_groups
        for on in (True, False)
    )
    assert [(len(group["params"]), group["weight_decay"]) for group in everything] == [(8, 0.1)]
    assert [group["weight_decay"] for group in parts] == [0.1, 0.0]
    assert [parameter.ndim for parameter in parts[0]["params"]] == [4, 4, 2]
    assert [parameter.ndim for parameter in parts[1]["params"]] == [1] * 5
    only = nn.BatchNorm2d(3)
    assert len(optimizer_of(only, Recipe(decay_norms=False), CPU).param_groups) == 1


def test_the_steps_are_those_of_plain_adamw_with_a_clipped_gradient(net, data):
    ours, theirs = net(), net()
    for model in (ours, theirs):
        model[3].p = 0.0
    recipe = Recipe(
        epochs=3, optimizer="adamw", lr=0.01, betas=(0.8, 0.99), weight_decay=0.1, clip=0.5, schedule="step"
    )
    train(ours, data, recipe=recipe, select="last")
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.8, 0.99), weight_decay=0.1)
    theirs.train()
    clipped = 0
    for epoch, lr in enumerate([0.01, 0.01 * 0.1, 0.01 * 0.1**2]):
        optimizer.param_groups[0]["lr"] = lr
        data.train.set_epoch(epoch)
        for images, labels in data.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(images), labels).backward()
            clipped += float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)) > 0.5
            optimizer.step()
    assert clipped > 0
    assert digest(ours.state_dict()) == digest(theirs.state_dict())


def test_patience_stops_after_epochs_without_a_better_accuracy(net, data, monkeypatch, tmp_path):
    script = [0.1, 0.5, 0.6, 0.6, 0.4, 0.9]
    accuracies = iter(script)
    monkeypatch.setattr("edgeprune.training.loop.evaluate", lambda *_: next(accuracies))
    path = tmp_path / "x.checkpoint"
    history = train(net(), data, epochs=5, patience=2, checkpoint=path)
    assert [epoch.val_accuracy for epoch in history.epochs] == [0.5, 0.6, 0.6, 0.4]
    assert train(net(), data, epochs=5, patience=2, checkpoint=path) == history  # stopped it stays
    accuracies = iter(script)
    assert len(train(net(), data, epochs=5).epochs) == 5


def compiled_training(net, data, monkeypatch, **options):
    calls = []
    compile_ = functools.partial(torch.compile, **options)

    def note(function):
        calls.append(function)
        return compile_(function)

    monkeypatch.setattr(torch, "compile", note)
    model, plain = net(), net()
    for network in (model, plain):
        network[3].p = 0.0
    keys = list(model.state_dict())
    history = train(model, data, epochs=2, lr=0.05, compile=True)
    reference = train(plain, data, epochs=2, lr=0.05)
    assert calls[-1] is model  # called through it, while the weights stay the network's own
    assert list(model.state_dict()) == keys
    for ours, theirs in zip(history.epochs, reference.epochs, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    torch.testing.assert_close(model[0].weight, plain[0].weight, rtol=1e-3, atol=1e-4)
    return model


def test_a_compiled_training_is_the_same_and_can_be_slimmed_and_trained_on(net, data, monkeypatch):
    model = compiled_training(net, data, monkeypatch, backend="eager")
    model[0] = nn.Conv2d(3, 4, 3, padding=1, bias=False)  # as slimming makes narrower layers
    model[1] = nn.BatchNorm2d(4)
    model[4] = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    assert train(model, data, epochs=1, lr=0.01, compile=True).epochs[0].loss > 0


@pytest.mark.slow
def test_a_training_compiled_by_inductor_is_the_same(net, data, monkeypatch):
    compiled_training(net, data, monkeypatch)


def test_a_missing_compiler_is_one_error(net, data, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    def broken(_):
        def call(*_):
            raise BackendCompilerFailed("inductor", RuntimeError("no C++ compiler"), None)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        TrainingError, match=r"could not compile the network: torch\.compile is failing .*without compile"
    ):
        train(net(), data, epochs=1, compile=True)


def test_a_failure_of_the_network_itself_stays_what_it_is(net, data, monkeypatch):
    class Odd(nn.Module):
        def forward(self, x):
            if self.training:
                raise ZeroDivisionError("mine")
            return x

    monkeypatch.setattr(torch, "compile", lambda function: function)
    model = net()
    model.append(Odd())
    with pytest.raises(ZeroDivisionError, match="mine"):
        train(model, data, epochs=1, compile=True)
