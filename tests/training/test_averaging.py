from __future__ import annotations

import torch

from edgeprune.training import evaluate, train
from edgeprune.training.averaging import WeightMean, wearing
from edgeprune.training.checkpoint import copied, digest


def by_hand(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    mean = {key: value.double() for key, value in states[0].items()}
    for step, state in enumerate(states[1:]):
        share = min(decay, (1 + step) / (10 + step))
        mean = {key: share * mean[key] + (1 - share) * state[key].double() for key in mean}
    return mean


def test_the_mean_is_chosen_with_its_norm_statistics(net, data):
    model = net()
    states = [copied(model.state_dict())]
    history = train(
        model, data, epochs=2, ema=0.8, select="last",
        after_step=lambda lr: states.append(copied(model.state_dict()) | {"": torch.tensor(lr)}),
    )  # fmt: skip
    expected = by_hand([{k: v for k, v in state.items() if k} for state in states], 0.8)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-4, atol=1e-6)
    assert not torch.equal(model.state_dict()["1.running_mean"], states[-1]["1.running_mean"])
    assert evaluate(model, data.val) == history.val_accuracy


def test_the_best_epoch_is_that_of_the_mean(net, data):
    model = net()
    history = train(model, data, epochs=4, ema=0.9, lr=0.05)
    assert evaluate(model, data.val) == history.val_accuracy
    accuracies = [history.start_val_accuracy, *(epoch.val_accuracy for epoch in history.epochs)]
    assert history.val_accuracy == max(accuracies)


def test_what_wears_the_mean_has_its_own_weights_back_to_the_bit(net):
    model = net()
    mean = WeightMean(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before, worn = digest(model.state_dict()), []
    with wearing(mean):
        worn.append(digest(model.state_dict()))
    assert digest(model.state_dict()) == before != worn[0] == digest(net().state_dict())
    with wearing(None):
        assert digest(model.state_dict()) == before


def test_a_shared_weight_is_averaged_once(net):
    model = net()
    model.append(model[9])
    mean = WeightMean(model, 0.5)
    with torch.no_grad():
        model[9].weight.fill_(1.0)
        first = net()[9].weight.clone()
    mean.update(100)
    with wearing(mean):
        torch.testing.assert_close(model[9].weight, (first + 1) / 2)
