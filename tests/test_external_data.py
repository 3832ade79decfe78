"""What ships with an ONNX file, and files that are refused before onnxruntime sees them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from edgeprune import external_data
from edgeprune.artifact import load_artifact
from edgeprune.errors import ArtifactError
from edgeprune.external_data import files_of
from tests import hostile


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_broken_file_is_refused_before_a_process_starts(tmp_path: Path, name: str) -> None:
    content, message = hostile.REFUSED[name]
    path = hostile.make(tmp_path, name, content)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(hostile.GOOD)
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root reads everything
        with pytest.raises(ArtifactError, match=r"a\.onnx is unreadable \(Permission denied\)"):
            load_artifact(path)
    finally:
        os.seteuid(user)


def test_a_name_that_no_system_takes_is_refused() -> None:
    with pytest.raises(ArtifactError, match="is unreadable"):
        load_artifact("a" * 5000 + ".onnx")


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"'n\\udcff\.onnx' is a name that is no UTF-8 text. Rename"):
        load_artifact("n\udcff.onnx")


# --- what ships ---------------------------------------------------------------------------------------------


def _save(folder: Path, *locations: str) -> Path:
    """Weights of four floats, each in a file of 20 bytes."""
    weights = []
    for number, location in enumerate(locations):
        weight = hostile.external(location, offset="4", length="16")
        weight.name = f"w{number}"
        weights.append(weight)
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(number.to_bytes(20, "big"))
    names = [weight.name for weight in weights]
    path = folder / "m.onnx"
    path.write_bytes(
        hostile.model([helper.make_node("Sum", ["x", *names], ["y"])], [hostile.value("x", [4])], (*weights,))
    )
    return path


def test_size_and_sha256_cover_external_data_once(tmp_path: Path) -> None:
    path = _save(tmp_path, "b.bin", "sub/a.bin", "b.bin")
    parts = [path, tmp_path / "b.bin", tmp_path / "sub" / "a.bin"]
    artifact = load_artifact(path)
    assert artifact.files == tuple(parts)
    assert artifact.size_bytes == path.stat().st_size + 40
    assert artifact.sha256 == hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def test_a_file_alone_has_its_own_sha256(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(hostile.GOOD)
    artifact = load_artifact(path)
    assert (artifact.files, artifact.size_bytes) == ((path,), len(hostile.GOOD))
    assert artifact.sha256 == hashlib.sha256(hostile.GOOD).hexdigest()


def test_a_sidecar_does_not_survive_a_change_of_the_data(tmp_path: Path) -> None:
    path = _save(tmp_path, "b.bin")
    load_artifact(path).write_sidecar()
    assert load_artifact(path).size_bytes == json.loads((tmp_path / "m.onnx.json").read_text())["size_bytes"]
    (tmp_path / "b.bin").write_bytes(bytes(range(20)))
    with pytest.raises(ArtifactError, match="could not trust the sidecar"):
        load_artifact(path)


def test_links_of_a_cache_are_followed_together(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    stored = _save(blobs, "w.bin")
    (snapshot / "m.onnx").symlink_to(stored)
    (snapshot / "w.bin").symlink_to("../../blobs/w.bin")
    assert files_of(snapshot / "m.onnx") == (snapshot / "m.onnx", snapshot / "w.bin")
    (snapshot / "m.onnx").unlink()
    (snapshot / "m.onnx").write_bytes(stored.read_bytes())
    with pytest.raises(ArtifactError, match="is outside"):  # a link alone leads out
        files_of(snapshot / "m.onnx")


def test_data_that_name_the_model_itself_count_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(hostile.outside("m.onnx", length="16"))
    assert files_of(path) == (path,)


def test_a_file_in_the_runtimes_own_format_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.ort"
    path.write_bytes(b"\x18\0\0\0ORTM" + bytes(40))
    assert files_of(path) == (path,)


# --- the walk -----------------------------------------------------------------------------------------------


def test_fields_are_those_of_onnx() -> None:
    for message, fields in external_data.MESSAGES.items():
        described = getattr(onnx, message).DESCRIPTOR.fields_by_number
        assert {number: described[number].message_type.name for number in fields} == fields
        # All that could lead to a tensor is there, but for the types of values and quantisation notes.
        leads = {
            number
            for number, field in described.items()
            if field.message_type and field.message_type.name in external_data.MESSAGES
        }
        assert leads == set(fields) - ({13} if message == "TensorProto" else set())
    entry = onnx.StringStringEntryProto.DESCRIPTOR.fields_by_name
    assert (entry["key"].number, entry["value"].number) == (external_data.KEY, external_data.VALUE)
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == 13


def _everywhere() -> Iterator[tuple[str, onnx.ModelProto]]:
    """A model with external data at each place that can hold a tensor."""

    def fresh() -> onnx.ModelProto:
        return onnx.load_from_string(hostile.GOOD)

    tensor = hostile.external("../secret.bin")
    held = onnx.SparseTensorProto(dims=[4], values=tensor)
    graph = onnx.GraphProto(initializer=[tensor])
    kinds = onnx.AttributeProto
    for attribute in (
        kinds(name="a", type=kinds.TENSOR, t=tensor),
        kinds(name="a", type=kinds.TENSORS, tensors=[tensor]),
        kinds(name="a", type=kinds.GRAPH, g=graph),
        kinds(name="a", type=kinds.GRAPHS, graphs=[graph]),
        kinds(name="a", type=kinds.SPARSE_TENSOR, sparse_tensor=held),
        kinds(name="a", type=kinds.SPARSE_TENSORS, sparse_tensors=[held]),
    ):
        made = fresh()
        made.graph.node[0].attribute.append(attribute)
        yield f"attribute {attribute.type}", made
        made = fresh()
        made.functions.add(name="F", attribute_proto=[attribute])
        yield f"function's attribute {attribute.type}", made
    made = fresh()
    made.functions.add(name="F").node.add(op_type="Constant").attribute.add(name="a").t.CopyFrom(tensor)
    yield "function", made
    for part in ("initialization", "algorithm"):
        made = fresh()
        getattr(made.training_info.add(), part).initializer.append(tensor)
        yield part, made
    for part in ("values", "indices"):
        made = fresh()
        getattr(made.graph.sparse_initializer.add(), part).CopyFrom(tensor)
        yield f"sparse {part}", made


def test_external_data_are_found_everywhere(tmp_path: Path) -> None:
    for place, made in _everywhere():
        path = hostile.make(tmp_path, place, made.SerializeToString())
        with pytest.raises(ArtifactError, match="is outside"):
            files_of(path)


def test_external_data_in_pieces_are_found(tmp_path: Path) -> None:
    # Two pieces of one message are merged by every parser, so the mark may come apart from the path.
    path = TensorProto(name="w", data_type=1, dims=[4])
    path.external_data.add(key="location", value="../secret.bin")
    mark = TensorProto(data_location=TensorProto.EXTERNAL)
    pieces = b"".join(
        b"\x2a" + len(piece).to_bytes() + piece
        for piece in (path.SerializeToString(), mark.SerializeToString())
    )
    attribute = onnx.AttributeProto.FromString(pieces)
    assert attribute.t.data_location == TensorProto.EXTERNAL
    assert attribute.t.external_data
    node = b"\x2a" + len(pieces).to_bytes() + pieces
    graph = b"\x0a" + len(node).to_bytes() + node
    made = hostile.make(tmp_path, "pieces", b"\x3a" + len(graph).to_bytes() + graph)
    with pytest.raises(ArtifactError, match="is outside"):
        files_of(made)


def _locations(content: bytes) -> set[str] | None:
    """What the protobuf library finds; None if it cannot parse."""
    try:
        parsed = onnx.load_from_string(content)
    except (DecodeError, UnicodeDecodeError):
        return None
    return {
        entry.value
        for weight in parsed.graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }


def _ours(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> set[str] | None:
    found: set[str] = set()

    def note(_: Path, entry: dict[str, str]) -> Path:
        found.add(entry["location"])
        return path

    monkeypatch.setattr(external_data, "_data_file", note)
    path.write_bytes(content)
    try:
        files_of(path)
    except ArtifactError:
        return None
    return found


def test_walk_agrees_with_protobuf_on_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = hostile.outside("data.bin", offset="0", length="16")
    path = tmp_path / "m.onnx"
    cut = [content[:end] for end in range(1, len(content))]
    draw = random.Random(0)
    changed = []
    for _ in range(150):
        broken = bytearray(content)
        broken[draw.randrange(len(broken))] = draw.randrange(256)
        changed.append(bytes(broken))
    refused = 0
    for case in (*cut, *changed):
        theirs, ours = _locations(case), _ours(path, case, monkeypatch)
        refused += ours is None
        # What protobuf takes is taken, but for groups, which nobody writes, and no data file is missed.
        assert theirs is None or ours == theirs or (ours is None and any(byte & 7 == 3 for byte in case))
    assert refused > len(cut) // 2
    assert _ours(path, content, monkeypatch) == {"data.bin"}


def test_deep_nesting_and_many_fields_end_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"\xff"
    for number in [0x32, 0x2A, 0x0A] * 700 + [0x3A]:  # graph of an attribute of a node of a graph ...
        size, length = len(deep), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        deep = bytes([number]) + length + bytes([size]) + deep
    path = hostile.make(tmp_path, "deep", deep)
    start = time.process_time()
    with pytest.raises(ArtifactError, match="broken at byte"):
        files_of(path)
    path.write_bytes(b"\x08\x00" * 5000)
    monkeypatch.setattr(external_data, "MAX_FIELDS", 4000)
    with pytest.raises(ArtifactError, match=r"broken at byte 8,000 of 10,000 \(more than 4,000 fields\)"):
        files_of(path)
    assert time.process_time() - start < 2


def test_weights_inside_are_not_read(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros(4_000_000, np.float32), "w")
    path = hostile.make(tmp_path, "m", hostile.model([hostile.ADD], [hostile.value("x", [1])], (weight,)))
    start = time.process_time()
    assert files_of(path) == (path,)
    assert time.process_time() - start < 0.5
