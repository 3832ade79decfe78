"""Times of kernels: medians over inferences, from the real profile and from made-up ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.pipeline.explaining import profile_of
from edgeprune.runners.local import LocalRunner
from edgeprune.runners.worker.profiling import summary
from edgeprune.target import Runtime, Target
from tests.onnx_networks import network


def event(name: str, duration: int, kind: str = "Conv", **args: Any) -> dict[str, Any]:
    return {
        "cat": "Node", "name": f"{name}_kernel_time", "dur": duration,
        "args": {"op_name": kind, "provider": "CPUExecutionProvider", **args},
    }  # fmt: skip


def whole(duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "dur": duration}


def test_medians_leave_the_warm_up_out() -> None:
    times = [(900, 9), (50, 5), (30, 3), (40, 4), (400, 4)]
    events = [
        e for conv, relu in times for e in (event("c", conv), event("r", relu, "Relu"), whole(conv + relu))
    ]
    found = summary(events, 2)
    assert [(k["name"], k["op_type"], k["time_s"]) for k in found["kernels"]] == [
        ("c", "Conv", 40e-6), ("r", "Relu", 4e-6)
    ]  # fmt: skip
    assert found["inference_s"] == 44e-6
    # The control: with them the medians are others.
    assert summary(events, 0)["kernels"][0]["time_s"] == 50e-6


def test_a_kernel_that_runs_twice_in_an_inference_counts_twice() -> None:
    events = [e for k in range(4) for e in (event("loop", 10), event("loop", 5), whole(20))]
    assert summary(events, 1)["kernels"][0]["time_s"] == 15e-6


def test_tensors_of_a_kernel() -> None:
    events = [event("c", 1, activation_size="100", output_size="28"), event("d", 1), whole(1)]
    assert [kernel["tensor_bytes"] for kernel in summary(events, 0)["kernels"]] == [128, None]


def test_nothing_profiled() -> None:
    assert summary([{"cat": "Session", "name": "session_initialization", "dur": 3}], 5) == {
        "kernels": [], "inference_s": None
    }  # fmt: skip


def test_a_real_profile(tmp_path: Path) -> None:
    model = network(tmp_path / "a.onnx").path
    found = LocalRunner(Runtime()).run("profile", [model], runs=5)
    assert found["runs"] == 5
    kinds = [kernel["op_type"] for kernel in found["kernels"]]
    assert "Conv" in kinds
    assert all(kernel["time_s"] >= 0 for kernel in found["kernels"])
    assert sum(kernel["time_s"] for kernel in found["kernels"]) < found["inference_s"] * 1.5
    assert {kernel["provider"] for kernel in found["kernels"]} == {"CPUExecutionProvider"}


def test_the_larger_layer_takes_longer(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in
               (("small", (512, 16)), ("large", (512, 8192)))]  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"], name) for name in ("small", "large")]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 512])]
    outs = [onnx.ValueInfoProto(name=f"{name}_out") for name in ("small", "large")]
    graph = helper.make_graph(nodes, "g", values, outs, weights)
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    kernels = LocalRunner(Runtime()).run("profile", [path], runs=5)["kernels"]
    times = {kernel["name"]: kernel["time_s"] for kernel in kernels}
    assert times["large"] > 5 * times["small"]


@pytest.mark.parametrize("runner", ["browser", "adb"])
def test_runners_without_the_worker_say_so(tmp_path: Path, runner: str) -> None:
    runtime = Runtime(runner=runner, perf_test="x" if runner == "adb" else None)
    why = profile_of(tmp_path / "a.onnx", Target("t", 8, runtime, (), tmp_path / "t.toml", ""))
    assert isinstance(why, str)
    assert why.startswith(f"could not profile the network: runtime.runner is '{runner}'")
