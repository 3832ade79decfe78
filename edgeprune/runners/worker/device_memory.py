"""Memory on an NVIDIA GPU, asked of its driver.

The driver keeps no peak, but onnxruntime's arena gives nothing back: what is gone in the end was the peak.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from .common import Job

CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
METHOD = (
    "what the GPU has free before loading less what it has after running, as the driver tells it for the "
    "whole GPU: other processes there disturb it, and the libraries' own buffers count"
)


class DeviceMemory:
    """Free memory of the provider's device, before the model and after; None and ``why`` without a device."""

    def __init__(self, job: Job) -> None:
        self.driver: Any = None
        self.least = self.base = 0
        if job["provider"] not in CUDA:
            self.why = f"{job['provider']} is not asked for memory of a device of its own, only CUDA is"
            return
        self.why = ""
        try:
            self.driver = open_driver(int((job.get("provider_options") or {}).get("device_id", 0)))
            self.least = self.base = self.free_bytes()
        except OSError as reason:
            self.driver, self.why = None, f"the CUDA driver does not tell it ({reason})"

    def free_bytes(self) -> int:
        """What the driver calls free."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        check(self.driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        return free.value

    def look(self) -> None:
        """Take the present state into account."""
        if self.driver is not None:
            self.least = min(self.least, self.free_bytes())

    def answer(self) -> Job:
        """The figure with its method, or why there is none."""
        if self.driver is None:
            return {"peak_bytes": None, "method": None, "why": self.why}
        return {"peak_bytes": self.base - self.least, "method": METHOD, "why": None}


def open_driver(device: int) -> Any:
    """The driver with the context of a device, which onnxruntime uses too; OSError if there is none."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    check(driver.cuInit(0), "cuInit")
    check(driver.cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "cuDevicePrimaryCtxRetain")
    check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    return driver


def check(status: int, call: str) -> None:
    """OSError if a call of the driver failed."""
    if status:
        raise OSError(f"{call} gave error {status}")
