"""A training that is killed, interrupted or finds a broken checkpoint ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.data import load_data
from edgeprune.errors import CheckpointWarning, Interrupted, TrainingError, UsageError
from edgeprune.training import Checkpoints, train
from edgeprune.training.checkpoint import digest

ROOT = Path(__file__).parents[2]
PHASES = {
    "dense": [("dense", 3)],
    "proximal": [("proximal-ns", 2), ("debias", 2)],
    "finetune": [("finetune", 3)],
}
STEPS = 5


def places(kind: str) -> list[str]:
    return [
        f"{phase}:{epoch}:{step}"
        for phase, epochs in PHASES[kind]
        for epoch in range(epochs)
        for step in range(STEPS)
    ]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["five", "all"])
def test_kill_9_at_any_step_ends_with_the_same_bits(tmp_path, every):
    wanted = {}
    for kind in PHASES:
        everywhere = places(kind)
        chosen = sorted(random.Random(kind).sample(range(1, len(everywhere)), 5))
        wanted[kind] = [everywhere[place] for place in (range(1, len(everywhere)) if every else chosen)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_steps.py")), str(tmp_path), json.dumps(wanted)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for kind, found in json.loads(done.stdout).items():
        # Each process really died at its moment, and went on inside of an epoch: of its steps at most one is
        # done again, for a checkpoint is written at every second.
        kills, steps = len(wanted[kind]), len(places(kind))
        assert found["ended"] == [signal.SIGKILL] * kills + [0, 0]
        assert found["hashes"][0] == found["hashes"][1]
        assert found["steps"][-1] == steps
        assert sum(found["steps"][:-1]) <= steps + kills


def nothing(lr: float) -> None:
    del lr


class Signal:
    """Sends this process a signal after some steps."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.left = number, step

    def __call__(self, lr: float) -> None:
        del lr
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_signal_ends_after_the_step_with_a_checkpoint(net, data, tmp_path, number, step):
    path, handlers = tmp_path / "x.checkpoint", [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    text = rf"{signal.Signals(number).name}, the checkpoint is .*x\.checkpoint \(epoch"
    with pytest.raises(Interrupted, match=text) as caught:
        train(net(), data, epochs=2, checkpoint=path, after_step=Signal(number, step))
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed, whole, counted = net(), net(), []
    history = train(resumed, data, epochs=2, checkpoint=path, after_step=counted.append)
    assert len(counted) == 10 - step
    again = train(whole, data, epochs=2, after_step=nothing)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())
    assert [epoch.loss for epoch in history.epochs] == [epoch.loss for epoch in again.epochs]


def test_a_signal_during_validation_is_obeyed_at_once(net, data, tmp_path, monkeypatch):
    from edgeprune.training import loop

    evaluate, calls = loop.evaluate, 0

    def slow(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("validation went on")
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", slow)
    path = tmp_path / "x.checkpoint"
    with pytest.raises(Interrupted, match=r"\(epoch 1, step 5\)"):
        train(net(), data, epochs=2, checkpoint=path)
    resumed, whole = net(), net()
    train(resumed, data, epochs=2, checkpoint=path)
    train(whole, data, epochs=2)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())


def test_a_signal_before_anything_is_done_says_so(net, data, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeprune.training.loop.evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="nothing was done yet"):
        train(net(), data, epochs=2, checkpoint=tmp_path / "x.checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_wait(net, data, tmp_path):
    def twice(lr: float) -> None:
        del lr
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step went on")

    with pytest.raises(Interrupted, match=r"interrupted by SIGINT$"):
        train(net(), data, epochs=1, checkpoint=tmp_path / "x.checkpoint", after_step=twice)


def test_without_a_checkpoint_signals_do_what_they_did(net, data):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(net(), data, epochs=1, after_step=Signal(signal.SIGINT, 2))
    assert not isinstance(caught.value, Interrupted)


def test_an_ignored_signal_stays_ignored(net, data, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        hook = Signal(signal.SIGINT, 2)
        train(net(), data, epochs=1, checkpoint=tmp_path / "x.checkpoint", after_step=hook)
        assert hook.left == -3
    finally:
        signal.signal(signal.SIGINT, before)


def test_how_often_a_checkpoint_is_written_changes_nothing(net, data, tmp_path):
    written: list[set[str]] = []
    states = []
    for files in (
        Checkpoints(tmp_path / "a.checkpoint", steps=1, keep=3),
        Checkpoints(tmp_path / "b.checkpoint", seconds=1e-9, keep=1),
    ):
        model = net()
        train(model, data, epochs=2, checkpoint=files)
        written.append({path.name for path in tmp_path.iterdir() if path.name[0] == files.path.name[0]})
        states.append(digest(model.state_dict()))
    whole = net()
    train(whole, data, epochs=2)
    assert set(states) == {digest(whole.state_dict())}
    assert written == [{"a.checkpoint", "a.1.checkpoint", "a.2.checkpoint"}, {"b.checkpoint"}]
    ages = [
        torch.load(tmp_path / f"a{age}.checkpoint", weights_only=True)["tally"]["step"] for age in ("", ".1")
    ]
    assert ages == [0, 4]  # after the epoch, and after its last step but one


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(net, data, tmp_path, damage):
    files = Checkpoints(tmp_path / "x.checkpoint", steps=2)
    with pytest.raises(Interrupted):
        train(net(), data, epochs=2, checkpoint=files, after_step=Signal(signal.SIGTERM, 7))
    content = files.path.read_bytes()
    damaged = {"truncated": content[:-300], "garbage": b"x" * 1000, "empty": b""}[damage]
    files.path.write_bytes(damaged)
    resumed, whole, counted = net(), net(), []
    with pytest.warns(
        CheckpointWarning, match=r"newest checkpoint .*x\.checkpoint is broken .*the one before"
    ):
        train(resumed, data, epochs=2, checkpoint=files, after_step=counted.append)
    assert len(counted) == 5  # from the end of epoch 1
    train(whole, data, epochs=2, after_step=nothing)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())


def test_if_all_are_broken_it_is_an_error(net, data, tmp_path):
    files = Checkpoints(tmp_path / "x.checkpoint", steps=2)
    train(net(), data, epochs=1, checkpoint=files)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        TrainingError, match=r"x\.checkpoint is broken .*Delete it and x\.1\.checkpoint to start again"
    ):
        train(net(), data, epochs=1, checkpoint=files)


