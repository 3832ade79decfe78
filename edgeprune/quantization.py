"""Static quantization: a float32 ONNX graph with quantize and dequantize nodes, as its provider wants them.

Which integers it takes is the provider's affair:

- The CPU multiplies uint8 by int8. The weights take 7 bits, since an x86 processor without VNNI adds two
  products in 16 bits and saturates on more, and the accuracy measured here must hold there too. ResNet-20 on
  100 images, with VNNI against an emulated processor without: 8-bit weights move outputs by up to 29 % of
  the largest, 7-bit weights by nothing. The eighth bit is worth 0.1 pp (slim ResNet-20, 10,000 images).
- XNNPACK has kernels for int8 by int8 with a scale per channel; uint8 activations stay on the CPU.
- QNN's HTP wants uint8 activations and gets onnxruntime's own configuration for it. What is made for XNNPACK
  loads there as well, and computes nonsense: a ResNet-20 fell from 92 to 7 %.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from edgeprune.data import Data
from edgeprune.errors import DataError, ExportError
from edgeprune.onnx_export import quiet
from edgeprune.parity import first_line
from edgeprune.telemetry import switch_off

PROBLEM = "could not quantize the ONNX file"
OPEN_BATCH = 32
"""Images of one calibration run where the file's batch is open."""


@dataclass(frozen=True)
class Recipe:
    """How a provider wants a quantized network.

    Attributes:
        activations: ``"uint8"`` or ``"int8"``.
        weights: Likewise; always symmetric, and with a scale for each output channel.
        reduce_range: Weights take 7 bits.
        own_config: By onnxruntime's configuration for QNN.
    """

    activations: str
    weights: str = "int8"
    reduce_range: bool = False
    own_config: bool = False


INT8: dict[str, Recipe] = {
    "CPUExecutionProvider": Recipe("uint8", reduce_range=True),
    "XnnpackExecutionProvider": Recipe("int8"),
    "QNNExecutionProvider": Recipe("uint8", own_config=True),
}


def sizes_of(value: onnx.ValueInfoProto) -> list[int]:
    """Shape of an input; -1 where it is open."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]


def calibration_images(data: Data | None, graph: onnx.ModelProto, images: int) -> list[torch.Tensor]:
    """Batches of at most so many images of the calibration split."""
    problem = "could not calibrate"
    if data is None:
        raise DataError(
            problem, where="data", value="missing", expected="a data set",
            hint="int8 needs images to learn the ranges of the activations from: give data, or take fp16.",
        )  # fmt: skip
    found: list[torch.Tensor] = []
    for batch, _ in data.calib:
        found.append(batch[: images - sum(map(len, found))].float())
        if sum(map(len, found)) >= images:
            break
    if not found:
        raise DataError(problem, where="data.calib", value="empty", expected="at least one image")
    sizes = [sizes_of(value) for value in graph.graph.input]
    shape = list(found[0].shape[1:])
    if len(sizes) != 1 or len(sizes[0]) != len(shape) + 1 or any(
        size not in (-1, given) for size, given in zip(sizes[0][1:], shape, strict=True)
    ):  # fmt: skip
        rule = f"one input like the images, {shape} each"
        raise DataError(problem, where="the file's input", value=f"of shape {sizes}", expected=rule)
    return found


def quantize(
    graph: onnx.ModelProto, recipe: Recipe, calibration: list[torch.Tensor], batch: int | None
) -> onnx.ModelProto:
    """The network with quantize and dequantize nodes around what is to be computed in integers."""
    switch_off()
    with quiet():
        from onnxruntime import quantization as ort
        from onnxruntime.quantization.execution_providers import qnn
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    kinds = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
    types: dict[str, Any] = {
        "activation_type": kinds[recipe.activations],
        "weight_type": kinds[recipe.weights],
        "per_channel": True,
    }
    name = graph.graph.input[0].name

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.feeds = _feeds(name, calibration, batch)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    try:
        with quiet(), tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            if recipe.own_config:
                onnx.save(whole, before)
                if qnn.qnn_preprocess_model(before, after):
                    whole = onnx.load(after)
                    del whole.metadata_props[:]
            add_pre_process_metadata(whole)  # batch norms are folded already, which is what it stands for
            onnx.save(whole, before)
            if recipe.own_config:
                ort.quantize(before, after, qnn.get_qnn_qdq_config(before, Reader(), **types))
            else:
                ort.quantize_static(
                    before, after, Reader(), quant_format=ort.QuantFormat.QDQ,
                    reduce_range=recipe.reduce_range, **types,
                )  # fmt: skip
            found = onnx.load(after)
    except Exception as error:
        raise ExportError(f"{PROBLEM}: onnxruntime cannot quantize it ({first_line(error)})") from error
    if not any(node.op_type == "QuantizeLinear" for node in found.graph.node):
        hint = "It has no convolution or matrix product with stored weights."
        raise ExportError(f"{PROBLEM}: nothing in it can be quantized", hint=hint)
    return found


def _feeds(name: str, batches: list[torch.Tensor], batch: int | None) -> Iterator[dict[str, Any]]:
    """The images in pieces that the file takes; the last one is filled up with copies."""
    images = torch.cat(batches).numpy()
    step = batch or OPEN_BATCH
    for start in range(0, len(images), step):
        piece = images[start : start + step]
        if batch and len(piece) < batch:
            piece = np.concatenate([piece, *[piece[-1:]] * (batch - len(piece))])
        yield {name: piece}
