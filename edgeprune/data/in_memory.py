"""Data sets that fit into memory: scikit-learn's digits, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.data.base import PROBLEM, Data, Normalization
from edgeprune.data.loaders import TensorLoader
from edgeprune.data.pixels import normalise
from edgeprune.data.splits import Splits, balanced, cut, identity, seeded
from edgeprune.errors import DataError


def digits_data(*, batch_size: int, seed: int, normalization: Normalization, cutout: int = 0) -> Data:
    """1,797 real handwritten digits of 8x8 pixels, as 32x32 with three equal channels.

    Cut 60/20/20 per class by the seed. Training shifts by up to 3 pixels and never mirrors: a mirrored
    digit is no digit.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inked = torch.from_numpy(bunch.images).float().unsqueeze(1)  # (N, 1, 8, 8), 0..16, ink is 16
    # Weights of this resize are multiples of 1/64, so that every machine rounds to the same bytes.
    resized = F.interpolate(inked, size=(32, 32), mode="bilinear", align_corners=False)
    images = resized.mul(255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(bunch.target).long()

    generator = seeded(seed, "split")
    rest, test = cut(labels, torch.arange(len(labels)), 0.2, generator)
    train, val = cut(labels, rest, 0.25, generator)
    splits = Splits(train, val, test, balanced(labels, train, generator))
    classes = tuple(str(digit) for digit in range(10))
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "normalization": normalization}
    return _data(images, labels, splits, classes, options, pad=3, flip=False, cutout=cutout)


def cifar_data(
    kind: str, root: Path, *, batch_size: int, seed: int, normalization: Normalization, cutout: int = 0
) -> Data:
    """CIFAR-10 or CIFAR-100 from its Python files; val is 10 % of every class of the training part."""
    images, labels, test_from, classes = read_cifar(kind, root)
    generator = seeded(seed, "split")
    train, val = cut(labels, torch.arange(test_from), 0.1, generator)
    splits = Splits(train, val, torch.arange(test_from, len(labels)), balanced(labels, train, generator))
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "normalization": normalization}
    return _data(images, labels, splits, classes, options, pad=4, flip=True, cutout=cutout)


def _data(
    images: Tensor,
    labels: Tensor,
    splits: Splits,
    classes: tuple[str, ...],
    options: dict[str, Any],
    **augmentation: Any,
) -> Data:
    """``options``: of every loader; ``augmentation``: of the training one."""

    def loader(positions: Tensor, **own: Any) -> TensorLoader:
        return TensorLoader(images, labels, positions, **options, **own)

    return Data(
        name="",
        train=loader(splits.train, training=True, **augmentation),
        val=loader(splits.val),
        test=loader(splits.test),
        calib=loader(splits.calib),
        example=normalise(images[splits.calib[:1]], options["normalization"]),
        classes=classes,
        normalization=options["normalization"],
        identity=identity(classes, [images.numpy().data], labels, splits),
    )


def _torchvision_class(kind: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100

    return {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]


def _folder(kind: str, root: Path) -> Path:
    """``root`` contains the data set's folder, or is that folder."""
    official = _torchvision_class(kind)
    is_folder = root.name == official.base_folder or (root / official.meta["filename"]).is_file()
    return root if is_folder else root / str(official.base_folder)


def read_cifar(kind: str, root: Path) -> tuple[Tensor, Tensor, int, tuple[str, ...]]:
    """Read the Python version of CIFAR, whose files are pickles.

    Each file is read once and unpickled only after its md5 is found in torchvision's list, so a foreign
    file never runs code. A test plants small files by patching that list.

    Returns:
        Images uint8 (N, 3, 32, 32), labels int64 (N,), training part first; where the test part starts;
        class names.

    Raises:
        DataError: A file is missing, truncated or not the official one.
    """
    official = _torchvision_class(kind)
    folder = _folder(kind, root)
    if not folder.is_dir():
        raise DataError(
            PROBLEM,
            where=str(root),
            value="a folder without it" if root.is_dir() else "not a folder",
            expected=f"a folder that contains {official.base_folder}",
            hint="Unpack the Python version of the data set there, or add --download.",
        )
    train = [_unpickle(folder / name, md5) for name, md5 in official.train_list]
    test = [_unpickle(folder / name, md5) for name, md5 in official.test_list]
    meta = _unpickle(folder / official.meta["filename"], official.meta["md5"])
    images = torch.cat([torch.from_numpy(entry["data"]) for entry in train + test]).view(-1, 3, 32, 32)
    key = "labels" if kind == "cifar10" else "fine_labels"
    labels = torch.tensor([label for entry in train + test for label in entry[key]])
    return images, labels, sum(len(entry[key]) for entry in train), tuple(meta[official.meta["key"]])


def _unpickle(path: Path, md5: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise DataError(
            PROBLEM,
            where=str(path),
            value="missing" if isinstance(reason, FileNotFoundError) else f"unreadable ({reason.strerror})",
            expected="a file of the official data set",
            hint="Unpack the data set again, or add --download.",
        ) from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            PROBLEM,
            where=str(path),
            value=f"truncated or changed ({len(content)} bytes, md5 {found})",
            expected=f"md5 {md5}",
            hint="Unpack the data set again, or add --download.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files were pickled by a NumPy of 2009
        entry: dict[str, Any] = pickle.loads(content, encoding="latin1")
    return entry


def download_cifar(kind: str, root: Path) -> None:
    """Fetch the data set and unpack it, unless it is there and whole.

    Raises:
        DataError: It cannot be fetched or written.
    """
    try:
        read_cifar(kind, root)
    except DataError:
        from torchvision.datasets import utils

        official = _torchvision_class(kind)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tarfile's advice to torchvision
                utils.download_and_extract_archive(
                    official.url,
                    str(_folder(kind, root).parent),
                    filename=official.filename,
                    md5=official.tgz_md5,
                )
        except (OSError, RuntimeError) as reason:  # urllib's errors are OSErrors
            raise DataError(
                "could not download the data set",
                where=official.url,
                value=f"out of reach ({reason})",
                hint=f"Fetch the file in another way and unpack it into {root}.",
            ) from None
