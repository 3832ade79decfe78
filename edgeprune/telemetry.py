"""onnxruntime's reports to its makers, which its wheels send unless told not to. Device side: no torch."""

from __future__ import annotations

import os

VARIABLE = "ORT_DISABLE_TELEMETRY"


def switch_off() -> None:
    """To be called before onnxruntime is imported: on by default in its wheels from 1.29 on.

    Who has set the variable keeps what it says. The worker, which stands alone, does the same.
    """
    os.environ.setdefault(VARIABLE, "1")
