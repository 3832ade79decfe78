"""The worker alone: in a process of its own where that matters, its logic in this one where it does not."""

from __future__ import annotations

import ast
import gc
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.runners.local import WORKER
from edgeprune.runners.worker import (
    common,
    environment,
    jobs,
    latency,
    memory,
    placement,
    providers,
    session,
)

JOB = {"provider": common.CPU, "provider_options": {}, "threads": 1, "input": None}


def _value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(path: Path, nodes: list[Any], inputs: list[Any], weights: tuple[Any, ...] = ()) -> Path:
    """A model with the output y, loadable by onnxruntime 1.21."""
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _gemm(path: Path, width: int) -> Path:
    """One weight of width x width in float32."""
    weight = numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    return _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [_value("x", [1, width])], (weight,))


def _run(job: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(JOB | job),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


# --- the script itself --------------------------------------------------------------------------------------


def test_worker_is_self_contained() -> None:
    imported = set()
    files = sorted(WORKER.glob("*.py"))
    assert len(files) > 5
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(file.read_text())) for file in files):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0] if node.module and not node.level else "__future__")
            assert node.level <= 1  # nothing above its folder
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            imported.add(ast.literal_eval(node.args[0]))
    plugins = {"onnxruntime_qnn", "onnxruntime_ep_webgpu"}  # looked for only if a job asks for them
    assert imported - sys.stdlib_module_names - {"__future__"} == {"numpy", "onnxruntime"} | plugins


