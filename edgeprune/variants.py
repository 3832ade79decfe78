"""A float32 ONNX file in another precision, seen to stay close to it: half floats, or 8-bit integers."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeprune import __version__
from edgeprune.artifact import ACCURACIES, Artifact, load_artifact
from edgeprune.data import Data
from edgeprune.errors import ExportError, UsageError
from edgeprune.half_floats import halve, refuse_overflow
from edgeprune.onnx_files import data_facts, serialized, strip_notes, with_facts, write_artifact
from edgeprune.onnx_macs import macs_by_node
from edgeprune.parity import (
    Inputs,
    OnnxNetwork,
    Parity,
    accuracy_facts,
    difference,
    first_line,
    random_inputs,
    real_images,
)
from edgeprune.precision import precision_of
from edgeprune.quantization import INT8, calibration_images, quantize, sizes_of

PROBLEM = "could not convert the ONNX file"
PACKAGES = ("onnx", "onnxruntime")
CALIBRATION_IMAGES = 512
RANGE_IMAGES = 64
TOLERANCES = {"fp16": 0.02, "int8": 0.5}
"""Largest difference between variant and float32 file, as a share of the largest output, that is let through.

Half floats keep 11 bits; a ResNet-20 differs by 0.0005. Integers of 8 bits move single outputs by a tenth of
the largest one and still name the same class on 99 of 100 images; beyond a half it is another network.
"""


NO_FP16 = {"XnnpackExecutionProvider": "its half-precision convolutions return wrong numbers (1.21)"}


def check_precision(precision: str, provider: str) -> None:
    """Refuse a precision that a provider cannot run.

    Raises:
        UsageError: It cannot, or this version has no recipe for it.
    """
    problem = f"could not convert to {precision}"
    if precision not in TOLERANCES:
        raise UsageError(problem, where="precision", value=repr(precision), expected=" or ".join(TOLERANCES))
    if precision == "int8" and provider not in INT8:
        raise UsageError(
            problem,
            where="provider",
            value=f"{provider}, for which there is no recipe",
            expected=f"one of {', '.join(INT8)}",
            hint="Quantize the file with the provider's own tools, or take fp16.",
        )
    if precision == "fp16" and provider in NO_FP16:
        raise UsageError(
            problem,
            where="provider",
            value=f"{provider}: {NO_FP16[provider]}",
            expected="another provider",
            hint='Take precision = "int8" or "fp32".',
        )


def convert(
    artifact: Artifact | Path | str,
    path: Path | str,
    *,
    precision: str,
    provider: str = "CPUExecutionProvider",
    data: Data | None = None,
    images: int = CALIBRATION_IMAGES,
    tolerance: float | None = None,
) -> Artifact:
    """Write a float32 ONNX file as ``fp16`` or ``int8``, with a sidecar, if it stays close to the original.

    Inputs and outputs stay float32. The same file, data and versions give the same bytes.

    The sidecar's ``parity_error`` of a variant is its largest difference to the float32 file, as a share of
    the largest output; ``accuracy`` is measured anew by onnxruntime's CPU provider. That provider computes
    much of an fp16 network in float32, so activations that a half float cannot hold are looked for in the
    float32 file.

    Args:
        artifact: The float32 file, with one float input if there are data.
        path: Where the variant goes; its sidecar goes to ``<path>.json``.
        precision: ``"fp16"`` or ``"int8"``.
        provider: Execution provider that will run it: a key of ``INT8`` for int8.
        data: Calibration images (``data.calib``), real images for the comparison (``data.val``), and the
            accuracy on ``data.val`` and ``data.test``. int8 needs them; fp16 without them is compared on
            random inputs, and its accuracy stays unknown.
        images: Calibration images, at most.
        tolerance: None: ``TOLERANCES``.

    Returns:
        The variant and its facts; ``provenance["precision"]`` tells how it was made, and of what.

    Raises:
        UsageError: The precision is not for the provider, or an argument is wrong.
        ArtifactError: The file or its sidecar is broken.
        DataError: There are no calibration images, or they do not fit the network.
        ExportError: The file is no float32 network, a half float cannot hold its numbers, or the variant
            differs too much. ``path`` is then left as it was.

    Example:
        >>> convert("slim.onnx", "slim.int8.onnx", precision="int8", data=data).accuracy  # doctest: +SKIP
        {'val': 0.91, 'test': 0.9}
    """
    check_precision(precision, provider)
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    for name, value in (("images", images), ("tolerance", limit)):
        if not value > 0:
            raise UsageError(PROBLEM, where=name, value=value, expected="a number above 0")
    source = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    path = Path(path)
    if path.resolve() == source.path.resolve():
        raise UsageError(PROBLEM, where="path", value=f"{path}, the float32 file itself", expected="another")
    graph = _loaded(source)
    batch = _batch(graph)
    original = OnnxNetwork(serialized(graph), batch)
    if precision == "int8":
        calibration = calibration_images(data, graph, images)
        variant = quantize(graph, INT8[provider], calibration, batch)
        checks: list[tuple[str, Inputs]] = []  # on inputs of another kind the calibrated ranges say nothing
    else:
        checks = list(random_inputs(_zeros(graph)))
        calibration = calibration_images(data, graph, RANGE_IMAGES) if data is not None else []
        refuse_overflow(graph, [*checks, *(("calibration images", (image,)) for image in calibration)], batch)
        variant = halve(graph)
    strip_notes(variant)
    variant.producer_name, variant.producer_version = "edgeprune", __version__
    payload = serialized(variant)
    network = OnnxNetwork(payload, batch)
    batches = real_images(data.val) if data is not None else []
    parity = _close_enough(_compared(original, network, checks, batches), limit, precision)
    before = _accuracies_of(source) if source.accuracy else accuracy_facts(original, data)
    how: dict[str, Any] = {}
    if precision == "int8":
        how = {**asdict(INT8[provider]), "calibration": "min-max", "images": sum(map(len, calibration))}
    facts = replace(
        source,
        path=path,
        sha256="",
        size_bytes=0,
        input_shape=source.input_shape or tuple(sizes_of(graph.graph.input[0])),
        parity_error=parity.error,
        **accuracy_facts(network, data),
        provenance={
            **source.provenance,
            **data_facts(data),
            "macs_by_node": macs_by_node(variant),
            "precision": {
                "name": precision,
                "provider": provider,
                **how,
                "source": {
                    "sha256": source.sha256,
                    "size_bytes": source.size_bytes,
                    "parity_error": source.parity_error,
                    **before,
                },
            },
            "parity": {
                "against": "the float32 file",
                "tolerance": limit,
                "real_images": parity.real_images,
                "argmax_agreement": parity.argmax_agreement,
            },
            "versions": {
                **source.provenance.get("versions", {}),
                "edgeprune": __version__,
                **{package: version(package) for package in PACKAGES},
            },
        },
    )
    whole = with_facts(variant, facts)
    made = replace(facts, sha256=hashlib.sha256(whole).hexdigest(), size_bytes=len(whole))
    write_artifact(made, whole)
    return made


# --- the float32 file ---------------------------------------------------------------------------------------


def _loaded(source: Artifact) -> onnx.ModelProto:
    """The network without its metadata, which onnxruntime's tools stumble over."""
    found = precision_of(source)
    if found not in (None, "fp32"):
        raise ExportError(PROBLEM, where=str(source.path), value=f"{found} already", expected="float32")
    try:
        graph = onnx.load(source.path)
        onnx.checker.check_model(graph)
    except Exception as error:
        value = f"not a file that onnx can read ({first_line(error)})"
        raise ExportError(PROBLEM, where=str(source.path), value=value) from None
    strip_notes(graph)
    constants = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in constants]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    return graph