def test_a_full_disk_in_the_middle_of_a_file_leaves_the_old_one_whole(net, data, tmp_path):
    """The system itself stops the write, by a limit on the size of files."""
    files = Checkpoints(tmp_path / "x.checkpoint", steps=1)
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), []
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(lr: float) -> None:
        del lr
        if files.path.exists() and not before:
            before.append(files.path.read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) // 2, limits[1]))

    try:
        with pytest.raises(
            TrainingError, match=r"could not write the checkpoint.*Make room and run the same"
        ):
            train(net(), data, epochs=1, checkpoint=files, after_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert files.path.read_bytes() == before[0]
    assert [path.name for path in tmp_path.iterdir()] == [files.path.name]
    resumed, whole = net(), net()
    train(resumed, data, epochs=1, checkpoint=files, after_step=nothing)
    train(whole, data, epochs=1, after_step=nothing)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"keep": 0}], ids=str)
def test_numbers_of_checkpoints_are_checked(tmp_path, wrong):
    with pytest.raises(UsageError, match=f"could not keep checkpoints: {next(iter(wrong))} is"):
        Checkpoints(tmp_path / "x", **wrong)


def test_python_numpy_and_torch_draw_by_epoch_and_step_alone_and_are_put_back(net, data, tmp_path):
    def draws(**options):
        seen = []

        def note(lr: float) -> None:
            del lr
            seen.append((random.random(), float(np.random.rand()), float(torch.rand(()))))

        random.seed(5)
        np.random.seed(6)
        torch.manual_seed(7)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        train(net(), data, epochs=2, after_step=note, **options)
        assert (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ) == before
        return seen

    whole = draws()
    assert len(set(whole)) == 10
    path = tmp_path / "x.checkpoint"
    with pytest.raises(Interrupted):
        train(net(), data, epochs=2, checkpoint=path, after_step=Signal(signal.SIGTERM, 4))
    assert draws(checkpoint=path) == whole[4:]
    assert draws(seed=1) != whole


def test_a_loader_that_can_skip_is_asked_to(net, data, tmp_path):
    path, skipped = tmp_path / "x.checkpoint", []
    with pytest.raises(Interrupted):
        train(net(), data, epochs=2, checkpoint=path, after_step=Signal(signal.SIGTERM, 8))
    # It claims to begin there and does not: so the pass is longer than it should be.
    data.train.skip_to = lambda step: skipped.append(step) or step
    counted = []
    train(net(), data, epochs=2, checkpoint=path, after_step=counted.append)
    assert skipped == [3]
    assert len(counted) == 5


def test_a_users_loader_that_draws_from_the_global_state(net, tmp_path, monkeypatch):
    """As torchvision's transforms do: what comes before the step is made again, each with its own draws."""
    kinds = torch.arange(40).remainder(3).split(8)

    class Drawing:
        samples = 40

        def __iter__(self):
            return ((torch.randn(len(labels), 3, 8, 8), labels) for labels in kinds)

        def __len__(self):
            return len(kinds)

        def set_epoch(self, epoch: int) -> None:
            del epoch

    own = replace(load_data("digits"), example=torch.zeros(1, 3, 8, 8), classes=("a", "b", "c"), identity="1")
    own = replace(own, **dict.fromkeys(("train", "val", "test", "calib"), Drawing()))
    monkeypatch.setattr(sys.modules[__name__], "make", lambda: own, raising=False)
    path, data = tmp_path / "x.checkpoint", load_data(f"{__name__}:make")
    with pytest.raises(Interrupted):
        train(net(), data, epochs=1, checkpoint=path, after_step=Signal(signal.SIGTERM, 3), select="last")
    resumed, whole = net(), net()
    train(resumed, data, epochs=1, checkpoint=path, after_step=nothing, select="last")
    train(whole, data, epochs=1, after_step=nothing, select="last")
    assert digest(resumed.state_dict()) == digest(whole.state_dict())
