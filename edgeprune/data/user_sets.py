"""Data sets that the user writes: a function that returns a ``Data``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgeprune.data.base import PROBLEM, Data, Normalization, UserLoader
from edgeprune.data.completing import Completed
from edgeprune.data.user_code import call_user_function
from edgeprune.errors import DataError, EdgepruneError

IN_FOLDERS = ("cifar10", "cifar100", "imagefolder")
"""Data sets given as ``KIND:DIR``, a form that a function's has too."""


def user_data(spec: str, *, batch_size: int, seed: int, normalization: Normalization | None) -> Data:
    """Call the user's function and check what it returns; batches are checked as they come.

    Args:
        spec: ``package.module:function``, called with ``batch_size``, ``seed`` and ``normalization`` if it
            takes them.
        batch_size: Wanted images per batch.
        seed: Wanted seed.
        normalization: What the network was trained with, or None: as the function has it.

    Raises:
        DataError: The function fails, or what it returns is not a usable ``Data``.
    """
    offered = {"batch_size": batch_size, "seed": seed, "normalization": normalization or Normalization()}
    data = call_user_function(spec, DataError, PROBLEM, IN_FOLDERS, **offered)

    def refuse(where: str, value: object, expected: str, hint: str = "") -> DataError:
        return DataError(PROBLEM, where=f"{spec}: {where}", value=value, expected=expected, hint=hint)

    if not isinstance(data, Data):
        raise refuse("the result", f"a {type(data).__name__}", "an edgeprune.data.Data")
    named = isinstance(data.classes, tuple) and all(isinstance(name, str) for name in data.classes)
    if not named or len(data.classes) < 2:
        raise refuse("classes", repr(data.classes), "a tuple of at least 2 names")
    example = data.example
    if (
        not isinstance(example, Tensor)
        or example.dtype != torch.float32
        or example.dim() != 4
        or len(example) != 1
    ):
        shown = f"{example.dtype} {tuple(example.shape)}" if isinstance(example, Tensor) else repr(example)
        raise refuse("example", shown, "a float32 tensor (1, C, H, W)")
    if not isinstance(data.normalization, Normalization) or len(data.normalization.mean) != example.shape[1]:
        raise refuse("normalization", data.normalization, f"a Normalization of {example.shape[1]} channels")
    if normalization is not None and data.normalization != normalization:
        raise refuse(
            "normalization",
            f"mean {data.normalization.mean}, std {data.normalization.std}",
            f"the network's, mean {normalization.mean}, std {normalization.std}",
            "Let the function take normalization=, or give the network an attribute `normalization`.",
        )
    if not isinstance(data.identity, str) or not data.identity:
        raise refuse("identity", repr(data.identity), "a text that changes when the data do")
    checked: dict[str, Any] = {}
    for part in ("train", "val", "test", "calib"):
        loader = getattr(data, part)
        if not isinstance(loader, UserLoader):
            raise refuse(
                part,
                f"a {type(loader).__name__}",
                "a loader with __iter__, __len__, samples and set_epoch",
                "edgeprune.data.TensorLoader is one for images in memory.",
            )
        checked[part] = CheckedLoader(loader, f"{spec}: {part}", tuple(example.shape[1:]), len(data.classes))
        if next(iter(checked[part]), None) is None:  # tell of a fault now, not after an hour of training
            raise refuse(part, "empty", "at least one batch")
    return replace(data, **checked)


class CheckedLoader(Completed):
    """Passes on the batches of a loader that the user wrote, after a look at each.

    Args:
        loader: The user's.
        where: Its name, for messages.
        shape: (C, H, W) that every image must have.
        classes: Labels must be in 0..classes-1.
    """

    def __init__(self, loader: UserLoader, where: str, shape: tuple[int, ...], classes: int) -> None:
        super().__init__(loader)
        self.where, self.shape, self.classes = where, shape, classes

    def _whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(self.loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except EdgepruneError:
                raise
            except Exception as reason:  # whatever the user's loader raises
                torn = isinstance(reason, EOFError | ConnectionError) or "DataLoader worker" in str(reason)
                hint = "A worker process has died, perhaps for want of memory." if torn else ""
                raise self._refuse(
                    f"one that fails ({type(reason).__name__}: {reason})", "", hint
                ) from reason
            self._check(batch)
            yield batch

    def _refuse(self, value: str, expected: str, hint: str = "") -> DataError:
        return DataError("could not use a batch", where=self.where, value=value, expected=expected, hint=hint)

    def _check(self, batch: Any) -> None:
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            given = f"one that gives a {type(batch).__name__}"
            raise self._refuse(given, "pairs (images, labels) of tensors")
        images, labels = batch
        wrong = None
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != self.shape:
            wrong = (
                f"images {images.dtype} {tuple(images.shape)}",
                f"float32 (N, {', '.join(map(str, self.shape))})",
            )
        elif labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
            wrong = f"labels {labels.dtype} {tuple(labels.shape)}", f"int64 ({len(images)},)"
        elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            wrong = f"labels {int(labels.min())} to {int(labels.max())}", f"0 to {self.classes - 1}"
        if wrong:
            raise self._refuse(f"one that gives {wrong[0]}", wrong[1])
