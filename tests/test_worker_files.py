"""Broken and hostile model files: each is one clear error of the worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.runners.local import WORKER
from edgeprune.runners.worker import common


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(path: Path, nodes: list[Any], inputs: list[Any], weights: tuple[Any, ...] = ()) -> Path:
    """A model with the output y, loadable by onnxruntime 1.21."""
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _hostile(folder: Path) -> dict[str, Path]:
    """Broken files by what is wrong with them."""
    relu = helper.make_node("Relu", ["x"], ["y"])
    good = _save(folder / "good.onnx", [relu], [_value("x", [1, 3, 8, 8])]).read_bytes()
    for name, content in {
        "truncated": good[: len(good) // 2],
        "random": np.random.default_rng(0).bytes(5000),
        "text": b"hello",
        "empty": b"",
    }.items():
        (folder / f"{name}.onnx").write_bytes(content)
    (folder / "folder.onnx").mkdir()
    vast = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2**20], raw_data=b"0000")
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../secret.bin")
    (folder.parent / "secret.bin").write_bytes(bytes(16))
    add = helper.make_node("Add", ["x", "w"], ["y"])
    sizes = numpy_helper.from_array(np.array([10**6, 10**7]), "s")
    fill = [helper.make_node("Expand", ["x", "s"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    cycle = [helper.make_node("Add", ["x", "y"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    _save(folder / "vast input.onnx", [relu], [_value("x", [1, 3, 10**6, 10**6])])
    _save(folder / "open dimension.onnx", [relu], [_value("x", ["N", 3, "H", 8])])
    _save(folder / "vast weight.onnx", [add], [_value("x", [1])], (vast,))
    _save(folder / "vast inside.onnx", fill, [_value("x", [1])], (sizes,))
    _save(folder / "outside.onnx", [add], [_value("x", [4])], (outside,))
    _save(folder / "cycle.onnx", cycle, [_value("x", [1])])
    _save(folder / "unknown.onnx", [helper.make_node("Nonesuch", ["x"], ["y"])], [_value("x", [1])])
    _save(folder / "twice.onnx", [relu, relu], [_value("x", [1])])
    identity = helper.make_node("Identity", ["x"], ["y"])
    _save(folder / "string.onnx", [identity], [_value("x", [1], TensorProto.STRING)])
    return {path.stem: path for path in folder.glob("*.onnx")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", "Protobuf parsing failed"),
        ("random", "Protobuf parsing failed"),
        ("text", "Protobuf parsing failed"),
        ("empty", "not a model that onnxruntime"),
        ("folder", "not a model that onnxruntime"),
        ("vast input", r"of 1x3x1000000x1000000, 1\.2e\+04 GB"),
        ("vast weight", "not a model that onnxruntime"),
        ("vast inside", r"failing when it runs on x of 1 \(.*Failed to allocate"),
        ("outside", "not a model that onnxruntime .*escapes model directory"),
        ("cycle", "not acyclic"),
        ("unknown", "Nonesuch"),
        ("twice", "Duplicate definition of name"),
        ("string", r"input 'x' of type tensor\(string\)"),
        ("open dimension", r"open in dimension 'H' \(axis 2\) of its input 'x' of Nx3xHx8"),
    ],
)
def test_broken_file_is_one_clear_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "models").mkdir()
    path = _hostile(tmp_path / "models")[name]
    job = {"job": "placement", "models": [str(path)], "provider": common.CPU, "threads": 1}
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert done.returncode == 2
    assert (error["kind"], error["model"]) == ("model", str(path))
    assert re.search(message, error["message"])
    assert "Traceback" not in error["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_worker_cannot_take_the_machine_down() -> None:
    code = (
        "import os, resource, runpy, sys\n"
        "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit: print(resource.getrlimit(resource.RLIMIT_DATA)[0], "
        "open('/proc/self/oom_score_adj').read(), file=sys.stderr)"  # stdout is for the answer alone
    )
    command = [sys.executable, "-c", code, str(WORKER)]
    job = json.dumps({"job": "environment"})
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True, timeout=60)
    limit, first_to_go = map(int, done.stderr.split()[-2:])
    assert 0 < limit <= common.memory_bytes()
    assert first_to_go == 1000
