from __future__ import annotations

import pytest
import torch

from edgeprune.errors import DataError
from edgeprune.training import evaluate, predict


def test_evaluate_and_predict_agree_with_a_plain_loop(net, loader):
    model, split = net(), loader(37, 5)
    with torch.no_grad():
        expected = model.eval()(split.images).argmax(1)
    assert torch.equal(predict(model, split), expected)
    assert evaluate(model, split) == pytest.approx(float((expected == split.labels).double().mean()))


def test_every_module_gets_its_own_mode_back(net, loader):
    model = net().train()
    model[1].eval()
    statistics = model[5].running_mean.clone()
    evaluate(model, loader(20, 5))
    assert model.training
    assert model[5].training
    assert not model[1].training
    assert torch.equal(model[5].running_mean, statistics)


def test_the_mode_comes_back_after_a_failure(net):
    model = net().train()
    with pytest.raises(RuntimeError):
        predict(model, [(torch.zeros(2, 5, 8, 8), torch.zeros(2))])
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_an_empty_split_is_refused(net, loader):
    with pytest.raises(DataError, match="could not evaluate: the split is empty, expected images"):
        evaluate(net(), loader(0, 5))
    assert predict(net(), loader(0, 5)).shape == (0,)
