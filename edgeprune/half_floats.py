"""A float32 ONNX graph in half precision, refused where half floats cannot hold its numbers."""

from __future__ import annotations

import numpy as np
import onnx

from edgeprune.errors import ExportError
from edgeprune.onnx_export import quiet
from edgeprune.onnx_files import serialized
from edgeprune.parity import Inputs, OnnxNetwork, first_line
from edgeprune.telemetry import switch_off

PROBLEM = "could not convert to fp16"
LARGEST = 65504.0
LEAST = 2.0**-25
"""What is smaller rounds to 0; onnxruntime's converter would raise it to 2**-24."""


def halve(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The network in half precision between float32 inputs and outputs."""
    with quiet():
        switch_off()
        from onnxruntime.transformers.float16 import convert_float_to_float16

    rounded = onnx.ModelProto()
    rounded.CopyFrom(graph)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            kept = np.where(np.abs(values) < LEAST, np.float32(0), values)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept, tensor.name))
    try:
        with quiet():
            found: onnx.ModelProto = convert_float_to_float16(rounded, keep_io_types=True)
    except Exception as error:
        raise ExportError(f"{PROBLEM}: onnxruntime cannot halve it ({first_line(error)})") from error
    return found


def refuse_overflow(graph: onnx.ModelProto, checks: list[tuple[str, Inputs]], batch: int | None) -> None:
    """Refuse weights and activations that half floats cannot hold: they would be cut off or infinite."""

    def refuse(where: str, value: float) -> None:
        if not value <= LARGEST:
            rule = f"at most {LARGEST:g}, the largest half float"
            hint = "Scale the network down, or take int8 or fp32."
            raise ExportError(PROBLEM, where=where, value=f"{value:g}", expected=rule, hint=hint)

    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            refuse(f"the largest weight of '{tensor.name}'", float(np.abs(values).max(initial=0)))
    watched = onnx.shape_inference.infer_shapes(graph)
    floats = [
        value
        for value in watched.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    watched.graph.output.extend(floats)
    names = [value.name for value in watched.graph.output]
    network = OnnxNetwork(serialized(watched), batch)
    for text, inputs in checks:
        for name, array in zip(names, network(inputs), strict=True):
            if array.dtype == np.float32:
                refuse(f"the activation '{name}' on {text}", float(np.abs(array).max(initial=0)))
