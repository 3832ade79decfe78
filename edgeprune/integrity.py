"""Is an ONNX file still what its sidecar says it is? Hashes and metadata. Device side: no torch, no onnx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprune.artifact import Artifact, facts_in_sidecar, sidecar_path
from edgeprune.errors import ArtifactError
from edgeprune.external_data import files_of
from edgeprune.files import sha256_file, sha256_files
from edgeprune.precision import note_of
from edgeprune.protobuf import fields

State = Literal["passed", "failed", "not checked"]

METADATA, KEY, VALUE = 14, 1, 2  # field numbers in onnx.proto
OF_THE_FILE_ITSELF = {"path", "sha256", "size_bytes"}
SIDECAR_ALONE = {"accuracy_top5", "accuracy_by_class"}
"""Facts that are too long for the metadata."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is, e.g. ``"weights"``.
        state: ``"not checked"`` if something for it is absent.
        text: What was found, for people.
    """

    name: str
    state: State
    text: str


def exit_code(checks: list[Check]) -> Literal[0, 1]:
    """1 if a check failed, else 0: what was not checked is said, and is no failure."""
    return 1 if any(check.state == "failed" for check in checks) else 0


def described(path: Path) -> Artifact:
    """What the sidecar says of a file, whether or not it is true.

    Raises:
        ArtifactError: The file or its sidecar is absent, or the sidecar is broken.
    """
    problem = "could not verify the file"
    if not path.is_file():
        raise ArtifactError(problem, where=str(path), value="not a file", expected="an .onnx file")
    if not sidecar_path(path).is_file():
        raise ArtifactError(
            problem,
            where=str(sidecar_path(path)),
            value="not there",
            expected="the sidecar that `edgeprune export` wrote beside it",
            hint="Without it there is nothing to hold the file against.",
        )
    return Artifact(path=path, **facts_in_sidecar(sidecar_path(path)))


def check_files(artifact: Artifact) -> list[Check]:
    """Hold a file, its metadata and what it was made of against its sidecar.

    Args:
        artifact: As ``described`` gives it.

    Returns:
        ``file``, ``metadata``, ``weights``, ``plan`` and, for a file in another precision, ``source``.
    """
    return [_check_hash(artifact), _check_metadata(artifact), *_check_origins(artifact)]


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata inside an ONNX file.

    Raises:
        ValueError: It is no such file.
    """
    content = path.read_bytes()
    found = {}
    try:
        for number, start, end in fields(content, 0, len(content)):
            if number == METADATA:
                entry = {field: content[a:b].decode() for field, a, b in fields(content, start, end)}
                found[entry[KEY]] = entry.get(VALUE, "")
    except (IndexError, KeyError):
        raise ValueError("no protobuf message") from None
    return found


def _check_hash(artifact: Artifact) -> Check:
    try:
        files = files_of(artifact.path)
        sha256 = sha256_files(files)
        size = sum(file.stat().st_size for file in files)
    except ArtifactError as reason:  # a byte that was flipped can name other files
        return Check("file", "failed", f"it cannot be read ({reason})")
    if sha256 != artifact.sha256:
        return Check("file", "failed", f"sha256 {sha256[:12]}…, the sidecar says {artifact.sha256[:12]}…")
    if size != artifact.size_bytes:
        return Check("file", "failed", f"{size} bytes, the sidecar says {artifact.size_bytes}")
    return Check("file", "passed", f"sha256 {sha256[:12]}… and {size:,} bytes as in the sidecar")


def _check_metadata(artifact: Artifact) -> Check:
    """What stands in the file itself, so that a sidecar that was edited is found."""
    if artifact.path.suffix != ".onnx":
        return Check("metadata", "not checked", f"a {artifact.path.suffix} file holds none")
    try:
        inside = {key: json.loads(value) for key, value in metadata_of(artifact.path).items()}
    except (ValueError, OSError) as reason:
        return Check("metadata", "failed", f"it cannot be read ({type(reason).__name__}: {reason})")
    facts = json.loads(json.dumps(asdict(artifact), default=str))
    source = facts["provenance"].get("precision", {}).get("source", {})
    for name in SIDECAR_ALONE:
        source.pop(name, None)
    expected = {name: facts[name] for name in set(facts) - OF_THE_FILE_ITSELF - SIDECAR_ALONE}
    if not inside:
        return Check("metadata", "not checked", "the file holds none")
    other = sorted(_differences(expected, inside))
    if other:
        return Check("metadata", "failed", f"file and sidecar differ in {', '.join(other)}")
    return Check("metadata", "passed", f"{', '.join(sorted(expected))} as in the sidecar")


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Dotted names of what differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            inner = f"{name}.{key}".strip(".")
            if key in one and key in other:
                yield from _differences(one[key], other[key], inner)
            else:
                yield inner
    elif one != other:
        yield name


def _check_origins(artifact: Artifact) -> Iterator[Check]:
    """The weights, the plan and the float32 file that it was made of, where they lie beside it."""
    facts, folder = artifact.provenance, artifact.path.parent
    yield _check_origin("weights", weights_of(artifact), facts.get("weights_sha256"))
    if facts.get("role") != "dense":
        yield _check_origin("plan", folder / "plan.json", facts.get("plan_sha256"))
    source = note_of(artifact).get("source")
    if isinstance(source, dict):
        name = f"{artifact.path.name.partition('.')[0]}.onnx"
        yield _check_origin("source", folder / name, source.get("sha256"))


def weights_of(artifact: Artifact) -> Path:
    """Where a run keeps the weights that a file was exported from."""
    role = artifact.provenance.get("role")
    return artifact.path.with_name(f"{role or artifact.path.name.partition('.')[0]}.safetensors")


def _check_origin(name: str, path: Path, wanted: Any) -> Check:
    if not isinstance(wanted, str):
        return Check(name, "not checked", "the sidecar does not tell their hash")
    if not path.is_file():
        return Check(name, "not checked", f"{path.name} does not lie beside the file")
    sha256 = sha256_file(path)
    if sha256 != wanted:
        return Check(
            name, "failed", f"{path.name} has sha256 {sha256[:12]}…, the sidecar says {wanted[:12]}…"
        )
    return Check(name, "passed", f"{path.name} has sha256 {sha256[:12]}… as in the sidecar")
