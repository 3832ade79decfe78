"""From a torch network to an ONNX file that was seen to compute the same.

``export`` converts with ``torch.onnx`` (which folds batch norms into convolutions), simplifies with onnxsim
in a child process, compares onnxruntime with torch on random and real inputs, measures the accuracy of the
very file, and only then puts the file in its place.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import io
import logging
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune import __version__
from edgeprune.artifact import Artifact
from edgeprune.cost import count_macs, count_params
from edgeprune.data import Data
from edgeprune.errors import ExportError
from edgeprune.onnx_files import PROBLEM, data_facts, serialized, strip_notes, with_facts, write_artifact
from edgeprune.onnx_macs import macs_by_node
from edgeprune.parity import (
    BATCH_SIZES,
    Inputs,
    OnnxNetwork,
    Parity,
    accuracy_facts,
    compare,
    first_line,
    random_inputs,
    real_images,
)

OPSETS = range(18, 24)
"""What torch's exporter writes itself; asked for a lower opset it would silently keep 18."""

SIMPLIFY_TIMEOUT_S = 600.0
SIMPLIFY = """
import sys, onnx, onnxsim
model, _ = onnxsim.simplify(sys.argv[1])
onnx.save(model, sys.argv[2])
"""
"""Runs in a process of its own: onnxsim is native code, and a segmentation fault must not end the run."""

PACKAGES = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime")


def export(
    model: nn.Module,
    example: Tensor | Inputs,
    path: Path | str,
    *,
    data: Data | None = None,
    dynamic_batch: bool = False,
    opset: int = 18,
    tolerance: float = 1e-4,
    provenance: dict[str, Any] | None = None,
    verify_input: Tensor | Inputs | None = None,
) -> Artifact:
    """Write ``model`` as an ONNX file with a sidecar, both only if the file computes what torch computes.

    The network is exported as a float32 copy in eval mode; the caller's network is not touched. The same
    network, data and versions give the same bytes. Inputs are named ``input`` (or ``input_0``, ...) and
    outputs ``output`` (or ``output_0``, ..., ``output_<key>`` for a dict).

    Args:
        model: The network.
        example: One input (N, C, H, W), or a tuple of inputs that share their first axis N.
        path: Where the file goes; the sidecar goes to ``<path>.json``.
        data: Adds real images to the comparison, and the accuracy on the validation and test split.
        dynamic_batch: Leave N open. Otherwise the file takes the batch size of ``example``.
        opset: ONNX opset, one of OPSETS.
        tolerance: Largest |onnx - torch| / max |torch| that is let through.
        provenance: Further facts for the sidecar and the file, JSON-able; paths and times would make equal
            exports differ.
        verify_input: One more input for the comparison.

    Returns:
        The file and its facts. ``provenance["simplified"]`` is True, or the reason why the file is not
        simplified.

    Raises:
        ExportError: An argument is wrong, torch fails, or the file differs; ``path`` is left as it was.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        >>> export(net, torch.zeros(1, 3, 8, 8), "net.onnx").input_shape  # doctest: +SKIP
        (1, 3, 8, 8)
    """
    path = Path(path)
    inputs = _checked(example, path, opset, tolerance, data)
    network = _frozen_copy(model)
    graph = _converted(network, inputs, _output_names(network, inputs), dynamic_batch, opset)

    batch = None if dynamic_batch else len(inputs[0])
    checks = [("the example input", inputs), *random_inputs(inputs)]
    if verify_input is not None:
        checks.append(("verify_input", _as_inputs(verify_input)))
    images = real_images(data.val) if data is not None else []

    def checked(candidate: onnx.ModelProto) -> Parity:
        file = OnnxNetwork(serialized(candidate), batch)
        return _close_enough(compare(network, file, checks, images), tolerance)

    simple, simplified = _simplified(graph)
    try:
        parity = checked(simple or graph)
    except ExportError as refusal:
        if simple is None:
            raise
        simple, simplified = None, f"onnxsim's file: {str(refusal).removesuffix(refusal.hint).strip()}"
        parity = checked(graph)
    graph = simple or graph
    _refuse_unfolded(graph, simplified)

    facts = Artifact(
        path=path,
        sha256="",
        size_bytes=0,
        input_shape=(-1 if dynamic_batch else len(inputs[0]), *inputs[0].shape[1:]),
        macs=count_macs(network, inputs),
        params=count_params(network),
        parity_error=parity.error,
        **accuracy_facts(OnnxNetwork(serialized(graph), batch or 1), data),
        provenance={
            **(provenance or {}),
            **data_facts(data),
            "opset": opset,
            "dynamic_batch": dynamic_batch,
            "simplified": simplified,
            "macs_by_node": macs_by_node(graph),
            "parity": {
                "tolerance": tolerance,
                "batch_sizes": list(BATCH_SIZES),
                "real_images": parity.real_images,
                "argmax_agreement": parity.argmax_agreement,
            },
            "versions": {"edgeprune": __version__, **{package: version(package) for package in PACKAGES}},
        },
    )
    payload = with_facts(graph, facts)
    artifact = replace(facts, sha256=hashlib.sha256(payload).hexdigest(), size_bytes=len(payload))
    write_artifact(artifact, payload)
    return artifact


