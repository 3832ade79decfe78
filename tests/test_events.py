"""What a run tells other programs and people: events.jsonl, TensorBoard, signals, broken checkpoints."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from edgeprune.errors import UsageError
from edgeprune.pipeline import Silent
from edgeprune.pipeline.events import Recorder, board_of, read_events
from edgeprune.training import Progress
from edgeprune.training.loop import Training
from tests.conftest import run

TRAIN = ["train", "--model", "tiny:net", "--data", "digits", "--epochs", "2", "--batch-size", "256"]
END = Progress("train", 1, 2, 5, 5, 100.0, 9.0, 0.5, None, None, 0.75, None, 0.1)


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command line in this process: what differs from one of its own is the time that imports take."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [str(workplace), *sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return workplace


def after_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Any) -> None:
    """Do something when a process has done so many steps."""
    step, done = Training._step, 0

    def stepping(self: Any, *batch: Any) -> None:
        nonlocal done
        step(self, *batch)
        done += 1
        if done == number:
            action()

    monkeypatch.setattr(Training, "_step", stepping)


def test_a_torn_line_breaks_no_reader_and_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    Recorder(Silent(), path).stage("train", "begin")
    with path.open("a") as file:
        file.write('{"time": 1, "eve')
    assert [event["status"] for event in read_events(path)] == ["begin"]
    recorder = Recorder(Silent(), path)
    recorder.training(END)
    recorder.stage("train", "done", "3 s")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["stage", "epoch", "stage"]
    assert (events[1]["val_accuracy"], events[1]["lr"], events[1]["sparsity"]) == (0.75, 0.1, None)


def test_only_the_end_of_an_epoch_is_an_event_and_all_is_passed_on(tmp_path: Path) -> None:
    told: list[Any] = []
    listener = SimpleNamespace(
        stage=lambda *words: told.append(words), training=told.append, say=told.append,
        step=lambda *words: told.append(words),
    )  # fmt: skip
    recorder = Recorder(listener, tmp_path / "events.jsonl")
    early = Progress("train", 1, 2, 4, 5, 100.0, 9.0, 0.5, None, None, 0.75)
    recorder.training(early)
    recorder.say("hello")
    recorder.step(1, 2, "three")
    recorder.stage("bench", "skipped")
    assert told == [early, "hello", (1, 2, "three"), ("bench", "skipped", "")]
    assert [event["event"] for event in read_events(tmp_path / "events.jsonl")] == ["stage"]


def test_tensorboard_gets_a_curve_for_each_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, *words: Any) -> None:
            scalars.append(words)

        def flush(self) -> None: ...

    fake = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    Recorder(Silent(), tmp_path / "events.jsonl", board_of(tmp_path)).training(END)
    assert ("train/loss", 0.5, 1) in scalars
    assert {name for name, *_ in scalars} == {
        "train/loss", "train/val_accuracy", "train/lr", "train/images_per_s"
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"package tensorboard is not installed.*edgeprune\[tensorboard\]"):
        board_of(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_code_and_a_line_and_the_same_command_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(capsys, *TRAIN, "--out", "whole")[0] == 0
    with monkeypatch.context() as patched:
        after_step(patched, 7, lambda: os.kill(os.getpid(), number))
        ended, _, err = run(capsys, *TRAIN, "--out", "run")
    assert ended == code
    assert signal.getsignal(signal.SIGTERM) is before
    (line,) = [line for line in err.splitlines() if line.startswith("edgeprune:")]
    assert f"interrupted by {signal.Signals(number).name}, the checkpoint is" in line
    assert line.endswith("(epoch 2, step 2). Run the same command again to go on.")
    assert "Traceback" not in err
    assert run(capsys, *TRAIN, "--out", "run")[0] == 0
    weights = [load_file(here / name / "dense.safetensors") for name in ("whole", "run")]
    assert all(bool((weights[0][key] == value).all()) for key, value in weights[1].items())
    events = read_events(here / "run" / "events.jsonl")
    kinds = [(event["event"], event.get("status", event.get("epoch"))) for event in events]
    assert kinds == [
        ("stage", "begin"), ("epoch", 1), ("stop", None), ("stage", "begin"), ("epoch", 2), ("stage", "done")
    ]  # fmt: skip
    assert "interrupted by" in events[2]["reason"]


def test_a_broken_checkpoint_is_told_by_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        after_step(patched, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(capsys, *TRAIN, "--checkpoint-steps", "1", "--out", "run")
    (here / "run" / "train.checkpoint").write_bytes(b"broken")
    code, _, err = run(capsys, *TRAIN, "--out", "run")
    assert code == 0
    text = err.replace("\n", " ")
    assert "warning: the newest checkpoint run/train.checkpoint is broken" in text
    assert "training goes on from the one before it" in text
    assert not list((here / "run").glob("*.checkpoint"))


def test_a_changed_recipe_runs_what_it_decides_again_and_a_wrong_one_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(capsys, *TRAIN, "--out", "run")[0] == 0
    assert "nothing has changed, skipped" in run(capsys, *TRAIN, "--recipe", "default", "--out", "run")[2]
    for words in (["--label-smoothing", "0.1"], ["--recipe", "quick"], ["--ema", "0.9"]):
        code, _, err = run(capsys, *TRAIN, *words, "--out", "run")
        assert (code, "skipped" in err) == (0, False), words
    code, _, err = run(capsys, *TRAIN, "--recipe", "quickest", "--out", "run")
    assert code == 2
    assert "could not find the recipe: its name is 'quickest', expected one of default" in err
    code, _, err = run(capsys, *TRAIN, "--recipe", "quick", "--mixup", "0", "--tensorboard", "--out", "x")
    assert code in (0, 2)  # as the package is there or not; never a traceback
    assert "Traceback" not in err
