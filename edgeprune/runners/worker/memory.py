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
    warm_library()
    device = DeviceMemory(job)
    gc.collect()
    process = ProcessMemory()
    with blaming(model):
        session = open_session(job, model, options)
        load_peak = process.peak_bytes()
        gc.collect()
        loaded = process.resident_bytes()
        feed = make_inputs(job, session)
        process.reset_peak()
        for _ in range(WARM_UP):
            run_once(job, session, feed)
        run_peak = process.peak_bytes()
        device.look()
        del session
        arena = arena_memory(job, model) if job.get("arena") else None
    told = dict(zip(NAMES, (load_peak, loaded, run_peak, max(load_peak, run_peak)), strict=True))
    allocator = os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")
    method = f"high-water mark of the process over onnxruntime alone, MALLOC_MMAP_THRESHOLD_={allocator}"
    figures: Job = {**told, "method": method, "why": None}
    if process.why:
        figures = {**dict.fromkeys(NAMES), "method": None, "why": process.why}
    return {**figures, "arena": arena, "device": device.answer()}


class ProcessMemory:
    """Resident memory of this process over what it had at first; ``why`` if the system does not tell."""

    def __init__(self) -> None:
        self.why, self.base_bytes = "", 0
        try:
            self.reset_peak()
            self.base_bytes = self.resident_bytes()
        except (OSError, ValueError):
            self.why = "this system has no /proc that tells a process's memory and resets its peak"

    def resident_bytes(self) -> int:
        """What it has now, counted page by page: the counter in `status` lags."""
        return self._over_base("smaps_rollup", "Rss")

    def peak_bytes(self) -> int:
        """The most it had since ``reset_peak``."""
        return self._over_base("status", "VmHWM")

    def reset_peak(self) -> None:
        """The peak is what it has now."""
        if not self.why:
            Path("/proc/self/clear_refs").write_text("5")

    def _over_base(self, file: str, key: str) -> int:
        # Counters lag by some pages, so that a model of next to nothing could come out below the base.
        return 0 if self.why else max(0, kernel_bytes(file, key) - self.base_bytes)


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
