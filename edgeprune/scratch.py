"""Memory for large tensors that live shortly, used over and over."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes from which on memory is kept: what is smaller the allocator keeps itself."""

ALIGNMENT = 64
"""Bytes to whose multiple every tensor's memory is aligned, as torch does it."""


class Scratch:
    """Makes tensors on the CPU in memory that earlier ones no longer need.

    The system hands out fresh memory page by page, which takes longer than to write a converted weight into
    it. Memory is used again only when nothing holds the tensor in it any more, nor a view of that.

    Example:
        >>> scratch = Scratch()
        >>> first = scratch.empty((1024, 1024), torch.float64, torch.device("cpu"))
        >>> place = first.data_ptr()
        >>> del first
        >>> scratch.empty((1024, 512), torch.float64, torch.device("cpu")).data_ptr() == place
        True
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """As ``torch.empty``."""
        shape = tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        if device.type != "cpu" or size < SMALLEST:
            return torch.empty(shape, dtype=dtype, device=device)
        memory = self._memory(size + ALIGNMENT)
        start = -memory.ctypes.data % ALIGNMENT
        held = memory[start : start + size]
        # The tensor's storage holds `held` alone: when it goes, the memory is free.
        weakref.finalize(held, self._free.append, memory).atexit = False
        return torch.from_numpy(held).view(dtype).view(shape)

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers of a tensor in another dtype."""
        return self.empty(tensor.shape, dtype, tensor.device).copy_(tensor)

    def chosen(self, tensor: Tensor, axis: int, positions: Tensor) -> Tensor:
        """The given positions of an axis."""
        shape = (*tensor.shape[:axis], len(positions), *tensor.shape[axis + 1 :])
        out = self.empty(shape, tensor.dtype, tensor.device)
        if not tensor.is_contiguous():  # selecting from a view takes ten times as long
            tensor = self.copy(tensor, tensor.dtype)
        return torch.index_select(tensor, axis, positions.to(tensor.device), out=out)

    def _memory(self, size: int) -> np.ndarray:
        """The smallest free memory of at least so many bytes; or else new memory, for the largest free."""
        self._free.sort(key=len)
        number = next((number for number, free in enumerate(self._free) if len(free) >= size), None)
        if number is not None:
            return self._free.pop(number)
        if self._free:
            self._free.pop()
        return np.empty(size, np.uint8)
