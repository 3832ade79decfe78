"""What the tests of the command line and of the pipeline share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.cli import main
from edgeprune.report import plotting

TINY = '''
"""A network that trains in a second."""

from torch import nn


def net(num_classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )
'''

TARGET = """
name = "test"
channel_multiple = 1
[runtime]
provider = "CPUExecutionProvider"
[budgets]
max_macs_ratio = 0.75
max_size = "1 MB"
"""

RUN = [
    "--model", "tiny:net", "--data", "digits", "--epochs", "2", "--max-macs-ratio", "0.7",
    "--target", "test.toml", "--processes", "2",
    "--scheme-option", "l1=0.05", "--scheme-option", "beta=5", "--scheme-option", "lr=0.05",
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a tiny network and a target."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "test.toml").write_text(TARGET)
    return tmp_path


def edgeprune(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgeprune", *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    with pytest.raises(SystemExit) as ending:
        main(list(words))
    out, err = capsys.readouterr()
    return int(ending.value.code or 0), out, err


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background has SIGINT ignored, which processes would inherit."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not here: reports are then written in a moment."""
    monkeypatch.setattr(plotting, "find_spec", lambda _: None)