def test_worker_runs_from_any_folder(tmp_path: Path) -> None:
    shutil.copytree(WORKER, tmp_path / "any name", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", str(tmp_path / "any name")]
    done = subprocess.run(command, input='{"job": "environment"}', capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["python"] == platform.python_version()


def test_onnxruntime_reports_nothing_and_has_no_thread_for_it(tmp_path: Path) -> None:
    program = (
        "import os, sys, pathlib; sys.path.insert(0, sys.argv[1]); "
        "from worker import common; from worker.session import warm_library; warm_library(); "
        "tasks = pathlib.Path('/proc/self/task'); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'], len(list(tasks.iterdir())) if tasks.is_dir() else 1)"
    )
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    variables["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", program, str(WORKER.parent)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == ["1", "1"]


def test_warm_model_is_what_its_comment_says() -> None:
    def shape(name: str, *sizes: int) -> Any:
        return helper.make_tensor(name, TensorProto.INT64, [len(sizes)], sizes)

    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["w"]),
        helper.make_node("ConstantOfShape", ["d"], ["v"]),
        helper.make_node("ConstantOfShape", ["f"], ["m"]),
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"], pads=[1] * 4, group=16),
        helper.make_node("Add", ["b", "c"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "m"], ["y"]),
    ]
    shapes = [shape("s", 16, 16, 3, 3), shape("d", 16, 1, 3, 3), shape("f", 16, 10)]
    inputs, outputs = [_value("x", [1, 16, 8, 8])], [_value("y", [1, 10])]
    graph = helper.make_graph(nodes, "warm", inputs, outputs, shapes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    assert onnx.load_from_string(session.WARM_MODEL) == model


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from /a b/c.onnx failed:Protobuf failed.",
         "Protobuf failed"),
        ("[ONNXRuntimeError] : 1 : FAIL : /src/core/graph.cc:12 void f(int, Node&) No such op", "No such op"),
        ("Exception during initialization: tensor.cc:4 Check Out of bounds", "Out of bounds"),
        ("", "ValueError"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)  # fmt: skip
def test_plain_text_of_onnxruntime_errors(text: str, plain: str) -> None:
    assert common.plain(ValueError(text)) == plain


# --- jobs in a process of their own -------------------------------------------------------------------------


def test_environment_job() -> None:
    status, answer = _run({"job": "environment"})
    assert status == 0
    assert common.CPU in answer["providers"]
    assert answer["cpu"]
    assert answer["cores"] >= 1


def test_latency_job_times_both_models(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    models = [
        str(_gemm(tmp_path / "a.onnx", 64)),
        str(_save(tmp_path / "b.onnx", relu, [_value("x", ["N", 64])])),
    ]
    status, answer = _run({"job": "latency", "models": models, "runs": 20, "min_runs": 1, "seconds": 9.0})
    assert status == 0
    for model in answer["models"]:
        assert len(model["samples_ns"]) == 20
        assert min(model["samples_ns"]) > 0
        assert min(model["load_ns"], model["first_ns"]) > 0


def test_latency_job_binds_every_type_of_output(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING),
        helper.make_node("SplitToSequence", ["x"], ["z"], axis=0),
        helper.make_node("Shape", ["x"], ["k"]),
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("y", "z", "k")]
    graph = helper.make_graph(nodes, "g", [_value("x", [2, 3])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    job = {"job": "latency", "runs": 10, "min_runs": 1, "seconds": 1.0}
    assert _run(job | {"models": [str(tmp_path / "m.onnx")]})[0] == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_job_sees_the_weights(tmp_path: Path, threads: int) -> None:
    large, small = _gemm(tmp_path / "large.onnx", 2048), _gemm(tmp_path / "small.onnx", 64)
    weights_bytes = 2048 * 2048 * 4
    found = [
        _run({"job": "memory", "models": [str(path)], "threads": threads}, MALLOC_MMAP_THRESHOLD_="65536")[1]
        for path in (large, large, small)
    ]
    assert 0.95 * weights_bytes < found[0]["loaded_bytes"] < 1.3 * weights_bytes
    assert found[0]["loaded_bytes"] <= found[0]["load_peak_bytes"] <= found[0]["peak_bytes"]
    assert abs(found[0]["peak_bytes"] - found[1]["peak_bytes"]) < 1e6
    assert found[2]["peak_bytes"] < 1e6
    assert "MALLOC_MMAP_THRESHOLD_=65536" in found[0]["method"]
    assert found[0]["why"] is None
    assert found[0]["arena"] is None, "it was not asked for"
    assert "only CUDA" in found[0]["device"]["why"]


@pytest.mark.parametrize("profile", [False, True])
def test_placement_job_counts_nodes_by_provider(tmp_path: Path, profile: bool) -> None:
    path = _gemm(tmp_path / "m.onnx", 8)
    status, answer = _run({"job": "placement", "models": [str(path)], "profile": profile})
    assert status == 0
    assert answer == {
        "source": "profile" if profile else "assignment",
        "nodes": {common.CPU: 1},
        "left_to_cpu": [],
        "assigned": {common.CPU: [[answer["assigned"][common.CPU][0][0], "MatMul"]]},
        "partitions": 1,
        "functional_only": None,
        "inputs": [{"name": "x", "type": "tensor(float)", "shape": [1, 8]}],
    }
    assert list(tmp_path.iterdir()) == [path], "a profile was left behind"


def test_absent_provider_names_what_is_there(tmp_path: Path) -> None:
    path = _gemm(tmp_path / "m.onnx", 8)
    status, answer = _run({"job": "placement", "models": [str(path)], "provider": "XnnpackExecutionProvider"})
    assert status == 3
    assert answer["error"]["kind"] == "provider"
    assert "absent from onnxruntime" in answer["error"]["message"]
    assert common.CPU in answer["error"]["message"]


# --- logic in this process ----------------------------------------------------------------------------------


class FakeMachine:
    """Two models on a clock that moves only when one of them runs: a takes 3 ticks, b takes 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0, ""
        monkeypatch.setattr(latency, "warm_library", lambda: None)
        monkeypatch.setattr(latency, "open_timed", self.open)
        told = SimpleNamespace(so_far=lambda: {"steal_share": 0.5})
        monkeypatch.setattr(latency, "Disturbance", lambda: told)
        monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: self.now)

    def open(self, _: Any, model: str) -> tuple[Any, dict[str, int]]:
        def run() -> None:
            self.now += 3 if model == "a" else 1
            self.calls += model

        return run, {"load_ns": 7, "first_ns": 8}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMachine]:
    yield FakeMachine(monkeypatch)
    gc.enable()


def test_latency_interleaves_abba_and_throws_the_first_run_of_a_turn_away(machine: FakeMachine) -> None:
    answer = latency.latency(JOB | {"models": ["a", "b"], "runs": 20, "min_runs": 1, "seconds": 1.0})
    turn = latency.BLOCK + 1
    warm_up = "a" * common.WARM_UP + "b" * common.WARM_UP
    assert machine.calls == warm_up + 2 * ("a" * turn + "b" * turn + "b" * turn + "a" * turn)
    assert answer == {
        "models": [
            {"load_ns": 7, "first_ns": 8, "samples_ns": [3] * 20},
            {"load_ns": 7, "first_ns": 8, "samples_ns": [1] * 20},
        ],
        "machine": {"steal_share": 0.5},
    }
    assert not gc.isenabled()


@pytest.mark.parametrize(
    ("seconds", "min_runs", "samples"),
    [(1.0, 1, 50), (60e-9, 1, 20), (60e-9, 13, 20), (60e-9, 21, 30), (0.0, 1000, 50)],
)
@pytest.mark.usefixtures("machine")
def test_latency_stops_in_time_but_not_before_the_least(seconds: float, min_runs: int, samples: int) -> None:
    job = {"models": ["a", "b"], "runs": 50, "min_runs": min_runs, "seconds": seconds}
    answer = latency.latency(JOB | job)
    assert [len(model["samples_ns"]) for model in answer["models"]] == [samples, samples]


@pytest.mark.usefixtures("machine")
def test_latency_of_one_model() -> None:
    answer = latency.latency(JOB | {"models": ["b"], "runs": 10, "min_runs": 1, "seconds": 1.0})
    assert [model["samples_ns"] for model in answer["models"]] == [[1] * 10]


def test_memory_without_proc_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "first_match", lambda *_: "")
    answer = memory.memory(JOB | {"models": [str(_gemm(tmp_path / "m.onnx", 8))]})
    assert answer["peak_bytes"] is answer["load_peak_bytes"] is answer["method"] is None
    assert "no /proc" in answer["why"]


def _partial(*providers: str) -> Any:
    """A session whose nodes went to these providers."""
    parts = [
        SimpleNamespace(ep_name=by, get_nodes=lambda n=n: [SimpleNamespace(name=f"n{n}", op_type="Relu")])
        for n, by in enumerate(providers)
    ]
    return SimpleNamespace(
        get_inputs=lambda: [],
        run=lambda *_: [],
        get_provider_graph_assignment_info=lambda: parts,
        end_profiling=lambda: list(providers),
    )


@pytest.fixture
def _profiled_as_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of a fake session names the same providers in the same order."""
    monkeypatch.setattr(placement, "profiled_nodes", lambda order: [(by, "", "Relu") for by in order])


@pytest.mark.usefixtures("_profiled_as_assigned")
def test_nodes_left_to_the_cpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        placement, "open_session", lambda *_: _partial("NewProvider", common.CPU, "NewProvider")
    )
    answer = placement.placement(JOB | {"models": ["m"], "provider": "NewProvider"})
    assert answer["nodes"] == {"NewProvider": 2, common.CPU: 1}
    assert answer["left_to_cpu"] == [{"name": "n1", "op_type": "Relu"}]
    assert answer["assigned"]["NewProvider"] == [["n0", "Relu"], ["n2", "Relu"]]
    assert answer["partitions"] == 2


@pytest.mark.usefixtures("_profiled_as_assigned")
def test_a_provider_that_took_no_node_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "open_session", lambda *_: _partial(common.CPU, common.CPU))
    with pytest.raises(common.Fault, match="listed, but took none of the 2 nodes of m") as caught:
        placement.placement(JOB | {"models": ["m"], "provider": "CUDAExecutionProvider"})
    assert caught.value.kind == "provider"


@pytest.mark.parametrize("sound", [True, False])
def test_who_is_at_fault_when_a_model_does_not_load(monkeypatch: pytest.MonkeyPatch, sound: bool) -> None:
    def load(*_: Any, providers: list[Any], **__: Any) -> None:
        if not sound or providers != [common.CPU]:
            raise RuntimeError("no such kernel")

    fake = SimpleNamespace(
        __version__="1.30", InferenceSession=load, get_available_providers=lambda: ["NewProvider", common.CPU]
    )
    monkeypatch.setattr(session, "ort", fake)
    monkeypatch.setattr(providers, "ort", fake)
    expected = (
        "unable to load m, which the CPU can" if sound else "not a model that onnxruntime 1.30 can load"
    )
    with pytest.raises(common.Fault, match=rf"{expected} \(no such kernel\)") as caught:
        session.open_session(JOB | {"provider": "NewProvider"}, "m", None)
    assert caught.value.kind == ("provider" if sound else "model")


def test_several_threads_spin_and_one_does_not() -> None:
    def entry(job: dict[str, Any], key: str) -> str:
        return str(session.session_options(JOB | job).get_session_config_entry(f"session.{key}"))

    assert entry({}, "intra_op.allow_spinning") == "0"
    assert entry({"threads": 3}, "intra_op.allow_spinning") == "1"
    assert entry({"threads": 3}, "dynamic_block_base") == "4"
    assert session.session_options(JOB | {"threads": 3}).intra_op_num_threads == 3
    own_pool = {"threads": 3, "provider": common.XNNPACK}
    assert session.session_options(JOB | own_pool).intra_op_num_threads == 1


def test_missing_onnxruntime_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "IMPORT_ERROR", ImportError("No module named 'onnxruntime'"))
    answer, status = jobs.answer({"job": "environment"})
    assert status == 3
    assert answer["error"]["kind"] == "environment"
    assert "No module named 'onnxruntime'" in answer["error"]["message"]
    assert "onnxruntime>=1.21" in answer["error"]["hint"]


def test_old_onnxruntime_is_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.ort, "__version__", "1.9.0")
    assert "too old, with onnxruntime 1.9.0" in jobs.answer({"job": "environment"})[0]["error"]["message"]


def test_a_bug_in_the_worker_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    answer, status = jobs.answer({"job": "placement"})
    assert status == 3
    assert answer["error"] == {"kind": "worker", "message": "KeyError: 'models'", "hint": "", "model": ""}
    assert "Traceback" in capsys.readouterr().err
