"""Does an ONNX file compute what torch computes, and how well does it classify?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeprune.artifact import ACCURACIES
from edgeprune.data import Data, Loader
from edgeprune.errors import ExportError
from edgeprune.telemetry import switch_off

BATCH_SIZES = (1, 3, 8)
"""Batch sizes of the random inputs."""

REAL_IMAGES = 256
"""At most so many images of the validation split are compared; the accuracy takes all of them."""

Inputs = tuple[Tensor, ...]
Arrays = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Parity:
    """How close onnxruntime came to torch.

    Attributes:
        error: Largest |onnx - torch| / max |torch|, over outputs and inputs; infinite if not a number.
        worst: The input on which it was found.
        real_images: Number of real images among the inputs.
        argmax_agreement: Share of the real images on which both name the same class; None without images.
    """

    error: float
    worst: str
    real_images: int
    argmax_agreement: float | None


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: torch wraps the reason in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


class OnnxNetwork:
    """An ONNX file in onnxruntime on the CPU, called like the torch network, at any batch size.

    Args:
        payload: The bytes of the file.
        batch: Run it at this batch size, other numbers of images in pieces; None: run it at any.

    Raises:
        ExportError: onnxruntime cannot load or run the file.
    """

    def __init__(self, payload: bytes, batch: int | None) -> None:
        switch_off()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # single images side by side take a third of the time
        try:
            self._session = onnxruntime.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"onnxruntime cannot load the ONNX file ({first_line(error)})") from error
        self._names = [entry.name for entry in self._session.get_inputs()]
        self._batch = batch

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file is made for; None if it takes any."""
        size = self._session.get_inputs()[0].shape[0]
        return size if isinstance(size, int) else None

    def __call__(self, inputs: Inputs) -> Arrays:
        """Outputs (N, ...) for inputs (N, ...)."""
        arrays = [tensor.numpy() for tensor in inputs]
        count = len(arrays[0])
        step = self._batch or count

        def run(start: int) -> Arrays:
            piece = [array[start : start + step] for array in arrays]
            lacking = step - len(piece[0])
            if lacking:  # fill up a fixed batch with copies of the last image, which are cut off below
                piece = [np.concatenate([array, *[array[-1:]] * lacking]) for array in piece]
            try:
                outputs: Arrays = self._session.run(None, dict(zip(self._names, piece, strict=True)))
            except Exception as error:
                raise ExportError(f"onnxruntime cannot run the ONNX file ({first_line(error)})") from error
            return outputs

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            pieces = list(pool.map(run, range(0, count, step)))
        return [np.concatenate(column)[:count] for column in zip(*pieces, strict=True)]


def random_inputs(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Standard normal inputs at each batch size; integers, whose range is unknown, repeat the example."""
    generator = torch.Generator().manual_seed(0)
    for count in BATCH_SIZES:
        batch = tuple(
            torch.randn(count, *tensor.shape[1:], generator=generator)
            if tensor.is_floating_point()
            else torch.cat([tensor] * count)[:count]
            for tensor in inputs
        )
        yield f"random inputs at batch {count}", batch


def real_images(loader: Loader) -> list[Tensor]:
    """The first REAL_IMAGES images of a split, in batches."""
    batches, lacking = [], REAL_IMAGES
    for images, _ in loader:
        batches.append(images[:lacking].float())
        lacking -= len(batches[-1])
        if lacking == 0:
            break
    return batches


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's last bits depend on its number of threads; the error that goes into the file must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(
    network: nn.Module, file: OnnxNetwork, checks: Iterable[tuple[str, Inputs]], images: list[Tensor]
) -> Parity:
    """Run ``file`` and ``network`` (on the CPU, in eval mode) on every input.

    Args:
        network: The network.
        file: What was made of it.
        checks: Inputs, each with its description.
        images: Batches of real images.

    Raises:
        ExportError: One of the two cannot run, or torch's own outputs are not finite.
    """
    checks = [*checks, *((f"real images (batch {i})", (batch,)) for i, batch in enumerate(images))]
    first_real = len(checks) - len(images)
    worst, agree = ("", -1.0), []
    for position, (text, inputs) in enumerate(checks):
        try:
            with torch.no_grad(), _one_thread():
                ours = tree_leaves(network(*inputs))
        except Exception as error:
            raise ExportError(f"torch cannot run the network on {text} ({first_line(error)})") from error
        if not all(torch.isfinite(tensor).all() for tensor in ours):
            raise ExportError(
                "could not compare the ONNX file with torch",
                where=f"torch's own output on {text}",
                value="not finite",
                expected="numbers",
            )
        theirs = file(inputs)
        worst = max(worst, (text, difference(ours, theirs)), key=lambda found: found[1])
        if position >= first_real and ours[0].ndim > 1:
            agree.append(theirs[0].argmax(1) == ours[0].argmax(1).numpy())
    return Parity(
        error=worst[1],
        worst=worst[0],
        real_images=sum(map(len, images)),
        argmax_agreement=float(np.concatenate(agree).mean()) if agree else None,
    )


def difference(ours: list[Tensor], theirs: Arrays) -> float:
    """Largest |onnx - torch| / max |torch| over the outputs; infinite where shapes differ or NaN appears."""
    if [tuple(tensor.shape) for tensor in ours] != [array.shape for array in theirs]:
        return float("inf")
    worst = 0.0
    for tensor, array in zip(ours, theirs, strict=True):
        if tensor.numel():
            expected = tensor.double().numpy()
            error = np.abs(array.astype(np.float64) - expected).max() / (np.abs(expected).max() or 1.0)
            worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst


TOP = 5


def accuracy_facts(file: OnnxNetwork, data: Data | None) -> dict[str, Any]:
    """How well the very file classifies the validation and the test split: the ACCURACIES of an Artifact.

    Empty dictionaries without data, or if the file is no classifier.
    """
    facts: dict[str, dict[str, Any]] = {name: {} for name in ACCURACIES}
    if data is None:
        return facts
    outputs = file((data.example,))[0]
    if outputs.ndim != 2:
        return facts
    names = _distinct(data.classes)
    for split, loader in (("val", data.val), ("test", data.test)):
        labels, first, among = _hits(file, loader)
        facts["accuracy"][split] = int(first.sum()) / len(labels)
        if outputs.shape[1] > TOP:
            facts["accuracy_top5"][split] = int(among.sum()) / len(labels)
        facts["accuracy_by_class"][split] = {
            names[label]: int(first[labels == label].sum()) / int((labels == label).sum())
            for label in np.unique(labels).tolist()
        }
    return facts


def _hits(file: OnnxNetwork, loader: Loader) -> tuple[np.ndarray[Any, Any], ...]:
    """Labels (N,), whether the label scores highest (N,), and whether it is among the TOP highest (N,)."""
    columns: list[tuple[np.ndarray[Any, Any], ...]] = []
    for images, labels in loader:
        scores, wanted = file((images.float(),))[0], labels.numpy()
        # Stable, so that of equal scores the first counts as the highest, as argmax has it.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        columns.append((wanted, scores.argmax(1) == wanted, (best == wanted[:, None]).any(1)))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def _distinct(names: tuple[str, ...]) -> list[str]:
    """The class names; those that occur twice with their number, so that none hides another."""
    return [name if names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(names)]
