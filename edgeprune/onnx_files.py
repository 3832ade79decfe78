"""An ONNX graph as bytes, the facts in its metadata, and its place on the disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import onnx

from edgeprune.artifact import Artifact
from edgeprune.data import Data
from edgeprune.errors import ExportError
from edgeprune.files import replacing

MAX_BYTES = 2**31 - 1
"""An ONNX file is one protobuf message, which ends here."""

PROBLEM = "could not export the network"


def strip_notes(message: Any) -> None:
    """Remove notes in place, all the way down: they hold stack traces with this machine's paths."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "DESCRIPTOR") else value:
                strip_notes(item)


def serialized(graph: onnx.ModelProto) -> bytes:
    """The bytes of the file, the same for the same graph."""
    size = graph.ByteSize()
    if size > MAX_BYTES:
        raise ExportError(PROBLEM, where="the ONNX file", value=f"{size} bytes", expected=f"<= {MAX_BYTES}")
    payload: bytes = graph.SerializeToString(deterministic=True)
    return payload


def data_facts(data: Data | None) -> dict[str, Any]:
    """Which data were used, without the folder that they lie in."""
    if data is None:
        return {}
    return {
        "data": {"name": data.name.partition(":")[0], "identity": data.identity},
        "normalization": {"mean": list(data.normalization.mean), "std": list(data.normalization.std)},
    }


def with_facts(graph: onnx.ModelProto, facts: Artifact) -> bytes:
    """The bytes of the file, with the sidecar's facts under the same names, as JSON, in its metadata.

    Top-5 and the accuracy of single classes are left to the sidecar.
    """
    values = asdict(facts)
    for of_the_file_itself in ("path", "sha256", "size_bytes"):
        del values[of_the_file_itself]
    # With a thousand classes these take more bytes than a small network: they are for the sidecar alone.
    source = values["provenance"].get("precision", {}).get("source", {})
    for long in ("accuracy_top5", "accuracy_by_class"):
        del values[long]
        source.pop(long, None)
    try:
        texts = {name: json.dumps(value, sort_keys=True, allow_nan=False) for name, value in values.items()}
    except (TypeError, ValueError) as reason:
        raise ExportError(PROBLEM, where="provenance", value=reason, expected="JSON values") from None
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    onnx.helper.set_model_props(whole, texts)
    return serialized(whole)


def write_artifact(artifact: Artifact, payload: bytes) -> None:
    """Put the file in its place, then its sidecar.

    The old sidecar goes first: a process killed in between leaves a file without facts, never one with the
    facts of another.
    """
    try:
        with replacing(artifact.path) as temporary:
            temporary.write_bytes(payload)
            artifact.sidecar.unlink(missing_ok=True)
        artifact.write_sidecar()
    except OSError as reason:
        raise ExportError(
            "could not write the ONNX file",
            where=str(artifact.path),
            value=reason.strerror or reason,
            expected="a path that can be written",
        ) from None
