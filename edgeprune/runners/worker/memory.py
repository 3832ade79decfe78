"""Memory that a model takes: of the process, of onnxruntime's arena, of a GPU. Each figure tells how."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from pathlib import Path

from .common import WARM_UP, Job, blaming, kernel_bytes, ort
from .device_memory import DeviceMemory
from .session import make_inputs, open_session, run_once, session_options, warm_library

NAMES = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")
ARENA_METHOD = (
    "largest mem_in_use_peak of a kernel in onnxruntime's profile, a session of its own: no weights"
)


def memory(job: Job) -> Job:
    """Memory of the process over its state before the model: peak of loading, loaded, peak of running.

    The kernel's high-water mark is reset before each phase. Without a low ``MALLOC_MMAP_THRESHOLD_`` the
    allocator keeps freed copies of the weights, and running seems to cost nothing. With ``"arena": true`` a
    second session, after all this, tells what onnxruntime's arena held.
    """
    model, options = job["models"][0], session_options(job)
    clear = Path("/proc/self/clear_refs")
    warm_library()
    gc.collect()
    device = DeviceMemory(job)
    try:
        clear.write_text("5")
        # Counted page by page; the counter in `status` lags.
        base, why = kernel_bytes("smaps_rollup", "Rss"), None
    except (OSError, ValueError):
        base, why = 0, "this system has no /proc that tells a process's memory and resets its peak"
    figures: list[int] = []
    with blaming(model):
        session = open_session(job, model, options)
        if not why:
            figures.append(kernel_bytes("status", "VmHWM") - base)
            gc.collect()
            figures.append(kernel_bytes("smaps_rollup", "Rss") - base)
        feed = make_inputs(job, session)
        if not why:
            clear.write_text("5")
        for _ in range(WARM_UP):
            run_once(job, session, feed)
        if not why:
            figures.append(kernel_bytes("status", "VmHWM") - base)
            figures.append(max(figures[0], figures[2]))
        device.look()
        del session
        arena = arena_memory(job, model) if job.get("arena") else None
    allocator = os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")
    method = f"high-water mark of the process over onnxruntime alone, MALLOC_MMAP_THRESHOLD_={allocator}"
    # Counters lag by some pages, so that a model of next to nothing could come out below it.
    told = {n: max(0, f) for n, f in zip(NAMES, figures, strict=True)} if not why else dict.fromkeys(NAMES)
    return {**told, "method": None if why else method, "why": why, "arena": arena, "device": device.answer()}


def arena_memory(job: Job, model: str) -> Job:
    """Most bytes that tensors took of the provider's arena at once, and what the arena held."""
    options = session_options(job)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = open_session(job, model, options)
        feed = make_inputs(job, session)
        for _ in range(2):
            run_once(job, session, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event.get("args", {}) for event in events if event.get("cat") == "Node"]
    ours = [k for k in kernels if k.get("provider") == job["provider"] and "mem_in_use_peak" in k]
    if not ours:
        why = f"profiles of onnxruntime {ort.__version__} do not tell memory of {job['provider']}"
        return {"peak_bytes": None, "held_bytes": None, "method": None, "why": why}
    peak, held = (max(int(k[key]) for k in ours) for key in ("mem_in_use_peak", "mem_arena_held"))
    return {"peak_bytes": peak, "held_bytes": held, "method": ARENA_METHOD, "why": None}
