"""Jobs carried to the worker, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.errors import ArtifactError, MeasurementError
from edgeprune.runners import RUNNERS, LocalRunner, runner_for
from edgeprune.runners.local import PACKAGES, worker_environment
from edgeprune.target import PROVIDERS, Runtime

RUNTIME = Runtime()


def _relu(path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _interpreter(folder: Path, script: str) -> LocalRunner:
    """A runner whose interpreter is a shell script."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return LocalRunner(replace(RUNTIME, python=str(path)), timeout_s=20)


def _answering(folder: Path, answer: dict[str, Any], status: int) -> LocalRunner:
    return _interpreter(folder, f"cat >/dev/null; echo {shlex.quote(json.dumps(answer))}; exit {status}")


def test_local_runner_does_a_job(tmp_path: Path) -> None:
    runner = runner_for(RUNTIME)
    assert runner.run("environment")["python"] == ".".join(map(str, sys.version_info[:3]))
    answer = runner.run("latency", [_relu(tmp_path / "a.onnx")], runs=10, min_runs=1, seconds=1.0)
    assert len(answer["models"][0]["samples_ns"]) == 10


def test_models_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _relu(tmp_path / "a.onnx")
    monkeypatch.chdir(tmp_path)
    assert runner_for(RUNTIME).run("placement", [Path("a.onnx")])["nodes"] == {"CPUExecutionProvider": 1}


def test_job_carries_the_runtime(tmp_path: Path) -> None:
    runtime = replace(RUNTIME, threads=3, input=(1, 3), provider_options={"a": "b"})
    runtime = replace(runtime, inputs={"mask": (1, 7)}, dims={"length": 7})
    echo = _interpreter(tmp_path, "cat")
    answer = replace(echo, runtime=replace(runtime, python=echo.runtime.python)).run("memory", [], extra=1)
    assert answer == {
        "job": "memory",
        "models": [],
        "provider": "CPUExecutionProvider",
        "provider_options": {"a": "b"},
        "threads": 3,
        "strict": False,
        "input": [1, 3],
        "inputs": {"mask": [1, 7]},
        "dims": {"length": 7},
        "extra": 1,
    }


def test_what_libraries_print_is_not_the_answer(tmp_path: Path) -> None:
    assert _interpreter(tmp_path, """cat >/dev/null; echo hello; echo '{"a": 1}'""").run("memory") == {"a": 1}


def test_environment_variables() -> None:
    inherited = {"PATH": "/bin", "PYTHONPATH": "/lib", "PYTHONHOME": "/home", "OMP_NUM_THREADS": "9"}
    own = worker_environment(replace(RUNTIME, threads=2), "latency", inherited)
    assert own["PYTHONPATH"] == "/lib"
    assert own["OMP_NUM_THREADS"] == "2"
    assert "MALLOC_MMAP_THRESHOLD_" not in own
    other = worker_environment(replace(RUNTIME, python="python3"), "memory", inherited)
    assert not [name for name in other if name.startswith("PYTHON")]
    assert other["PATH"] == "/bin"
    assert other["MALLOC_MMAP_THRESHOLD_"] == "65536"


def test_memory_job_runs_with_the_allocator_set(tmp_path: Path) -> None:
    method = runner_for(RUNTIME).run("memory", [_relu(tmp_path / "a.onnx")])["method"]
    assert method.endswith("MALLOC_MMAP_THRESHOLD_=65536")


# --- faults -------------------------------------------------------------------------------------------------


def test_broken_model_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(
        ArtifactError, match=r"could not run the ONNX file: .*broken.onnx is not a model"
    ) as caught:
        runner_for(RUNTIME).run("placement", [path])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "provider", ["CUDAExecutionProvider", "XnnpackExecutionProvider", "QNNExecutionProvider"]
)
def test_absent_provider_says_what_to_install(tmp_path: Path, provider: str) -> None:
    runner = runner_for(replace(RUNTIME, provider=provider))
    with pytest.raises(MeasurementError, match=f"{provider} is absent from onnxruntime") as caught:
        runner.run("placement", [_relu(tmp_path / "a.onnx")])
    assert caught.value.exit_code == 3
    assert PACKAGES[provider] in str(caught.value)


def test_packages_are_of_providers_that_a_target_can_name() -> None:
    assert set(PACKAGES) <= set(PROVIDERS)


def test_a_provider_without_a_package_still_has_a_hint(tmp_path: Path) -> None:
    runner = _answering(
        tmp_path, {"error": {"kind": "provider", "message": "gone", "hint": "", "model": ""}}, 3
    )
    rare = replace(runner, runtime=replace(runner.runtime, provider="RknpuExecutionProvider"))
    with pytest.raises(
        MeasurementError, match=r"RknpuExecutionProvider is gone.*build of onnxruntime for that device"
    ):
        rare.run("placement")


@pytest.mark.parametrize("python", ["/no/such/python", "/", __file__])
def test_no_interpreter(python: str) -> None:
    runner = LocalRunner(replace(RUNTIME, python=python))
    with pytest.raises(MeasurementError, match=f"could not start measuring: runtime.python is '{python}'"):
        runner.run("environment")


