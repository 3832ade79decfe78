"""The jobs by name: one is read from stdin, its answer is the last line of stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path

from .common import Fault, Job, first_match, plain
from .environment import check_environment, environment
from .instructions import instructions
from .latency import latency
from .memory import memory
from .placement import placement, probe, providers
from .profiling import profile
from .reference import reference

JOBS = {
    "environment": environment,
    "instructions": instructions,
    "latency": latency,
    "memory": memory,
    "placement": placement,
    "probe": probe,
    "profile": profile,
    "providers": providers,
    "reference": reference,
}


def answer(job: Job) -> tuple[Job, int]:
    """Do a job: its answer and the exit status."""
    try:
        check_environment()
        return JOBS[job["job"]](job), 0
    except Fault as fault:
        return {"error": vars(fault)}, 2 if fault.kind == "model" else 3
    except Exception as reason:
        traceback.print_exc()
        return {"error": vars(Fault("worker", f"{type(reason).__name__}: {plain(reason)}"))}, 3


def main() -> None:
    """Do the job on stdin."""
    # Let an allocation fail before the machine runs out; if it does run out, this process is the one to go.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        available = 1024 * int(first_match("/proc/meminfo", r"MemAvailable:\s*(\d+) kB"))
        resource.setrlimit(resource.RLIMIT_DATA, (available, resource.RLIM_INFINITY))
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What native libraries print, some of it as they are unloaded, must not follow the answer.
    with open(os.dup(1), "w", encoding="utf-8") as stdout:  # noqa: PTH123 - a descriptor, no path
        os.dup2(2, 1)
        result, status = answer(json.load(sys.stdin))
        stdout.write("\n" + json.dumps(result) + "\n")
    sys.exit(status)
