"""Random states that depend on (seed, epoch, step) alone, so that a checkpoint needs none of them."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def kept_random_states(device: torch.device) -> Iterator[None]:
    """Python's, NumPy's and torch's states are those of before, afterwards."""
    own, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(arrays)


def seed_step(device: torch.device, seed: int, epoch: int, step: int) -> None:
    """Set Python's, NumPy's and torch's generators for one step; ``epoch`` and ``step`` count from 0."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {epoch} {step}".encode()).digest()[:7])
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
