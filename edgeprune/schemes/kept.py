"""Statistics that several schemes take of the same network and images, kept from one to the next."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

_kept: dict[str, Any] | None = None


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """While it lasts, a scheme takes the statistics of the one before it if they are of the same.

    Only the latest are kept: Grams are large.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def kept(key: Callable[[], str], work: Callable[[], Result]) -> Result:
    """What ``work`` gives, or what it has given under the same key; nobody may write into it.

    Args:
        key: Gives a hash of everything that decides the result.
        work: The computation.
    """
    if _kept is None:
        return work()
    name = key()
    if name not in _kept:
        _kept.clear()
        _kept[name] = work()
    return _kept[name]  # type: ignore[no-any-return]


def digest(model: nn.Module, tensors: Iterable[Tensor], *options: object) -> str:
    """Hash of a network's weights and structure, of tensors and of options."""
    found = hashlib.sha256(repr((str(model), options)).encode())
    for name, tensor in (*model.state_dict().items(), *(("", tensor) for tensor in tensors)):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy knows no bfloat16
        found.update(raw.numpy().tobytes())
    return found.hexdigest()
