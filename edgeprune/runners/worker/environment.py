"""What the figures are taken on, and whether anything can be measured there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

from .common import IMPORT_ERROR, OLDEST, Fault, Job, first_match, np, ort, plain
from .disturbance import cpu_quota


def environment(_: Job) -> Job:
    """What the figures are taken on."""
    player = emulator()
    return {
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": player
        or first_match("/proc/cpuinfo", r"(?:model name|Model|Hardware)\s*: (.+)")
        or platform.processor(),
        "emulator": player,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cpu_quota": cpu_quota(),
        "governor": first_match("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", r"(\S+)") or None,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "providers": ort.get_available_providers(),
    }


def emulator() -> str | None:
    """The program that plays the processor; None on a real one. Times mean nothing there."""
    name = os.environ.get("EDGEPRUNE_EMULATOR")
    with contextlib.suppress(OSError):
        # qemu-user answers with the program's own path for /proc/self/exe, but not here.
        running = Path("/proc/thread-self/exe").readlink().name
        name = name or (running if running.startswith("qemu-") else None)
    return name


def check_environment() -> None:
    """Say what is missing before a job trips over it."""
    hint = f"Install numpy and onnxruntime>={OLDEST[0]}.{OLDEST[1]} there."
    if IMPORT_ERROR is not None:
        message = f"unable to import what it needs ({plain(IMPORT_ERROR)})"
        raise Fault("environment", message, hint)
    if tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2]) < OLDEST:
        raise Fault("environment", f"too old, with onnxruntime {ort.__version__}", hint)
    ort.set_default_logger_severity(3)
