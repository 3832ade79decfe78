"""What NNAPI and CoreML would take of a network, estimated from onnxruntime's tables. Needs onnx: host side.

No phone is asked: the tables know names of operators, fixed shapes and ranks. It is an upper bound; the
provider may still refuse a node for its values.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import ArtifactError
from edgeprune.telemetry import switch_off

LABEL = "estimated from operator tables"
PROVIDERS = {
    "NNAPI (legacy)": ("check_nnapi_partitions", ()),
    "CoreML NeuralNetwork": ("check_coreml_partitions", ("coreml_supported_neuralnetwork_ops.md",)),
    "CoreML MLProgram": ("check_coreml_partitions", ("coreml_supported_mlprogram_ops.md",)),
}
"""Name -> function of onnxruntime's usability checker, and the table that it reads."""


@dataclass(frozen=True)
class PartitionEstimate:
    """What one provider would take, estimated from operator tables.

    Attributes:
        provider: A key of ``PROVIDERS``.
        nodes: In the network, after onnxruntime's basic optimizations.
        supported: That the tables have.
        partitions: Runs of supported nodes: how often execution would go over to the provider.
        unsupported: Operators that the tables lack, sorted.
        dynamic: Nodes left out because a shape is open: these providers take fixed shapes alone.
        rank: Nodes left out because a tensor has more axes than the provider takes.
    """

    provider: str
    nodes: int
    supported: int
    partitions: int
    unsupported: tuple[str, ...]
    dynamic: int
    rank: int

    @property
    def text(self) -> str:
        """For people: ``"54 of 54 nodes in 1 partition"``."""
        text = f"{self.supported} of {self.nodes} nodes in {self.partitions} partition"
        text += "" if self.partitions == 1 else "s"
        if self.unsupported:
            text += f"; not {', '.join(self.unsupported)}"
        if self.dynamic:
            text += f"; {self.dynamic} nodes have an open shape, which it does not take"
        if self.rank:
            text += f"; {self.rank} nodes have a tensor of too many axes"
        return text


def estimate_partitions(path: Path | str) -> tuple[PartitionEstimate, ...]:
    """What NNAPI and CoreML would take of an ONNX file, from onnxruntime's tables; no device is asked.

    Raises:
        ArtifactError: onnx or onnxruntime cannot read the file.

    Example:
        >>> [estimate.text for estimate in estimate_partitions("slim.onnx")]  # doctest: +SKIP
        ['54 of 54 nodes in 1 partition', ...]
    """
    import onnx

    switch_off()
    from onnxruntime.tools.mobile_helpers import usability_checker
    from onnxruntime.tools.onnx_model_utils import optimize_model

    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, _quiet():
        try:
            optimized = Path(folder, "optimized.onnx")
            optimize_model(path, optimized, use_external_initializers=True)
            model = onnx.shape_inference.infer_shapes(onnx.load(optimized))
            found = {
                name: getattr(usability_checker, check)(model, True, *tables)
                for name, (check, tables) in PROVIDERS.items()
            }
        except Exception as reason:  # protobuf, onnx and onnxruntime have exceptions of their own
            lines = str(reason).strip().splitlines() or [type(reason).__name__]
            raise ArtifactError(
                "could not estimate partitions", where=str(path), value=f"unreadable ({lines[0][:200]})",
                expected="an ONNX file that onnxruntime can load",
            ) from None  # fmt: skip
    return tuple(_estimate(name, info) for name, info in found.items())


def _estimate(name: str, info: Any) -> PartitionEstimate:
    return PartitionEstimate(
        provider=name,
        nodes=int(info.num_nodes),
        supported=int(info.num_supported_nodes),
        partitions=int(info.num_partitions),
        unsupported=tuple(sorted(str(kind) for kind in info.unsupported_ops)),
        dynamic=int(info.nodes_unsupported_due_to_dynamic_input),
        rank=int(info.num_unsupported_nodes_due_to_rank),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The checker logs what it also returns."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
