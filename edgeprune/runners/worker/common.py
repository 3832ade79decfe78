"""What all jobs share: onnxruntime if there is one, faults, figures of the kernel."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

# Wheels of onnxruntime from 1.29 on report to their maker, from a thread that is at work while we measure.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

IMPORT_ERROR: Exception | None = None
np: Any = None
ort: Any = None
try:
    np, ort = import_module("numpy"), import_module("onnxruntime")
except Exception as reason:  # broken libraries raise OSError and worse
    IMPORT_ERROR = reason

Job = dict[str, Any]

CPU = "CPUExecutionProvider"
XNNPACK = "XnnpackExecutionProvider"
OLDEST = (1, 21)
WARM_UP = 5
CPP_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?|Exception during initialization: "
    r"|/\S+\.(?:cc|h):\d+ .*?\) |\b\w+\.(?:cc|h):\d+ \w+ "
)


class Fault(Exception):  # noqa: N818 - the fault is the model's or the machine's
    """A failure whose cause the caller can name."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        # Names in a file may hold codes that would steer the terminal.
        text = "".join(letter if letter.isprintable() else "?" for letter in message)
        self.kind, self.message, self.hint, self.model = kind, text, hint, ""


@contextlib.contextmanager
def blaming(model: str) -> Iterator[None]:
    """Put the model's path into a fault that happens inside."""
    try:
        yield
    except Fault as fault:
        fault.model = model
        raise


def plain(reason: BaseException) -> str:
    """An exception's text without onnxruntime's codes and the places in its sources."""
    text = CPP_NOISE.sub("", " ".join(str(reason).split())).rstrip(".") or type(reason).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def as_text(shape: Any) -> str:
    """(1, 3, 32, 32) -> 1x3x32x32."""
    return "x".join("?" if size is None else str(size) for size in shape) or "a scalar"


def memory_bytes() -> int:
    """Physical memory; 8 GB where the system does not tell."""
    return 1024 * int(first_match("/proc/meminfo", r"MemTotal:\s*(\d+) kB") or 8_000_000)


def kernel_bytes(file: str, key: str) -> int:
    """A figure that the kernel keeps of this process; ValueError if it does not."""
    return 1024 * int(first_match(f"/proc/self/{file}", rf"{key}:\s*(\d+) kB"))


def first_match(path: str, pattern: str) -> str:
    """The first group of a pattern in a file, "" if there is no such file or match."""
    with contextlib.suppress(OSError):
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
        return found.group(1).strip() if found else ""
    return ""
