"""What has happened in a run, for other programs: ``events.jsonl``, and TensorBoard if asked for."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune.errors import CheckpointWarning, UsageError
from edgeprune.pipeline.folder import Listener

EVENTS_FILE = "events.jsonl"
CURVES = ("loss", "objective", "val_accuracy", "sparsity", "macs_ratio", "lr", "images_per_s")


class Recorder:
    """A listener that writes a line for each stage and epoch, and passes everything on.

    Every line is one JSON object with ``time`` (seconds since 1970) and ``event``: ``"stage"`` (``stage``,
    ``status`` begin, done, skipped or taken), ``"epoch"`` (``stage``, ``phase``, ``epoch``, ``epochs`` and
    what was measured) or ``"stop"`` (``stage``, ``reason``). It is written in one call, so that a kill tears
    no line but the last; a torn one is cut off before the next is written.

    Args:
        listener: Is told, too.
        path: The file, made if it is not there.
        board: TensorBoard's writer, or None.
    """

    def __init__(self, listener: Listener, path: Path, board: Any = None) -> None:
        self.listener, self.path, self.board = listener, path, board
        self.now = ""
        cut_torn_line(path)

    def write(self, event: str, **facts: Any) -> None:
        """Add a line."""
        line = json.dumps({"time": time.time(), "event": event, **facts}, allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def stage(self, name: str, status: str, text: str = "") -> None:
        """See ``Listener``."""
        self.now = name if status == "begin" else ""
        self.write("stage", stage=name, status=status)
        self.listener.stage(name, status, text)

    def training(self, progress: Any) -> None:
        """See ``Listener``; the end of an epoch makes a line."""
        if progress.step >= progress.steps:
            curves = {name: getattr(progress, name) for name in CURVES}
            facts = {"stage": self.now, "phase": progress.phase, "epoch": progress.epoch}
            self.write("epoch", **facts, epochs=progress.epochs, **curves)
            if self.board is not None:
                for name, value in curves.items():
                    if value is not None:
                        self.board.add_scalar(f"{progress.phase}/{name}", value, progress.epoch)
                self.board.flush()
        self.listener.training(progress)

    def step(self, done: int, total: int, text: str) -> None:
        """See ``Listener``."""
        self.listener.step(done, total, text)

    def say(self, text: str) -> None:
        """See ``Listener``."""
        self.listener.say(text)


@contextlib.contextmanager
def recorded(context: Any, *, trains: bool) -> Iterator[None]:
    """A run with its events written, and with the warnings of its checkpoints told to its listener.

    Args:
        context: The run.
        trains: Something may be trained; TensorBoard, which needs torch, is for that alone.

    Raises:
        UsageError: TensorBoard is asked for and not installed.
    """
    run, listener = context.run, context.listener
    board = board_of(run.file("tensorboard")) if trains and run.settings.tensorboard else None
    recorder = Recorder(listener, run.file(EVENTS_FILE), board)
    context.listener = recorder
    try:
        with checkpoint_warnings_said(listener):
            yield
    except BaseException as reason:
        if recorder.path.exists():  # else nothing has begun: a wrong option leaves no file behind
            recorder.write("stop", stage=recorder.now, reason=str(reason) or type(reason).__name__)
        raise
    finally:
        context.listener = listener
        if board is not None:
            board.close()


@contextlib.contextmanager
def checkpoint_warnings_said(listener: Listener) -> Iterator[None]:
    """A warning of a broken checkpoint goes to the listener, at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        show = warnings.showwarning

        def say(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, CheckpointWarning):
                listener.say(f"warning: {message}")
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = say  # put back by catch_warnings
        yield


def board_of(folder: Path) -> Any:
    """TensorBoard's writer.

    Raises:
        UsageError: Its package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "could not write for TensorBoard",
            where="the package tensorboard",
            value="not installed",
            expected="it beside torch",
            hint='Install it with `pip install "edgeprune[tensorboard]"`, or leave out --tensorboard.',
        ) from None
    return SummaryWriter(str(folder))


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn last one is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def cut_torn_line(path: Path) -> None:
    """Take away what stands behind the last line's end."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