def _checked(example: Tensor | Inputs, path: Path, opset: int, tolerance: float, data: Data | None) -> Inputs:
    """The example as a tuple of inputs; every argument that can be judged beforehand is."""
    if path.is_dir():
        raise ExportError(PROBLEM, where="path", value=f"the folder {path}", expected="a file name")
    if opset not in OPSETS:
        rule = f"{OPSETS.start} to {OPSETS.stop - 1}"
        raise ExportError(PROBLEM, where="opset", value=opset, expected=rule)
    if not tolerance > 0:
        raise ExportError(PROBLEM, where="tolerance", value=tolerance, expected="a number above 0")
    inputs = _as_inputs(example)
    shapes = [tuple(tensor.shape) for tensor in inputs]
    if not shapes or not all(shape and shape[0] == shapes[0][0] > 0 for shape in shapes):
        rule = "inputs (N, ...) with the same N >= 1"
        raise ExportError(PROBLEM, where="example", value=f"of shape {shapes}", expected=rule)
    if data is not None and (len(inputs) > 1 or data.example.shape[1:] != inputs[0].shape[1:]):
        rule = f"one input like the images of the data, {tuple(data.example.shape)}"
        raise ExportError(PROBLEM, where="example", value=f"of shape {shapes}", expected=rule)
    return inputs


def _as_inputs(example: Tensor | Inputs) -> Inputs:
    tensors = (example,) if isinstance(example, Tensor) else tuple(example)
    return tuple((t.float() if t.is_floating_point() else t).detach().cpu() for t in tensors)


def _frozen_copy(model: nn.Module) -> nn.Module:
    """A float32 copy on the CPU in eval mode, so that nothing done here can reach the caller's network."""
    try:
        return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(f"{PROBLEM}: it cannot be copied ({first_line(error)})") from error


