"""A data set of image files: ``DIR/train/CLASS/*``, and the like for ``val`` and ``test``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.base import PROBLEM, Data, Normalization, part_of
from edgeprune.data.loaders import SplitLoader
from edgeprune.data.splits import Splits, balanced, cut, identity, seeded
from edgeprune.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

CUT_SHARE = 0.1
HASHED_BYTES = 8 << 30
BATCHES_AHEAD = 2
DECODING_S = 300.0
"""After this time a file counts as unreadable: storage that never answers must not hang a training."""


def imagefolder_data(
    root: Path,
    *,
    batch_size: int,
    seed: int,
    normalization: Normalization,
    image_size: int,
    cutout: int = 0,
) -> Data:
    """Read ``root/train``, ``root/val`` and ``root/test``, each with one folder per class.

    Without ``val``, 10 % of every class of the training images become it; likewise for ``test``, so that
    the test part is never one that choices were made on. The identity covers names, sizes and bytes of
    all files; beyond 8 GiB in all only names and sizes, since reading them would take minutes.

    Raises:
        DataError: A folder is missing, empty or has other classes than ``train``; a class is too small to
            cut from; an image cannot be decoded (while iterating).
    """
    classes, train_files = _files(root, "train")
    files, parts = list(train_files), {"train": torch.arange(len(train_files))}
    for part in ("val", "test"):
        if (root / part).is_dir():
            names, found = _files(root, part)
            if names != classes:
                raise DataError(
                    PROBLEM,
                    where=str(root / part),
                    value=f"a folder with the classes {_some(names)}",
                    expected=f"those of {root / 'train'}: {_some(classes)}",
                )
            parts[part] = torch.arange(len(files), len(files) + len(found))
            files += found
    labels = torch.tensor([label for _, label in files])
    generator = seeded(seed, "split")
    for part in ("test", "val"):
        if part not in parts:
            parts["train"], parts[part] = cut(labels, parts["train"], CUT_SHARE, generator)
    splits = Splits(calib=balanced(labels, parts["train"], generator), **parts)
    paths = [path for path, _ in files]

    def loader(positions: Tensor, *, training: bool = False) -> FolderLoader:
        return FolderLoader(
            paths,
            labels,
            positions,
            batch_size=batch_size,
            seed=seed,
            training=training,
            image_size=image_size,
            normalization=normalization,
            cutout=cutout,
        )

    return Data(
        name="",
        train=loader(splits.train, training=True),
        val=loader(splits.val),
        test=loader(splits.test),
        calib=loader(splits.calib),
        example=next(iter(loader(splits.calib[:1])))[0],
        classes=classes,
        normalization=normalization,
        identity=identity(classes, _content(root, paths), labels, splits),
    )


def _files(root: Path, part: str) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """Class names and (path, label) of each image, as torchvision lists them."""
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(root / part))
    except OSError as reason:
        missing = not (root / part).is_dir()
        raise DataError(
            PROBLEM,
            where=str(root / part),
            value="missing" if missing else f"incomplete ({str(reason).split(' Supported')[0].rstrip('.')})",
            expected="a folder with one folder of images per class",
        ) from None
    if len(folder.classes) < 2:
        raise DataError(
            PROBLEM,
            where=str(root / part),
            value=f"a folder with one class ({folder.classes[0]})",
            expected="at least 2 classes",
        )
    return tuple(folder.classes), folder.samples


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" … ({len(names)} in all)" if len(names) > 10 else "")


def _content(root: Path, paths: list[str]) -> Iterator[bytes]:
    """Names and sizes of the files and, where that is affordable, the hashes of their bytes."""
    try:
        sizes = [_size(path) for path in paths]
        for path, size in zip(paths, sizes, strict=True):
            yield f"{Path(path).relative_to(root).as_posix()} {size}\n".encode()
        if sum(sizes) <= HASHED_BYTES:
            with ThreadPoolExecutor(_threads()) as pool:
                yield from pool.map(lambda path: hashlib.sha256(Path(path).read_bytes()).digest(), paths)
    except OSError as reason:
        raise DataError(
            PROBLEM,
            where=str(reason.filename),
            value=f"unreadable ({reason.strerror})",
            expected="an image file",
        ) from None


def _size(path: str) -> int:
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):  # to read a pipe is to wait for ever
        raise DataError(PROBLEM, where=path, value="not a regular file", expected="an image file")
    return status.st_size


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class FolderLoader(SplitLoader):
    """Batches decoded from files by threads, a few batches ahead.

    Threads, not processes: Pillow decodes and resizes outside the interpreter lock, a fork of a process
    that runs torch's threads may hang, and a broken image is reported by its name alone. On four busy cores
    threads decoded about twice as many JPEG images per second as DataLoader's processes.

    Training: a random part of 8 to 100 % of the area with an aspect of 3/4 to 4/3, resized to
    ``image_size`` squared, mirrored every second time. Otherwise: the shorter side resized to
    ``image_size / 0.875``, then the centre. Args are those of ``TensorLoader``, with files for images.
    """

    def __init__(
        self,
        paths: list[str],
        labels: Tensor,
        positions: Tensor,
        *,
        batch_size: int,
        seed: int,
        training: bool,
        image_size: int,
        normalization: Normalization,
        cutout: int = 0,
    ) -> None:
        super().__init__(
            labels,
            positions,
            batch_size=batch_size,
            normalization=normalization,
            seed=seed,
            training=training,
            cutout=cutout,
        )
        self.paths, self.image_size = paths, image_size

    def _batches(
        self, batches: tuple[Tensor, ...], generator: torch.Generator, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        ahead: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        pool = ThreadPoolExecutor(_threads())
        try:
            for step, batch in enumerate(batches):
                draws = torch.rand(len(batch), 5, generator=generator) if self.training else None
                if step < first:
                    continue
                part = part_of(len(batch), self.rank, self.ranks)
                chosen, wanted = batch[part], draws[part].tolist() if draws is not None else None
                images = [
                    pool.submit(self._image, self.paths[position], wanted[row] if wanted else None)
                    for row, position in enumerate(chosen.tolist())
                ]
                ahead.append((chosen, images))
                if len(ahead) > BATCHES_AHEAD:
                    yield self._collect(*ahead.popleft())
            while ahead:
                yield self._collect(*ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _collect(self, chosen: Tensor, images: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        pixels = torch.empty(len(images), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for row, (position, image) in enumerate(zip(chosen.tolist(), images, strict=True)):
            try:
                pixels[row] = image.result(DECODING_S)
            except TimeoutError:
                raise _broken(self.paths[position], f"not decoded after {DECODING_S:g} s") from None
        return pixels, self.labels[chosen]

    def _image(self, path: str, draws: list[float] | None) -> Tensor:
        """One image, uint8 (3, image_size, image_size); ``draws``: five numbers in 0..1 to augment by."""
        from PIL import Image

        try:
            with Image.open(path) as file:
                return self._transformed(file.convert("RGB"), draws)
        except Exception as reason:  # whatever a decoder stumbles over, the file is at fault
            raise _broken(path, f"broken ({type(reason).__name__}: {reason})") from None

    def _transformed(self, image: Image.Image, draws: list[float] | None) -> Tensor:
        from torchvision.transforms import functional as transform

        side = [self.image_size] * 2
        if draws is None:
            image = transform.resize(image, [round(self.image_size / 0.875)])
            image = transform.center_crop(image, side)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        area = image.width * image.height * (0.08 + 0.92 * draws[0])
        aspect = (3 / 4) ** (1 - 2 * draws[1])
        width = min(image.width, max(1, round((area * aspect) ** 0.5)))
        height = min(image.height, max(1, round((area / aspect) ** 0.5)))
        left, top = int(draws[2] * (image.width - width + 1)), int(draws[3] * (image.height - height + 1))
        image = transform.resized_crop(image, top, left, height, width, side)
        image = transform.hflip(image) if draws[4] < 0.5 else image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _broken(path: str, value: str) -> DataError:
    return DataError(
        "could not decode an image",
        where=path,
        value=value,
        expected="an image file",
        hint="Remove the file or replace it.",
    )
