from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import files
from edgeprune.errors import TrainingError
from edgeprune.training import Progress, train
from edgeprune.training.checkpoint import digest


class Pull:
    """A hook with state, as proximal NS has: a running twin that pulls a norm's weight."""

    def __init__(self, model: nn.Sequential) -> None:
        self.weight, self.twin = model[1].weight, model[1].weight.detach().clone()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        self.weight.lerp_(self.twin, lr)
        self.twin.lerp_(self.weight, 0.5)

    def state_dict(self) -> dict[str, object]:
        return {"twin": [self.twin]}

    def load_state_dict(self, state: dict[str, list[torch.Tensor]]) -> None:
        self.twin.copy_(state["twin"][0])


class StopError(Exception):
    pass


def run(model, data, *, checkpoint=None, stop_after=None, select="best", **options):
    pull = Pull(model)
    steps = 0

    def after_step(lr: float) -> None:
        nonlocal steps
        pull.after_step(lr)
        steps += 1
        if stop_after is not None and steps == stop_after:
            raise StopError

    history = train(
        model,
        data,
        epochs=4,
        select=select,
        after_step=after_step,
        extra_state=pull,
        checkpoint=checkpoint,
        **options,
    )
    return history, pull


def timeless(history):
    return [dataclasses.replace(epoch, duration_s=0.0, images_per_s=0.0) for epoch in history.epochs]


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.parametrize("stop_after", [3, 5, 7, 13, 19])
def test_a_stopped_training_ends_with_the_same_bits(net, data, tmp_path, stop_after, select):
    whole = net()
    history, pull = run(whole, data, select=select)
    path = tmp_path / "deep" / "checkpoint.pt"
    with pytest.raises(StopError):
        run(net(), data, checkpoint=path, stop_after=stop_after, select=select)
    assert path.exists() == (stop_after > 5)  # five steps an epoch
    resumed = net()
    data.train.epochs_seen.clear()
    again, pull_again = run(resumed, data, checkpoint=path, select=select)
    assert data.train.epochs_seen == list(range((stop_after - 1) // 5, 4))
    assert digest(resumed.state_dict()) == digest(whole.state_dict())
    assert torch.equal(pull_again.twin, pull.twin)
    assert timeless(again) == timeless(history)
    assert (again.chosen_epoch, again.val_accuracy) == (history.chosen_epoch, history.val_accuracy)
    assert again.start_val_accuracy == history.start_val_accuracy


def test_without_the_hooks_state_the_bits_would_differ(net, data, tmp_path, monkeypatch):
    """Negative control of the test above: it does notice a state that is not restored."""
    whole = net()
    run(whole, data)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(StopError):
        run(net(), data, checkpoint=path, stop_after=13)
    monkeypatch.setattr(Pull, "load_state_dict", lambda *_: None)
    resumed = net()
    run(resumed, data, checkpoint=path)
    assert digest(resumed.state_dict()) != digest(whole.state_dict())


def test_the_best_epoch_survives_a_restart(net, data, tmp_path, monkeypatch):
    script = [0.2, 0.9, 0.5, 0.4, 0.3]  # start, then four epochs: the first is the best
    accuracies = iter(script)
    monkeypatch.setattr("edgeprune.training.loop.evaluate", lambda *_: next(accuracies))
    whole = net()
    history, _ = run(whole, data)
    assert (history.chosen_epoch, history.val_accuracy) == (1, 0.9)
    path = tmp_path / "checkpoint.pt"
    accuracies = iter(script)
    with pytest.raises(StopError):
        run(net(), data, checkpoint=path, stop_after=13)
    accuracies = iter(script[3:])
    resumed = net()
    again, _ = run(resumed, data, checkpoint=path)
    assert (again.chosen_epoch, again.val_accuracy) == (1, 0.9)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())


def test_a_finished_training_is_not_done_again_and_its_checkpoint_stays(net, data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    first, second = net(), net()
    history, _ = run(first, data, checkpoint=path)
    assert path.exists()
    data.train.epochs_seen.clear()
    again, _ = run(second, data, checkpoint=path)
    assert data.train.epochs_seen == []
    assert again == history
    assert digest(first.state_dict()) == digest(second.state_dict())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.training.fakes import make_data, make_net
from edgeprune.training import train
steps = 0
def after_step(lr):
    global steps
    steps += 1
    if steps == 8:
        os.kill(os.getpid(), signal.SIGKILL)
train(make_net(), make_data(), epochs=4, checkpoint=Path(sys.argv[2]), after_step=after_step)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kill_9_leaves_a_whole_checkpoint_that_goes_on_to_the_same_bits(net, data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", KILLED, root, str(path)], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    resumed, whole = net(), net()
    data.train.epochs_seen.clear()
    train(resumed, data, epochs=4, checkpoint=path)
    assert data.train.epochs_seen == [1, 2, 3]
    train(whole, data, epochs=4)
    assert digest(resumed.state_dict()) == digest(whole.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.05},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"nesterov": True},
        {"schedule": "step"},
        {"seed": 1},
        {"select": "last"},
        {"epochs": 3},
        {"teacher": True},
        {"network": 1},
        {"identity": "others"},
        {"extra": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_training_is_refused(net, data, tmp_path, change):
    path = tmp_path / "checkpoint.pt"
    train(net(), data, epochs=2, checkpoint=path)
    before = path.read_bytes()
    options = {"epochs": 2, **change}
    model = net(options.pop("network", 0))
    data = dataclasses.replace(data, identity=options.pop("identity", data.identity))
    if options.pop("teacher", False):
        options["teacher"] = net(3)
    if options.pop("extra", False):
        options["extra_state"] = Pull(model)
    with pytest.raises(
        TrainingError, match="is of another training, expected the same network, data"
    ) as error:
        train(model, data, checkpoint=path, **options)
    assert str(path) in str(error.value)
    assert "Delete it and checkpoint.1.pt to start again" in str(error.value)
    path.unlink()  # the one before it is as foreign
    with pytest.raises(TrainingError, match=r"checkpoint\.1\.pt is of another .*Delete it to start again"):
        train(model, data, checkpoint=path, **options)
    path.write_bytes(before)
    assert path.read_bytes() == before


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("planted",))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps(Evil()), "truncated", "list"],
    ids=["empty", "text", "code", "truncated", "list"],
)
def test_a_broken_checkpoint_is_named_and_runs_no_code(net, data, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if content == "truncated":
        train(net(), data, epochs=1, checkpoint=path)
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is broken .*Delete it to start again"):
        train(net(), data, epochs=1, checkpoint=path)
    assert not (tmp_path / "planted").exists()


def test_a_checkpoint_that_cannot_be_written_is_an_error(net, data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="could not write the checkpoint"):
        train(net(), data, epochs=1, checkpoint=tmp_path / "file" / "checkpoint.pt")


def test_a_full_disk_leaves_the_old_checkpoint_whole(net, data, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    contents: list[bytes] = []

    def full_disk(progress: Progress) -> None:
        if progress.epoch == 1 and progress.step == progress.steps and path.exists():
            contents.append(path.read_bytes())

            def fail(_, file):
                Path(file).write_bytes(b"half")
                raise RuntimeError("PytorchStreamWriter failed writing file")

            monkeypatch.setattr(torch, "save", fail)

    with pytest.raises(TrainingError, match=r"could not write the checkpoint.*failed writing file"):
        train(net(), data, epochs=3, checkpoint=path, on_progress=full_disk)
    assert path.read_bytes() == contents[0]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(files.TEMPORARY)]


def test_the_digest_sees_names_shapes_types_and_bits():
    base = {"a": torch.zeros(2, 3), "b": 1.0}
    others = [
        {"c": torch.zeros(2, 3), "b": 1.0},
        {"a": torch.zeros(3, 2), "b": 1.0},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": 1.0},
        {"a": torch.zeros(2, 3).index_fill(0, torch.tensor(1), 1e-30), "b": 1.0},
        {"a": torch.zeros(2, 3), "b": 2.0},
        {"a": [torch.zeros(2, 3)] * 2, "b": 1.0},
    ]
    assert digest(base) == digest({"a": torch.zeros(2, 3), "b": 1.0})
    assert len({digest(state) for state in [base, *others]}) == 7
