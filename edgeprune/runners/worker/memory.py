"""Memory that a model takes."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from .common import WARM_UP, Job, blaming, kernel_bytes
from .session import make_inputs, open_session, run_once, session_options, warm_library


def memory(job: Job) -> Job:
    """Memory of the process over its state before the model: peak of loading, loaded, peak of running.

    The kernel's high-water mark is reset before each phase. Without a low ``MALLOC_MMAP_THRESHOLD_`` the
    allocator keeps freed copies of the weights, and running seems to cost nothing.
    """
    model, options = job["models"][0], session_options(job)
    names = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")
    clear = Path("/proc/self/clear_refs")
    warm_library()
    gc.collect()
    try:
        clear.write_text("5")
        # Counted page by page; the counter in `status` lags.
        base = kernel_bytes("smaps_rollup", "Rss")
    except (OSError, ValueError):
        why = "this system has no /proc that tells a process's memory and resets its peak"
        return {**dict.fromkeys(names), "method": None, "why": why}
    with blaming(model):
        session = open_session(job, model, options)
        load_peak = kernel_bytes("status", "VmHWM") - base
        gc.collect()
        loaded = kernel_bytes("smaps_rollup", "Rss") - base
        feed = make_inputs(job, session)
        clear.write_text("5")
        for _ in range(WARM_UP):
            run_once(job, session, feed)
        run_peak = kernel_bytes("status", "VmHWM") - base
    allocator = os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")
    method = f"high-water mark of the process over onnxruntime alone, MALLOC_MMAP_THRESHOLD_={allocator}"
    figures = (load_peak, loaded, run_peak, max(load_peak, run_peak))
    # Counters lag by some pages, so that a model of next to nothing could come out below it.
    return {**{n: max(0, f) for n, f in zip(names, figures, strict=True)}, "method": method, "why": None}
