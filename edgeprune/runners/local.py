"""Runs the worker on this machine, in the interpreter that the target names. Device side: no torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgeprune.errors import ArtifactError, MeasurementError
from edgeprune.target import Runtime

WORKER = Path(__file__).with_name("worker")
TIMEOUT_S = 600.0
# Signals by which a process ends itself. Not SIGILL: there onnxruntime was built for another processor.
CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGTRAP")}
RUN_PROBLEM = "could not run the ONNX file"

PROBLEMS = {
    "environment": "could not start measuring",
    "placement": "could not prove where the nodes run",
    "latency": "could not measure latency",
    "memory": "could not measure memory",
    "instructions": "could not count instructions",
    "probe": "could not start the provider",
    "profile": "could not profile the network",
    "providers": "could not list the providers",
    "reference": "could not run the network on the CPU",
}
# Provider -> where it comes from, to follow "X comes with ...".
PACKAGES = {
    "CPUExecutionProvider": "every onnxruntime",
    "CUDAExecutionProvider": "onnxruntime-gpu[cuda,cudnn] from pip, and an NVIDIA GPU with its driver",
    "TensorrtExecutionProvider": "onnxruntime-gpu from pip, TensorRT, and an NVIDIA GPU with its driver",
    "XnnpackExecutionProvider": "Debian's python3-onnxruntime (trixie or later), or an Android build",
    "DnnlExecutionProvider": "Debian's python3-onnxruntime (trixie or later)",
    "QNNExecutionProvider": "onnxruntime-qnn and onnxruntime>=1.24 from pip",
    "OpenVINOExecutionProvider": "onnxruntime-openvino from pip",
    "CoreMLExecutionProvider": "onnxruntime from pip on macOS, or an iOS build",
    "NnapiExecutionProvider": "an Android build of onnxruntime (legacy: Android 15 deprecates NNAPI)",
    "DmlExecutionProvider": "onnxruntime-directml from pip on Windows",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx from pip, and an AMD GPU",
    "WebGpuExecutionProvider": "onnxruntime-ep-webgpu and onnxruntime>=1.24 from pip, and a GPU with Vulkan",
}
# Provider -> a crash of it that is known, with its way round.
KNOWN_CRASHES = {
    "XnnpackExecutionProvider": "Known of onnxruntime 1.21: XNNPACK crashes on a Gemm without a bias.",
}


@dataclass(frozen=True)
class LocalRunner:
    """Each job in a fresh process of its own.

    Attributes:
        runtime: How to run the models.
        timeout_s: A job that takes longer is ended.
    """

    runtime: Runtime
    timeout_s: float = TIMEOUT_S

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job; see ``Runner.run``."""
        python = str(Path(self.runtime.python).expanduser()) if self.runtime.python else sys.executable
        request = worker_job(self.runtime, job, [str(Path(model).absolute()) for model in models], options)
        environment = worker_environment(self.runtime, job, os.environ)
        return run_worker([python, str(WORKER)], request, environment, self.runtime, self.timeout_s)

    def notes(self) -> list[str]:
        """None: the worker tells all that there is to tell of this machine."""
        return []

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing outlives a job."""


def worker_job(runtime: Runtime, job: str, models: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """The worker's input: a job with what the target says of running."""
    return {
        "job": job,
        "models": list(models),
        "provider": runtime.provider,
        "provider_options": dict(runtime.provider_options),
        "threads": runtime.threads,
        "strict": runtime.strict,
        "input": list(runtime.input) if runtime.input else None,
        "inputs": {name: list(shape) for name, shape in runtime.inputs.items()},
        "dims": dict(runtime.dims),
        **options,
    }


