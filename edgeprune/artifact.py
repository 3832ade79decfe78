"""An ONNX file and its facts, kept beside it in ``<file>.onnx.json``. Device side: no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeprune.errors import ArtifactError
from edgeprune.external_data import files_of
from edgeprune.files import read_json, sha256_files, write_json

SIDECAR_FORMAT = 2
ACCURACIES = ("accuracy", "accuracy_top5", "accuracy_by_class")
"""Fields that hold how well the file classifies."""


@dataclass(frozen=True)
class Artifact:
    """One ONNX file.

    A fact that nobody has established is None (e.g. the accuracy of somebody else's file).

    Attributes:
        path: The ONNX file.
        sha256: Of the file, hex; with external data, of ``files`` one after the other, as ``cat`` joins them.
        size_bytes: Of what ships: the file and every file of external data, each whole and once.
        input_shape: (N, C, H, W) of the first input; a dynamic dimension is -1.
        macs: Multiply-adds of one inference at batch 1.
        params: Number of weights and biases of the torch network.
        parity_error: Largest |onnx - torch| / max |torch| over the checked inputs; of a file in another
            precision, against the float32 file that it was made of.
        accuracy: Top-1 in 0..1 by onnxruntime on this file, per split, e.g. ``{"val": 0.93, "test": 0.92}``.
        accuracy_top5: Share of the images whose class is among the five that score highest, per split; none
            for a network of five outputs or fewer.
        accuracy_by_class: Split -> class name -> share of the images of that class classified correctly; a
            class without images is left out.
        provenance: Model source, data identity, scheme, plan hash, normalization, versions, opset ...
    """

    path: Path
    sha256: str
    size_bytes: int
    input_shape: tuple[int, ...] | None = None
    macs: int | None = None
    params: int | None = None
    parity_error: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    accuracy_top5: dict[str, float] = field(default_factory=dict)
    accuracy_by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def sidecar(self) -> Path:
        """Path of the JSON file with the facts."""
        return sidecar_path(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """What ships: the ONNX file, then its files of external data in the order of their names."""
        return files_of(self.path)

    def write_sidecar(self) -> None:
        """Write the facts beside the file, atomically. The path itself is not written: folders move."""
        facts = {key: value for key, value in asdict(self).items() if key != "path"}
        write_json(self.sidecar, {"format": SIDECAR_FORMAT, **facts})


def sidecar_path(path: Path) -> Path:
    """``model.onnx`` -> ``model.onnx.json``."""
    return path.with_name(path.name + ".json")


def _is_text(name: str) -> bool:
    """Whether a path can be written in UTF-8, as onnxruntime and JSON want it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_artifact(path: Path | str) -> Artifact:
    """Read an ONNX file's facts. A file without a sidecar is fine: its facts are then None.

    Raises:
        ArtifactError: The file is absent, empty, unreadable, a folder or no protobuf, its external data are
            absent, too short or outside of its folder, the sidecar is broken, or the file is not the one that
            the sidecar describes.
    """
    path = Path(path)
    problem = "could not open the ONNX file"
    if not _is_text(str(path)):
        value = "a name that is no UTF-8 text"
        raise ArtifactError(problem, where=repr(str(path)), value=value, hint="Rename the file.")
    try:
        if not path.is_file():  # nor a pipe, which would never end
            raise ArtifactError(problem, where=str(path), value="not a file", expected="an .onnx file")
        files = files_of(path)
        size = sum(file.stat().st_size for file in files)
        sha256 = sha256_files(files)
    except OSError as reason:
        value = f"unreadable ({reason.strerror})"
        where = str(reason.filename or path)
        raise ArtifactError(problem, where=where, value=value, expected="an .onnx file") from None
    if size == 0:
        raise ArtifactError(problem, where=str(path), value="empty", expected="an .onnx file")
    sidecar = sidecar_path(path)
    if not sidecar.exists():
        return Artifact(path, sha256, size)
    facts = facts_in_sidecar(sidecar)
    if (facts["sha256"], facts["size_bytes"]) != (sha256, size):
        same = facts["sha256"] == sha256
        raise ArtifactError(
            "could not trust the sidecar",
            where=str(path),
            value=f"{size} bytes" if same else f"sha256 {sha256[:12]}…",
            expected=f"{facts['size_bytes'] if same else facts['sha256'][:12] + '…'} as in {sidecar.name}",
            hint="One of them was changed after the export: export again, or delete the sidecar.",
        )
    return Artifact(path=path, **facts)


def facts_in_sidecar(sidecar: Path) -> dict[str, Any]:
    """The fields of an ``Artifact`` but for its path, as a sidecar has them, true of its file or not.

    Raises:
        ArtifactError: It is absent, not JSON, of another format, or a fact makes no sense.
    """
    hint = "Export the network again, or delete the sidecar."
    facts = read_json(sidecar, ArtifactError, "sidecar", hint)
    known = {f.name for f in fields(Artifact)} - {"path"}
    if not isinstance(facts, dict) or facts.pop("format", None) != SIDECAR_FORMAT or set(facts) != known:
        value, expected = (
            "of another format",
            f"format {SIDECAR_FORMAT} with the keys {', '.join(sorted(known))}",
        )
    elif not is_artifact({**facts, "path": ""}):
        value = "with a fact that makes no sense"
        expected = "what `edgeprune export` writes: texts, numbers of at least 0, accuracies from 0 to 1"
    else:
        shape = facts["input_shape"]
        return facts | {"input_shape": tuple(shape) if shape is not None else None}
    raise ArtifactError(
        "could not read the sidecar", where=str(sidecar), value=value, expected=expected, hint=hint
    )


def normalization_of(provenance: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation by channel that the file expects; None if none are told, or no such."""
    told = provenance.get("normalization")
    if not isinstance(told, dict):
        return None
    mean, std = told.get("mean"), told.get("std")
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple) or not mean:
        return None
    if len(mean) != len(std) or not all(map(is_number, [*mean, *std])) or min(std) <= 0:
        return None
    return tuple(mean), tuple(std)


# --- reading strictly ---------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_texts(value: Any) -> bool:
    """Whether a JSON value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def is_artifact(value: Any) -> bool:
    """Whether a JSON value holds the facts of an artifact."""
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Artifact)}:
        return False
    numbers = [value[name] for name in ("macs", "params", "parity_error") if value[name] is not None]
    shape = value["input_shape"]
    return (
        is_texts([value["path"], value["sha256"]])
        and _is_accuracies(value)
        and isinstance(value["provenance"], dict)
        and ("precision" not in value["provenance"] or _is_variant(value["provenance"]["precision"]))
        and (shape is None or (isinstance(shape, list | tuple) and all(map(is_number, shape))))
        and all(is_number(number) and number >= 0 for number in [value["size_bytes"], *numbers])
    )


def _is_shares(value: Any) -> bool:
    """Of images: one number for each name."""
    return isinstance(value, dict) and all(is_number(one) and 0 <= one <= 1 for one in value.values())


def _is_accuracies(value: Any) -> bool:
    """The three fields of an artifact, or of the note on what it was made of."""
    plain, by_class = (value.get("accuracy"), value.get("accuracy_top5")), value.get("accuracy_by_class")
    return (
        all(map(_is_shares, plain)) and isinstance(by_class, dict) and all(map(_is_shares, by_class.values()))
    )


def _is_variant(value: Any) -> bool:
    """The note on what a file in another precision was made of: the accuracy lost is told from it."""
    if not isinstance(value, dict) or not {"name", "provider", "source"} <= set(value):
        return False
    return isinstance(value["source"], dict) and _is_accuracies(value["source"])