def _output_names(network: nn.Module, inputs: Inputs) -> list[str]:
    """Names of the outputs. This is the first run of the network: its faults show here."""
    try:
        with torch.no_grad():
            outputs = network(*inputs)
    except Exception as error:
        raise ExportError(f"{PROBLEM}: it fails on the example input ({first_line(error)})") from error
    leaves = tree_leaves(outputs)
    found = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
    if not found or not all(isinstance(shape, tuple) and shape[:1] == (len(inputs[0]),) for shape in found):
        rule = f"tensors (N, ...) with N = {len(inputs[0])}"
        raise ExportError(PROBLEM, where="its output", value=found, expected=rule)
    if isinstance(outputs, Tensor):
        return ["output"]
    keys = outputs if isinstance(outputs, dict) and len(outputs) == len(leaves) else range(len(leaves))
    return [f"output_{key}" for key in keys]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what torch's exporter prints, logs and warns: the file is judged by its outputs."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _converted(
    network: nn.Module, inputs: Inputs, output_names: list[str], dynamic_batch: bool, opset: int
) -> onnx.ModelProto:
    """The network as ONNX, batch norms folded, without the exporter's notes about its source."""
    shapes = None
    if dynamic_batch:
        # torch.export takes sizes 0 and 1 for constants, so the open axis is shown with 2.
        inputs = tuple(torch.cat([tensor[:1]] * 2) for tensor in inputs)
        axis, given = {0: torch.export.Dim("batch")}, inspect.signature(network.forward).bind(*inputs)
        shapes = tree_map(lambda _: axis, dict(given.arguments))  # the names' own: *inputs is a tuple
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                torch.export.export(network, inputs, dynamic_shapes=shapes, strict=False),
                dynamo=True,
                opset_version=opset,
                input_names=["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))],
                output_names=output_names,
                verbose=False,
            )
            assert program is not None  # only the TorchScript exporter returns None
            graph: onnx.ModelProto = program.model_proto
    except Exception as error:
        raise ExportError(
            f"{PROBLEM}: torch refuses {type(network).__name__} ({first_line(error)})",
            hint="Try a fixed batch size." if dynamic_batch else "",
        ) from error
    written = [entry.version for entry in graph.opset_import if not entry.domain]
    if written != [opset]:
        raise ExportError(PROBLEM, where="opset", value=opset, expected=f"{written[0]}, which torch wrote")
    strip_notes(graph)
    if dynamic_batch:
        _name_batch_axis(graph.graph)
    graph.producer_name, graph.producer_version = "edgeprune", __version__
    return graph


def _name_batch_axis(graph: onnx.GraphProto) -> None:
    """Call the open axis ``batch`` wherever torch's symbol for it stands."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dimension.dim_param)


def _simplified(graph: onnx.ModelProto) -> tuple[onnx.ModelProto | None, bool | str]:
    """The graph after onnxsim and True, or None and the reason why there is none."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(serialized(graph))
        # -P: a file called onnx.py in the working directory is not the onnx package.
        command = [sys.executable, "-P", "-c", SIMPLIFY, str(before), str(after)]
        try:
            child = subprocess.run(
                command, capture_output=True, text=True, timeout=SIMPLIFY_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return None, f"onnxsim took more than {SIMPLIFY_TIMEOUT_S:g} s"
        if child.returncode < 0:
            return None, f"onnxsim was killed by {signal.Signals(-child.returncode).name}"
        if child.returncode > 0:
            lines = child.stderr.strip().splitlines() or ["no message"]
            return None, f"onnxsim failed: {lines[-1].replace(folder, '')}"
        try:
            simple = onnx.load(after)
            strip_notes(simple)
            onnx.checker.check_model(simple, full_check=True)
        except Exception as error:
            return None, f"onnxsim wrote a file that onnx refuses ({first_line(error).replace(folder, '')})"
        return simple, True


def _close_enough(parity: Parity, tolerance: float) -> Parity:
    if not parity.error <= tolerance:
        raise ExportError(
            PROBLEM,
            where="the largest difference between onnxruntime and torch",
            value=f"{parity.error:.1e} of the largest output, on {parity.worst}",
            expected=f"at most {tolerance:g}",
            hint="Nothing was written; if the network is known to be badly scaled, raise the tolerance.",
        )
    return parity


def _refuse_unfolded(graph: onnx.ModelProto, simplified: bool | str) -> None:
    """Refuse a batch norm that could be part of the convolution before it.

    torch leaves one behind a convolution that is used twice; onnxsim folds that as well.
    """
    readers = Counter(name for node in graph.graph.node for name in node.input)
    readers.update(entry.name for entry in graph.graph.output)
    convolutions = {node.output[0] for node in graph.graph.node if node.op_type == "Conv"}
    for node in graph.graph.node:
        source = node.input[0] if node.input else ""
        if node.op_type == "BatchNormalization" and source in convolutions and readers[source] == 1:
            raise ExportError(
                f"{PROBLEM}: a batch norm stays behind its convolution", hint=f"Simplified: {simplified}."
            )