def worker_environment(runtime: Runtime, job: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of the worker."""
    # What is set for this interpreter (PYTHONPATH, PYTHONHOME) would break another one.
    environment = {
        name: value
        for name, value in inherited.items()
        if runtime.python is None or not name.startswith("PYTHON")
    }
    # numpy's own threads would only sit in memory; providers that use OpenMP keep to the target's threads.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(runtime.threads)}
    if job == "memory":
        # Freed blocks go back to the system at once, so that resident memory is what is in use.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    return environment


def run_worker(
    command: Sequence[str],
    request: dict[str, Any],
    environment: Mapping[str, str],
    runtime: Runtime,
    timeout_s: float,
) -> dict[str, Any]:
    """Start a command that runs the worker, hand it a job, and read its answer.

    Raises:
        ArtifactError: A model is at fault.
        MeasurementError: All else.
    """
    try:
        said = exchange(command, request, environment, timeout_s)
    except subprocess.TimeoutExpired:
        raise_too_long(request, timeout_s)
    except OSError as reason:
        raise MeasurementError(
            PROBLEMS[request["job"]],
            where="runtime.python",
            value=f"'{command[0]}' ({reason.strerror})",
            expected="an interpreter that has numpy and onnxruntime",
            hint="Name one by its path in the target, or leave runtime.python out to use this one.",
        ) from None
    return read_answer(request, command[0], said, runtime)


def exchange(
    command: Sequence[str], request: dict[str, Any], environment: Mapping[str, str], timeout_s: float
) -> tuple[str, str, int]:
    """Start a command that runs the worker and hand it a job: its stdout, its stderr, its exit status.

    Raises:
        subprocess.TimeoutExpired: It does not end in time; it is ended then.
        OSError: It cannot be started.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(json.dumps(request), timeout=timeout_s)
    finally:
        _end(process)
    return stdout, stderr, process.returncode


def raise_too_long(request: dict[str, Any], timeout_s: float) -> NoReturn:
    """Say that the worker did not end in time."""
    if _first_contact(request):
        raise ArtifactError(
            RUN_PROBLEM,
            where=request["models"][0],
            value=f"still loading, or in its first inference, after {timeout_s:.0f} s",
            hint="It never ends, or it is far too large for this device.",
        ) from None
    raise MeasurementError(
        PROBLEMS[request["job"]],
        where="the worker",
        value=f"still busy after {timeout_s:.0f} s",
        hint="The network may be too large for this device: try a smaller input or more threads.",
    ) from None


def read_answer(
    request: dict[str, Any], python: str, said: tuple[str, str, int], runtime: Runtime
) -> dict[str, Any]:
    """What the worker answers, or its fault as an exception.

    Args:
        request: The job, its models by their paths on this machine.
        python: What to call the interpreter.
        said: stdout, stderr and exit status of the worker.
        runtime: How to run the models.

    Raises:
        ArtifactError: A model is at fault.
        MeasurementError: All else.
    """
    problem = PROBLEMS[request["job"]]
    stdout, stderr, status = said
    answer = _last_json(stdout)
    if answer is None:
        number = _signal(status)
        if number in CRASHES and _first_contact(request):
            raise ArtifactError(
                RUN_PROBLEM,
                where=request["models"][0],
                value=f"one that crashes onnxruntime (signal {number}, {signal.strsignal(number)})",
                hint="Only the worker's own process ended. Export the file again, or try another version.",
            )
        _raise_no_answer(problem, python, status, stderr, KNOWN_CRASHES.get(runtime.provider, ""))
    if "error" in answer:
        _raise_fault(problem, python, answer["error"], runtime)
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    """Leave nothing behind: neither the worker nor what it started, whatever ended the wait."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    with process:  # closes the pipes and waits
        pass


def _first_contact(request: dict[str, Any]) -> bool:
    """Whether the file is to blame for a crash: the CPU provider loads it and runs it once, and no more."""
    return request["job"] in ("placement", "reference") and request["provider"] == "CPUExecutionProvider"


def _signal(status: int) -> int:
    """The signal that ended a process; 0 if none did."""
    number = -status if status < 0 else status - 128  # a shell that wraps the interpreter adds 128
    return number if 0 < number < signal.NSIG else 0


def _last_json(stdout: str) -> dict[str, Any] | None:
    """The last line, if it is a JSON object: libraries print before it as they like."""
    lines = stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _raise_no_answer(problem: str, python: str, status: int, stderr: str, known: str) -> NoReturn:
    # Debian's build writes hundreds of lines on schemas that it registers twice.
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("Schema error")]
    last = f": {lines[-1][:200]}" if lines else ""
    number = _signal(status)
    if number == 9:
        value, hint = "killed by signal 9", "The machine most likely ran out of memory."
    elif number > 0:
        value = f"killed by signal {number} ({signal.strsignal(number)}){last}"
        hint = (
            f"onnxruntime or the provider crashed: try another version, or the CPU provider. {known}".rstrip()
        )
    else:
        value = f"'{python}', which ended with exit status {status} and no answer{last}"
        hint = "It must be Python 3.10 or later with numpy and onnxruntime."
    raise MeasurementError(problem, where="the worker", value=value, hint=hint)


def _raise_fault(problem: str, python: str, fault: dict[str, Any], runtime: Runtime) -> NoReturn:
    """Turn the worker's fault into the exception that decides the exit code."""
    kind, message, hint = fault["kind"], fault["message"], fault["hint"]
    if kind == "model":
        raise ArtifactError(RUN_PROBLEM, where=fault["model"], value=message, hint=hint)
    if kind == "provider":
        source = PACKAGES.get(runtime.provider, "a build of onnxruntime for that device")
        come_by = (
            f"{runtime.provider} comes with {source}; name its interpreter as runtime.python in the target."
        )
        raise MeasurementError(problem, where=runtime.provider, value=message, hint=hint or come_by)
    where = python if kind == "environment" else "the worker"
    raise MeasurementError(problem, where=where, value=message, hint=hint)