def _accuracies_of(source: Artifact) -> dict[str, Any]:
    return {name: getattr(source, name) for name in ACCURACIES}


def _batch(graph: onnx.ModelProto) -> int | None:
    sizes = sizes_of(graph.graph.input[0])
    return sizes[0] if sizes and sizes[0] > 0 else None


def _zeros(graph: onnx.ModelProto) -> Inputs:
    found = []
    for value in graph.graph.input:
        sizes = [1 if axis == 0 and size < 0 else size for axis, size in enumerate(sizes_of(value))]
        if min(sizes, default=0) < 1:
            text = f"open in '{value.name}' beyond its batch"
            raise ExportError(PROBLEM, where="the input", value=text, expected="fixed sizes")
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found.append(torch.from_numpy(np.zeros(sizes, kind)))
    return tuple(found)


# --- is it still the same network? --------------------------------------------------------------------------


def _compared(
    original: OnnxNetwork, variant: OnnxNetwork, checks: list[tuple[str, Inputs]], images: list[torch.Tensor]
) -> Parity:
    """Run both on every input."""
    worst, agree = ("", -1.0), []
    for text, inputs in checks + [(f"real images (batch {i})", (batch,)) for i, batch in enumerate(images)]:
        ours, theirs = original(inputs), variant(inputs)
        found = difference([torch.from_numpy(array) for array in ours], theirs)
        worst = max(worst, (text, found), key=lambda one: one[1])
        if text.startswith("real") and ours[0].ndim > 1:
            agree.append(theirs[0].argmax(1) == ours[0].argmax(1))
    share = float(np.concatenate(agree).mean()) if agree else None
    return Parity(worst[1], worst[0], sum(map(len, images)), share)


def _close_enough(parity: Parity, limit: float, precision: str) -> Parity:
    if not parity.error <= limit:
        raise ExportError(
            f"could not convert to {precision}",
            where="the largest difference to the float32 file",
            value=f"{parity.error:.2g} of the largest output, on {parity.worst}",
            expected=f"at most {limit:g}",
            hint="Nothing was written; if its accuracy is all that counts, raise the tolerance.",
        )
    return parity
