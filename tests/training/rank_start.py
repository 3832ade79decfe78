"""Starts the ranks of a test by torchrun's variables, without torchrun: that is faster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    """For a process of a test: one thread, this checkout first, no rank but those given."""
    clean = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return (
        clean
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        | {key: str(value) for key, value in more.items()}
    )


def start(ranks: int, *words: str) -> list[subprocess.Popen[str]]:
    """``python -W error WORDS`` as so many ranks; 1: without any variables."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env=environment(
                RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            )
            if ranks > 1
            else environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def run_job(job: str, ranks: int, folder: Path) -> list[dict[str, Any]]:
    """What a job of ``rank_jobs`` gives, by rank."""
    folder.mkdir()
    running = start(ranks, "-m", "tests.training.rank_jobs", job, str(folder))
    said = [process.communicate(timeout=TIMEOUT_S) for process in running]
    assert [process.returncode for process in running] == [0] * ranks, said
    return results(folder, ranks)


def results(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What a job that has ended gave, by rank."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
