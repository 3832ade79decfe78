"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0
WIDE = 100
"""Columns from which the MACs that would remain fit beside the rest."""


class Display:
    """Draws stages, trainings and measurements; a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.bars: Progress | None = None
        self.task: TaskID | None = None
        self.told = 0.0
        self.stage_name = ""

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
                expand=True,
            )
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def stage(self, name: str, status: str, text: str = "") -> None:
        """A stage begins, is done, or is skipped."""
        self._clear()
        self.stage_name, self.told = name, time.monotonic()
        if status == "begin" and self.bars is not None:
            self.task = self.bars.add_task(name, total=None, detail="")
        elif status == "skipped":
            self.console.print(f"{name:<9} nothing has changed, skipped")
        elif status == "taken":
            self.console.print(f"{name:<9} as in {text}, taken from there")
        elif status != "begin":
            self.console.print(f"{name:<9} done in {text}")

    def training(self, progress: Any) -> None:
        """A training goes on."""
        share = (progress.epoch - 1) * progress.steps + progress.step
        # The objective holds the loss: one of the two fits into 80 columns.
        name, value = (
            ("obj", progress.objective) if progress.objective is not None else ("loss", progress.loss)
        )
        parts = [f"{progress.images_per_s:.0f} img/s", f"{name} {value:.3f}"]
        if progress.sparsity is not None:
            parts.append(f"zeros {progress.sparsity * 100:.0f} %")
        if progress.macs_ratio is not None and (self.bars is None or self.console.width >= WIDE):
            parts.append(f"MACs {progress.macs_ratio * 100:.0f} %")
        if progress.val_accuracy is not None:
            parts.append(f"val {progress.val_accuracy * 100:.1f} %")
        self._show(
            f"{progress.phase} {progress.epoch}/{progress.epochs}",
            share,
            progress.epochs * progress.steps,
            " ".join(parts),
            progress.seconds_left,
        )

    def say(self, text: str) -> None:
        """What a person has to do, e.g. at the device."""
        self.console.print(text, soft_wrap=True, markup=False)

    def step(self, done: int, total: int, text: str) -> None:
        """A measurement goes on."""
        self._show(self.stage_name or "bench", done, total, text, None)

    def _show(self, name: str, done: int, total: int, detail: str, seconds_left: float | None) -> None:
        if self.bars is not None:
            if self.task is None:
                self.task = self.bars.add_task(name, total=total, detail=detail)
            self.bars.update(self.task, description=name, completed=done, total=total, detail=detail)
        elif time.monotonic() - self.told >= PLAIN_EVERY_S:
            self.told = time.monotonic()
            left = f", {seconds_left:.0f} s left" if seconds_left is not None else ""
            self.console.print(f"  {name}: {detail}{left}", soft_wrap=True)

    def _clear(self) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
        self.task = None
