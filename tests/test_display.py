"""Progress: bars on a terminal that fit 80 columns, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from edgeprune.cli import display as display_module
from edgeprune.cli.display import Display
from edgeprune.training import Progress

PROGRESS = Progress("proximal-ns", 100, 160, 300, 352, 12345.6, 754.0, 0.463, 2.662, 0.7, 0.944)


def shown(terminal: bool, progress: Progress = PROGRESS) -> str:
    display = Display()
    out = io.StringIO()
    display.console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    with display:
        display.stage("train", "skipped")
        display.stage("score", "begin")
        display.training(progress)
        if display.bars is not None:
            display.bars.refresh()
        display.stage("score", "done", "3.0 s")
        display.stage("bench", "begin")
        display.step(3, 17, "memory of dense.onnx, process 2 of 3")
        if display.bars is not None:
            display.bars.refresh()
    return out.getvalue()


def test_a_terminal_shows_rate_objective_sparsity_accuracy_and_time_left_in_80_columns() -> None:
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True)).replace("\r", "\n").split("\n")
    bars = [line for line in lines if "proximal-ns 100/160" in line]
    assert bars
    assert all(len(line) <= 80 for line in lines)
    for part in ("12346 img/s", "obj 2.662", "zeros 70 %", "val 94.4 %"):
        assert part in bars[-1]
    assert any("process 2 of 3" in line for line in lines)


def test_elsewhere_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "proximal-ns" not in shown(terminal=False)  # not more often than every PLAIN_EVERY_S
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    text = shown(terminal=False)
    assert "\x1b" not in text
    assert "train     nothing has changed, skipped\n" in text
    assert "  proximal-ns 100/160: 12346 img/s obj 2.662 zeros 70 % val 94.4 %, 754 s left\n" in text
    assert "score     done in 3.0 s\n" in text
    assert "  bench: memory of dense.onnx, process 2 of 3\n" in text


def test_without_a_penalty_the_loss_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    plain = Progress("train", 1, 2, 3, 4, 5.0, 6.0, 0.5, None, None, None)
    assert "train 1/2: 5 img/s loss 0.500, 6 s left" in shown(terminal=False, progress=plain)
