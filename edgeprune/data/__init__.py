"""Data sets: batches of normalised images in training, validation, calibration and test splits."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from edgeprune.data.base import PROBLEM, Data, Loader, Normalization, UserLoader, part_of
from edgeprune.data.completing import completed
from edgeprune.data.imagefolder import imagefolder_data
from edgeprune.data.in_memory import cifar_data, digits_data, download_cifar
from edgeprune.data.loaders import TensorLoader
from edgeprune.data.user_sets import IN_FOLDERS, user_data
from edgeprune.errors import DataError, UsageError

__all__ = [
    "Data", "Loader", "Normalization", "TensorLoader", "UserLoader", "completed", "load_data", "part_of"
]  # fmt: skip

FORMS = "digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR or package.module:function"


def load_data(
    spec: str,
    *,
    batch_size: int = 128,
    seed: int = 0,
    normalization: Normalization | None = None,
    download: bool = False,
    image_size: int | None = None,
    cutout: int = 0,
) -> Data:
    """Load a data set and cut it into train, val, test and calib.

    Args:
        spec: ``digits`` (ships with scikit-learn), ``cifar10:DIR``, ``cifar100:DIR``, ``imagefolder:DIR``
            or ``package.module:function``, a function that returns a ``Data`` and is called with
            ``batch_size``, ``seed`` and ``normalization`` if it takes them.
        batch_size: Images per batch.
        seed: Of splits, order and augmentation.
        normalization: The network's (``normalization_of(model)``); None: ImageNet's, or as the function
            has it.
        download: Fetch CIFAR into DIR if it is not there.
        image_size: Height and width of ``imagefolder`` images in pixels; None: 224.
        cutout: Side in pixels of a square of each training image, at a random place, that is set to the
            mean colour; 0: none. A function of the user's does its own.

    Raises:
        DataError: The data set is unknown, missing, truncated or of the wrong shape.
        UsageError: An option is out of range or has no meaning for this data set.

    Example:
        >>> data = load_data("digits")
        >>> data.example.shape, len(data.classes)
        (torch.Size([1, 3, 32, 32]), 10)
    """
    kind, colon, place = spec.partition(":")
    _check_options(kind, download, image_size, cutout)
    if kind != "digits" and kind not in IN_FOLDERS:
        if not (kind and place):
            raise _unknown(spec, kind)
        data = user_data(spec, batch_size=batch_size, seed=seed, normalization=normalization)
        return replace(data, name=spec)

    normalization = normalization or Normalization()
    if len(normalization.mean) != 3:
        raise DataError(
            PROBLEM, where="the normalization", value=f"of {len(normalization.mean)} channels", expected="3"
        )
    if kind == "digits":
        if colon:
            raise DataError(PROBLEM, where="--data", value=spec, expected="digits without a folder")
        data = digits_data(batch_size=batch_size, seed=seed, normalization=normalization, cutout=cutout)
    elif not place:
        raise DataError(PROBLEM, where="--data", value=spec, expected=f"{kind}:DIR")
    elif kind == "imagefolder":
        data = imagefolder_data(
            Path(place),
            batch_size=batch_size,
            seed=seed,
            normalization=normalization,
            image_size=224 if image_size is None else image_size,
            cutout=cutout,
        )
    else:
        if download:
            download_cifar(kind, Path(place))
        data = cifar_data(
            kind,
            Path(place),
            batch_size=batch_size,
            seed=seed,
            normalization=normalization,
            cutout=cutout,
        )
    return replace(data, name=spec)


def _check_options(kind: str, download: bool, image_size: int | None, cutout: int) -> None:
    if cutout < 0 or (cutout and kind != "digits" and kind not in IN_FOLDERS):
        raise UsageError(
            PROBLEM, where="cutout", value=cutout, expected="0 or more, and 0 for a function of the user's"
        )
    if image_size is not None and (kind != "imagefolder" or image_size < 1):
        raise UsageError(
            PROBLEM, where="image_size", value=image_size, expected="at least 1, and for imagefolder:DIR only"
        )
    if download and not kind.startswith("cifar"):
        raise UsageError(
            PROBLEM, where="--download", value=f"given for {kind}", expected="cifar10:DIR or cifar100:DIR"
        )


def _unknown(spec: str, kind: str) -> DataError:
    close = difflib.get_close_matches(kind.lower(), ("digits", *IN_FOLDERS), n=1)
    hint = f"Did you mean {close[0]}?" if close else ""
    return DataError(PROBLEM, where="--data", value=repr(spec), expected=FORMS, hint=hint)
