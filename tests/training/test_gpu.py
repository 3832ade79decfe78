"""The loop on a real GPU: what `test_faults` plays on the CPU."""

from __future__ import annotations

import inspect
import math
import signal

import pytest
import torch

from edgeprune.errors import Interrupted, TrainingError
from edgeprune.training import Checkpoints, train
from edgeprune.training.loop import Training
from tests.training.test_faults import Spoiled
from tests.training.test_resume import Signal, nothing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_right_step_is_named_and_no_bad_number_reaches_a_checkpoint(net, data, tmp_path, optimizer):
    model = net()
    model.insert(4, Spoiled(math.nan, 8))
    files = Checkpoints(tmp_path / "x.checkpoint", steps=2)
    with pytest.raises(TrainingError, match=r"epoch 2, step 3 .* that of layer 4 \(Spoiled\)"):
        train(model.cuda(), data, epochs=2, optimizer=optimizer, checkpoint=files)
    state = torch.load(files.path, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["model"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_goes_on(net, data, tmp_path, precision):
    model, options = net().cuda(), {"lr": 0.05, "precision": precision, "ema": 0.5, "clip": 5.0}
    files = Checkpoints(tmp_path / "x.checkpoint")
    with pytest.raises(Interrupted):
        train(model, data, epochs=12, checkpoint=files, after_step=Signal(signal.SIGTERM, 23), **options)
    resumed = net().cuda()
    history = train(resumed, data, epochs=12, checkpoint=files, after_step=nothing, **options)
    assert history.val_accuracy > 0.9
    assert len(history.epochs) == 12


def test_the_host_does_not_wait_for_each_step(net, data):
    model = net().cuda()
    train(model, data, epochs=1)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as caught:
            train(model, data, epochs=4, lr=0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = {
        first + offset
        for method in (Training._step, Training._loss, Training._clip)
        for source, first in [inspect.getsourcelines(method)]
        for offset in range(len(source))
    }
    assert not [one for one in caught if one.filename.endswith("loop.py") and one.lineno in lines]
