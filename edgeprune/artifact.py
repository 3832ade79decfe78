"""An ONNX file and its facts, kept beside it in ``<file>.onnx.json``. Device side: no torch."""

from __future__ import annotations

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
    facts = read_json(sidecar, ArtifactError, "sidecar")
    known = {f.name for f in fields(Artifact)} - {"path"}
    if not isinstance(facts, dict) or facts.pop("format", None) != SIDECAR_FORMAT or set(facts) != known:
        raise ArtifactError(
            "could not read the sidecar",
            where=str(sidecar),
            value="of another format",
            expected=f"format {SIDECAR_FORMAT} with the keys {', '.join(sorted(known))}",
            hint="Export the network again, or delete the sidecar.",
        )
    if facts["sha256"] != sha256:
        raise ArtifactError(
            "could not trust the sidecar",
            where=str(path),
            value=f"sha256 {sha256[:12]}…",
            expected=f"{str(facts['sha256'])[:12]}… as in {sidecar.name}",
            hint="The file was changed after its export: export it again, or delete the sidecar.",
        )
    shape = facts["input_shape"]
    facts["input_shape"] = tuple(shape) if shape is not None else None
    return Artifact(path=path, **facts)
