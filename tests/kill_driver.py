"""Runs a pipeline again and again in forked processes, each killed by SIGKILL at one given moment.

Usage: kill_driver.py OUT MOMENT [MOMENT ...] where a moment is STAGE:WHEN and WHEN is one of

    begin     before the stage does anything
    epoch     in its training, after the first whole epoch
    writing   with its first file written beside, but not yet in place
    record    with all its files in place, but not yet noted in run.json

Each process goes on from what the killed ones have left. Prints what each process was ended by.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from edgeprune.cli.options import given
from edgeprune.cli.stages import open_or_make
from edgeprune.pipeline import (
    COMMANDS,
    Silent,
    host,  # noqa: F401 (imported before the forks, so that each is quick)
    run_stages,
)
from edgeprune.pipeline import folder as folder_module
from edgeprune.pipeline.context import Context


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(Silent):
    """Kills the process when its moment has come."""

    def __init__(self, stage: str, when: str) -> None:
        self.victim, self.when, self.now = stage, when, ""

    def stage(self, name: str, status: str, text: str = "") -> None:  # noqa: ARG002
        self.now = name if status == "begin" else ""
        if self.due("begin"):
            die()

    def training(self, progress: Any) -> None:
        if self.due("epoch") and progress.epoch == 2 and progress.step >= 1:
            die()

    def due(self, when: str) -> bool:
        return self.now == self.victim and self.when == when


def run(out: Path, settings: dict[str, Any], moment: str) -> None:
    killer = Killer(*moment.split(":"))
    replace, record = Path.replace, folder_module.RunFolder.record

    def replace_or_die(self: Path, target: Any) -> Path:
        if killer.due("writing") and Path(target).suffix != ".checkpoint":
            die()
        return replace(self, target)

    def record_or_die(self: Any, *arguments: Any) -> None:
        if killer.due("record"):
            die()
        record(self, *arguments)

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]
    folder_module.RunFolder.record = record_or_die  # type: ignore[method-assign]
    torch.set_num_threads(1)
    run_stages(Context(open_or_make(out, given(settings), make=True), killer), COMMANDS)


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads: they are idle here
    out, moments = Path(sys.argv[1]), sys.argv[2:]
    settings = {
        "model": "tiny:net", "data": "digits", "epochs": 2, "max_macs_ratio": 0.7, "target": "test.toml",
        "processes": 2, "scheme_options": ("l1=0.05", "beta=5", "lr=0.05"),
    }  # fmt: skip
    for moment in moments:
        child = os.fork()
        if child == 0:
            run(out, settings, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = (
            f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        )
        print(moment, ended, flush=True)


if __name__ == "__main__":
    main()
