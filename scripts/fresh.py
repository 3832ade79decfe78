"""Run one measurement of a script in a process of its own; what a measurement needs to be honest."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves


def fresh(script: str, *words: str, threads: int, limit_s: float) -> dict[str, Any]:
    """The JSON object that a script prints last, run in a process of its own with so many threads.

    Returns:
        The object, or ``{"crash": first line of the reason}``, or ``{"too_slow": limit_s}``.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [sys.executable, script, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"too_slow": limit_s}
    if done.returncode < 0:
        return {"crash": f"killed by signal {-done.returncode}"}
    if done.returncode:
        return {"crash": reason_of(done.stderr)}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def reason_of(stderr: str) -> str:
    """The first line of the exception at the end of what a process wrote."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    starts = [at for at, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[starts[-1] + 1 :] if starts else lines[-1:]
    return next((line for line in after if not line.startswith(" ")), "no message")[:300]


def awaken(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Draw what is initialised to one number, in place, so that no part of a random network is asleep.

    torchvision starts heads at 0, layer scales at 1e-6 and norms as the identity: a fault there would not
    reach the output. Norms get the statistics of the inputs, so that deep networks do not overflow.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            value = parameter.flatten()[0]
            if bool((parameter == value).all()):
                if value != 0:
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(0, 0.1 if parameter.numel() == max(parameter.shape) else 0.02)
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
        model(*inputs)
    for hook in hooks:
        hook.remove()


def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Give a norm statistics near those of its input."""
    if isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
        channels = args[0].detach().transpose(0, 1).flatten(1)
        norm.running_mean.copy_(channels.mean(1) / 2)
        norm.running_var.copy_(channels.square().mean(1) + 0.1)


def gap(ours: nn.Module, theirs: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of two networks' outputs relative to the largest value of the second's."""
    with torch.no_grad():
        first, second = (
            [leaf for leaf in tree_leaves(net(*inputs)) if isinstance(leaf, Tensor)] for net in (ours, theirs)
        )
    if [a.shape for a in first] != [b.shape for b in second]:
        return math.inf
    return largest_gap(first, second)


def largest_gap(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The same of outputs of the same shapes; infinite where one is not a number."""
    errors = [
        0.0 if torch.equal(a, b) else float((a - b).abs().max() / b.abs().max())
        for a, b in zip(ours, theirs, strict=True)
    ]
    return max(math.inf if math.isnan(error) else error for error in errors)


@contextlib.contextmanager
def double_default() -> Iterator[None]:
    """Within the block new tensors are float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class PeakMemory:
    """Peak resident bytes above what is resident now; Linux only.

    ``start`` gives free memory back to the system first: else the peak could hide in it.
    """

    def start(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._bytes("VmRSS")

    def bytes_above(self) -> int:
        """Bytes since ``start``."""
        return self._bytes("VmHWM") - self.before

    @staticmethod
    def _bytes(key: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(f"{key}:"))