def test_interpreter_without_onnxruntime(tmp_path: Path) -> None:
    error = {
        "kind": "environment",
        "message": "unable to import what it needs (x)",
        "hint": "Install.",
        "model": "",
    }
    with pytest.raises(MeasurementError, match=r"python is unable to import what it needs \(x\)\. Install\."):
        _answering(tmp_path, {"error": error}, 3).run("environment")


def test_bug_of_the_worker(tmp_path: Path) -> None:
    error = {"kind": "worker", "message": "KeyError: 'x'", "hint": "", "model": ""}
    with pytest.raises(MeasurementError, match="could not measure memory: the worker is KeyError: 'x'"):
        _answering(tmp_path, {"error": error}, 3).run("memory")


@pytest.mark.parametrize("output", ["true", "echo no json", "echo '[1]'", "echo '{'"])
def test_no_answer(tmp_path: Path, output: str) -> None:
    runner = _interpreter(tmp_path, f"cat >/dev/null; {output}; echo SyntaxError: f-string >&2; exit 1")
    with pytest.raises(
        MeasurementError, match="ended with exit status 1 and no answer: SyntaxError: f-string"
    ):
        runner.run("latency")


def test_a_known_crash_is_named_and_noise_left_out(tmp_path: Path) -> None:
    noise = "echo 'a reason' >&2; echo 'Schema error: Trying to register' >&2; echo >&2; kill -SEGV $$"
    crashing = _interpreter(tmp_path, f"cat >/dev/null; {noise}")
    xnnpack = replace(crashing, runtime=replace(crashing.runtime, provider="XnnpackExecutionProvider"))
    with pytest.raises(
        MeasurementError, match=r"\(Segmentation fault\): a reason\..*crashes on a Gemm without"
    ):
        xnnpack.run("placement")


def test_the_hint_of_a_fault_of_the_provider_comes_first(tmp_path: Path) -> None:
    error = {"kind": "provider", "message": "leaving a node", "hint": "Not so strict.", "model": ""}
    with pytest.raises(MeasurementError, match=r"CPUExecutionProvider is leaving a node\. Not so strict\.$"):
        _answering(tmp_path, {"error": error}, 3).run("placement")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("kill -SEGV $$", r"killed by signal 11 \(Segmentation fault\).*onnxruntime or the provider crashed"),
        ("exit 139", r"killed by signal 11 \(Segmentation fault\)"),
        ("kill -KILL $$", "killed by signal 9.*ran out of memory"),
    ],
)
def test_crash(tmp_path: Path, end: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        _interpreter(tmp_path, f"cat >/dev/null; {end}").run("latency")


def test_a_file_is_blamed_for_a_crash_at_first_contact_on_the_cpu_alone(tmp_path: Path) -> None:
    model = _relu(tmp_path / "a.onnx")
    crashing = _interpreter(tmp_path, "cat >/dev/null; kill -SEGV $$")
    with pytest.raises(ArtifactError, match=r"a\.onnx is one that crashes onnxruntime \(signal 11, Segm"):
        crashing.run("placement", [model])
    with pytest.raises(MeasurementError, match="killed by signal 11"):
        crashing.run("latency", [model])
    cuda = replace(crashing.runtime, provider="CUDAExecutionProvider")
    with pytest.raises(MeasurementError, match="killed by signal 11"):
        replace(crashing, runtime=cuda).run("placement", [model])
    for end in ("kill -KILL $$", "kill -ILL $$", "kill -TERM $$", "exit 1"):  # the machine's, or nobody's
        with pytest.raises(MeasurementError, match="the worker is"):
            _interpreter(tmp_path, f"cat >/dev/null; {end}").run("placement", [model])


def test_a_file_is_blamed_for_never_ending(tmp_path: Path) -> None:
    hanging = replace(_interpreter(tmp_path, "exec sleep 60"), timeout_s=0.5)
    with pytest.raises(
        ArtifactError, match=r"a\.onnx is still loading, or in its first inference, after 0 s"
    ):
        hanging.run("placement", [_relu(tmp_path / "a.onnx")])


def test_worker_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    hanging = _interpreter(tmp_path, f"sleep 60 & echo $! > {shlex.quote(str(pid_file))}; wait")
    start = time.monotonic()
    with pytest.raises(
        MeasurementError, match="could not measure latency: the worker is still busy after 2 s"
    ):
        replace(hanging, timeout_s=2.0).run("latency")
    assert time.monotonic() - start < 20
    assert not _is_alive(int(pid_file.read_text()))


def test_interrupting_ends_the_worker(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    hanging = _interpreter(tmp_path, f"echo $$ > {shlex.quote(str(pid_file))}; exec sleep 60")

    def interrupt(*_: Any) -> None:
        if not pid_file.exists() or not pid_file.read_text():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            hanging.run("latency")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not _is_alive(int(pid_file.read_text()))


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that was killed may need a moment, and a zombie does not run."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("name", ["browser"])
def test_runner_that_is_not_in_this_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RUNNERS, name)
    with pytest.raises(
        MeasurementError, match=f"'{name}', which is not in this version, expected one of: local"
    ):
        runner_for(replace(RUNTIME, runner=name))


def test_local_runner_as_a_context() -> None:
    with runner_for(RUNTIME) as runner:
        assert runner.notes() == []
