"""Small ONNX networks with random weights, and random images for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.data import Data, Normalization


@dataclass
class Images:
    """Random images in batches of 8."""

    samples: int
    shape: tuple[int, ...] = (3, 8, 8)

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.samples)
        for start in range(0, self.samples, 8):
            count = min(8, self.samples - start)
            images = torch.randn(count, *self.shape, generator=generator)
            yield images, (images[:, 0].mean((1, 2)) > 0).long()

    def __len__(self) -> int:
        return -(-self.samples // 8)

    def set_epoch(self, epoch: int) -> None:
        pass


def data_of(calib: int = 20, shape: tuple[int, ...] = (3, 8, 8)) -> Data:
    loaders = [Images(count, shape) for count in (8, 30, 40, calib)]
    return Data(
        "random", *loaders, torch.zeros(1, *shape), tuple("0123456789"), Normalization(), "ab"  # type: ignore[arg-type]
    )  # fmt: skip


def network(
    path: Path, *, batch: int | str = 1, scale: float = 1.0, tiny: float = 1.0, last: float = 0.3
) -> Artifact:
    """Convolutions (plain, grouped, depthwise), residual, pooling, Gemm. ``tiny`` scales one channel."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int, by: float = 0.3) -> None:
        weights[name] = by * rng.standard_normal(shape, dtype=np.float32)

    weights: dict[str, Any] = {}
    weight("w0", 8, 3, 3, 3)
    weight("b0", 8)
    weight("w1", 8, 4, 3, 3)
    weight("w2", 8, 1, 3, 3)
    weight("w3", 8, 8, 1, 1)
    weight("w4", 10, 8, by=last)
    weight("b4", 10)
    weights["w0"] *= scale
    weights["w1"][0] *= tiny
    conv = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["input", "w0", "b0"], ["c0"], name="c0", **conv),
        helper.make_node("Relu", ["c0"], ["r0"], name="r0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="c1", group=2, **conv),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="c2", group=8, **conv),
        helper.make_node("Conv", ["c2", "w3"], ["c3"], name="c3", kernel_shape=[1, 1]),
        helper.make_node("Add", ["c3", "r0"], ["a"], name="a"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["output"], name="g", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 10])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return load_artifact(path)


def outputs(path: Path, images: Tensor) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None].numpy()})[0] for image in images])
