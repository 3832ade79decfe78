"""Batches on their way from the memory of the CPU to a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def copied(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches on a device, each copied while the batch before is in use.

    For CUDA the copy goes from pinned memory through a stream of its own, so that it does not wait for the
    kernels that are queued. Batches are pulled one ahead, in the caller's thread.

    Args:
        batches: Images and labels, on the CPU.
        device: Where to.
    """
    side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    before: _Copy | None = None
    for batch in batches:
        copy = _Copy(batch, device, side)
        if before is not None:
            yield before.result()
        before = copy
    if before is not None:
        yield before.result()


class _Copy:
    """One batch's copy, begun at once."""

    def __init__(
        self, batch: tuple[Tensor, Tensor], device: torch.device, side: torch.cuda.Stream | None
    ) -> None:
        images, labels = batch
        if side is not None:
            images, labels = images.pin_memory(), labels.pin_memory()
        with torch.cuda.stream(side) if side is not None else contextlib.nullcontext():
            self.images = images.to(device, non_blocking=True)
            self.labels = labels.to(device, non_blocking=True)
            self.done = side.record_event() if side is not None else None

    def result(self) -> tuple[Tensor, Tensor]:
        """The batch, for kernels of the current stream, which waits for this copy and for no later one."""
        if self.done is not None:
            stream = torch.cuda.current_stream(self.images.device)
            stream.wait_event(self.done)
            for tensor in (self.images, self.labels):
                tensor.record_stream(stream)  # else its memory could be given away while kernels read it
        return self.images, self.labels
