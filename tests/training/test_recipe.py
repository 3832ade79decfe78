from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
import torch

from edgeprune.errors import UsageError
from edgeprune.training import PRESETS, Recipe, find_preset, learning_rate, train
from edgeprune.training.checkpoint import digest
from edgeprune.training.recipe import Changes


def test_every_field_is_a_keyword_of_train():
    assert list(Changes.__annotations__) == [item.name for item in fields(Recipe)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", -1), ("epochs", True), ("optimizer", "lamb"), ("lr", 0), ("lr", "0.1"), ("momentum", 1.0),
        ("betas", (0.9,)), ("betas", (0.9, 1.0)), ("weight_decay", math.inf), ("schedule", "linear"),
        ("warmup_epochs", 30), ("warmup_epochs", -1), ("label_smoothing", 1.0), ("mixup", -0.1),
        ("ema", 1.0), ("clip", -1.0), ("clip", math.nan), ("patience", 1.5), ("precision", "fp16"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=rf"could not train: {name} is .*, expected ."):
        Recipe(**{name: value})


def test_nesterov_needs_momentum_and_an_unknown_keyword_is_named(net, data):
    with pytest.raises(UsageError, match="nesterov is True, expected False, or a momentum above 0"):
        Recipe(nesterov=True, momentum=0)
    with pytest.raises(UsageError, match="a keyword is epoch, expected one of epochs, optimizer, lr"):
        train(net(), data, epoch=3)
    with pytest.raises(UsageError, match="its name is 'fast', expected one of default, proximal-ns-cifar"):
        train(net(), data, recipe="fast")


def test_keywords_override_the_recipe(net, data):
    by_recipe, by_keywords = net(), net()
    recipe = Recipe(epochs=5, lr=0.02, schedule="step", nesterov=True)
    train(by_recipe, data, recipe=replace(recipe, epochs=2))
    train(by_keywords, data, recipe=recipe, epochs=2)
    assert digest(by_recipe.state_dict()) == digest(by_keywords.state_dict())
    history = train(net(), data, recipe="quick", epochs=1, lr=0.01)
    assert history.epochs[0].lr == learning_rate("one-cycle", 0.01, 0, 1, 4, 5)


def test_presets_are_those_of_their_sources():
    paper = find_preset("proximal-ns-cifar")
    assert paper.dense == paper.sparse == paper.finetune
    assert (paper.batch_size, paper.dense.epochs, paper.dense.lr, paper.dense.momentum) == (64, 160, 0.1, 0.9)
    assert (paper.dense.weight_decay, paper.dense.decay_norms, paper.dense.schedule) == (1e-4, True, "step")
    rates = [learning_rate("step", 0.1, epoch, 160, 0, 10) for epoch in (79, 80, 120)]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    apib = find_preset("apib-cifar")
    assert (apib.batch_size, apib.finetune.epochs, apib.finetune.schedule) == (256, 150, "cosine")
    for preset in PRESETS.values():
        assert len(preset.source) > 40
        assert json.loads(json.dumps(preset.dense.to_json()))["betas"] == [0.9, 0.999]


def test_warm_up_rises_in_a_line_and_the_rest_is_the_schedule():
    steps, epochs, warm = 4, 6, 1.5
    rates = [
        learning_rate("cosine", 0.3, epoch, epochs, step, steps, warmup_epochs=warm)
        for epoch in range(epochs)
        for step in range(steps)
    ]
    assert rates[:6] == pytest.approx([0.3 * k / 7 for k in range(1, 7)])
    expected = [0.15 * (1 + math.cos(math.pi * k / 18)) for k in range(18)]
    assert rates[6:] == pytest.approx(expected)
    late = [learning_rate("step", 0.3, epoch, 8, 0, 4, warmup_epochs=1) for epoch in (0, 1, 4, 6)]
    assert late == pytest.approx([0.3 / 5, 0.3, 0.03, 0.003])


def test_one_cycle_is_torchs():
    total, weight = 40, torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=total + 1, pct_start=(0.3 * total + 1) / (total + 1), cycle_momentum=False
    )
    expected = []
    for _ in range(total):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = [learning_rate("one-cycle", 0.2, epoch, 10, step, 4) for epoch in range(10) for step in range(4)]
    assert ours == pytest.approx(expected, rel=1e-6)
    assert max(ours) == pytest.approx(0.2)
    assert learning_rate("one-cycle", 0.2, 2, 10, 0, 4, warmup_epochs=2) == pytest.approx(0.2)
