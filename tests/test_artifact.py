"""The sidecar: read strictly, and held against its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.errors import ArtifactError
from edgeprune.files import sha256_file
from tests.test_cli import network


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "net.onnx"
    network(path, 4)
    one = Artifact(path, sha256_file(path), path.stat().st_size, (1, 3, 8, 8), 7, 5, 1e-7, {"test": 0.5})
    one.write_sidecar()
    return one


def edit(artifact: Artifact, key: str, value: Any) -> None:
    facts = json.loads(artifact.sidecar.read_text())
    artifact.sidecar.write_text(json.dumps({**facts, key: value}))


def test_it_is_read_as_it_was_written(artifact: Artifact) -> None:
    assert load_artifact(artifact.path) == artifact


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", None), ("sha256", 3), ("size_bytes", "big"), ("size_bytes", -1), ("input_shape", 3),
        ("input_shape", ["N"]), ("macs", True), ("params", -1), ("parity_error", "none"), ("accuracy", []),
        ("accuracy", {"test": 1.5}), ("accuracy", {"test": -0.1}), ("accuracy_top5", {"test": None}),
        ("accuracy_by_class", {"test": 0.5}), ("provenance", None), ("provenance", {"precision": "int8"}),
    ],
)  # fmt: skip
def test_a_fact_that_makes_no_sense(artifact: Artifact, key: str, value: Any) -> None:
    edit(artifact, key, value)
    with pytest.raises(ArtifactError, match=r"could not read the sidecar: .* a fact that makes no sense"):
        load_artifact(artifact.path)


def test_another_size_than_the_files_would_pass_a_budget(artifact: Artifact) -> None:
    edit(artifact, "size_bytes", 1)
    with pytest.raises(ArtifactError, match=rf"is {artifact.size_bytes} bytes, expected 1 as in net.onnx"):
        load_artifact(artifact.path)


def test_another_file_than_the_sidecars(artifact: Artifact) -> None:
    edit(artifact, "sha256", "0" * 64)
    with pytest.raises(ArtifactError, match=r"expected 000000000000… as in net\.onnx\.json"):
        load_artifact(artifact.path)
