"""An ONNX file in onnxruntime's own format, which its builds for phones read without an ONNX parser."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.data import Data
from edgeprune.errors import ExportError, UsageError
from edgeprune.onnx_export import quiet
from edgeprune.onnx_files import write_artifact
from edgeprune.parity import OnnxNetwork, accuracy_facts, first_line
from edgeprune.precision import precision_of
from edgeprune.telemetry import switch_off

PROBLEM = "could not write the ORT file"


def to_ort_format(
    artifact: Artifact | Path | str,
    path: Path | str,
    *,
    provider: str = "CPUExecutionProvider",
    data: Data | None = None,
) -> Artifact:
    """Write an ONNX file as ORT file with a sidecar, by onnxruntime's own converter.

    For the CPU the graph is optimized once and for all; for another provider only as far as it still finds
    the operators that it takes. So is an fp16 network: a processor without half-precision kernels would make
    it float32 again while it optimizes.

    onnxruntime writes some tables in an order that differs from time to time: two ORT files of one ONNX file
    have the same size, not the same bytes. The sidecar names the ONNX file's hash.

    Args:
        artifact: The ONNX file, of any precision.
        path: Where the file goes, ``<name>.ort``.
        provider: Execution provider that will run it.
        data: Accuracy is measured on its ``val`` and ``test``; None: it is unknown, never carried over.

    Returns:
        The file and its facts: those of the ONNX file but for size, hash and accuracy.

    Raises:
        UsageError: ``path`` does not end in ``.ort``, by which onnxruntime knows the format.
        ArtifactError: The ONNX file or its sidecar is broken.
        ExportError: onnxruntime cannot convert the file.

    Example:
        >>> to_ort_format("slim.onnx", "slim.ort").path  # doctest: +SKIP
        PosixPath('slim.ort')
    """
    source = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    path = Path(path)
    if path.suffix != ".ort":
        raise UsageError(PROBLEM, where="path", value=path.name, expected="a name that ends in .ort")
    once = provider == "CPUExecutionProvider" and precision_of(source) != "fp16"
    style = "Fixed" if once else "Runtime"
    payload = _converted(source.path, style)
    network = OnnxNetwork(payload, OnnxNetwork(payload, None).fixed_batch)
    facts: dict[str, Any] = {"style": style.lower(), "provider": provider, "onnx_sha256": source.sha256}
    made = replace(
        source,
        path=path,
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        **accuracy_facts(network, data),
        provenance={**source.provenance, "ort_format": facts},
    )
    write_artifact(made, payload)
    return made


def _converted(path: Path, style: str) -> bytes:
    try:
        with quiet(), tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            switch_off()
            from onnxruntime.tools import convert_onnx_models_to_ort as tool

            model = Path(folder, "model.onnx")
            model.write_bytes(path.read_bytes())
            made = Path(folder, "made")
            tool.convert_onnx_models_to_ort(model, made, [tool.OptimizationStyle[style]])
            return next(made.glob("*.ort")).read_bytes()
    except Exception as error:
        text = f"{PROBLEM}: onnxruntime cannot convert {path.name} ({first_line(error)})"
        raise ExportError(text) from error
