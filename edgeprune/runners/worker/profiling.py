"""Time of each kernel, from onnxruntime's profile of several inferences."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from .common import WARM_UP, Job, blaming
from .session import make_inputs, open_session, run_once, session_options, warm_library

END = "_kernel_time"
RUNS = 30


def profile(job: Job) -> Job:
    """Median time of each kernel over the warm inferences of one session.

    Profiling itself takes time, small kernels more of theirs than large ones: the times are for shares.
    ``kernels``: in the order of execution, ``name`` (the graph's, or what the optimiser made of it),
    ``op_type``, ``provider``, ``time_s``, ``tensor_bytes`` (tensors that it reads and makes, weights left
    out; None if the profile does not tell). ``runs``: inferences. ``inference_s``: median of a whole one.
    """
    model, runs = job["models"][0], int(job.get("runs") or RUNS)
    warm_library()
    options = session_options(job)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder, blaming(model):
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = open_session(job, model, options)
        feed = make_inputs(job, session)
        for _ in range(WARM_UP + runs):
            run_once(job, session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return {**summary(events, WARM_UP), "runs": runs}


def summary(events: list[Job], skip: int) -> Job:
    """Medians of a profile's kernels without the first ``skip`` inferences."""
    kernels: dict[tuple[str, str, str], list[Job]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(END):
            args = event["args"]
            key = (event["name"].removesuffix(END), args["op_name"], args["provider"])
            kernels.setdefault(key, []).append(event)
    whole = [event["dur"] / 1e6 for event in events if event["name"] == "model_run"][skip:]
    inferences = len(whole) + skip
    found = []
    for (name, kind, provider), taken in kernels.items():
        # A name that several kernels have, or one inside a loop, comes more than once in an inference.
        each = max(1, len(taken) // max(inferences, 1))
        kept = taken[skip * each :]
        per_run = [sum(e["dur"] for e in kept[at : at + each]) / 1e6 for at in range(0, len(kept), each)]
        if per_run:
            found.append(
                {"name": name, "op_type": kind, "provider": provider, "time_s": median(per_run),
                 "tensor_bytes": tensor_bytes(kept[0]["args"])}
            )  # fmt: skip
    return {"kernels": found, "inference_s": median(whole) if whole else None}


def tensor_bytes(args: dict[str, Any]) -> int | None:
    """Tensors that a kernel reads and makes, without its weights."""
    sizes = [args.get(key) for key in ("activation_size", "output_size")]
    return sum(map(int, sizes)) if all(str(size).isdecimal() for size in sizes) else None  # type: ignore[arg-type]
