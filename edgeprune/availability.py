"""Which execution providers run on this machine, and what brings the rest. Device side: no torch."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import MeasurementError
from edgeprune.runners import LocalRunner
from edgeprune.runners.local import PACKAGES
from edgeprune.target import Runtime

PROBE_TIMEOUT_S = 120.0
NOT_PROBED = ("AzureExecutionProvider",)  # calls a server; runs no network of its own
SCRIPTS = {
    "XnnpackExecutionProvider": "xnnpack",
    "QNNExecutionProvider": "qnn",
    "OpenVINOExecutionProvider": "openvino",
    "WebGpuExecutionProvider": "webgpu",
}
"""Provider -> what ``scripts/providers`` calls its environment; on Linux, x86-64."""
OF_INTEREST = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    *SCRIPTS,
    "CoreMLExecutionProvider",
    "NnapiExecutionProvider",
)
ELSEWHERE = {
    "CoreMLExecutionProvider": "only on macOS and iOS; `edgeprune doctor MODEL` estimates what it takes",
    "NnapiExecutionProvider": "only on Android (legacy); `edgeprune doctor MODEL` estimates what it takes",
}

# Each in an environment of its own: builds of onnxruntime exclude each other.
COMMANDS = {
    "CUDAExecutionProvider": 'python -m venv gpu && gpu/bin/pip install "onnxruntime-gpu[cuda,cudnn]"',
    "TensorrtExecutionProvider": "python -m venv trt && trt/bin/pip install onnxruntime-gpu tensorrt",
    "QNNExecutionProvider": "python -m venv qnn && qnn/bin/pip install onnxruntime onnxruntime-qnn",
    "OpenVINOExecutionProvider": "python -m venv ov && ov/bin/pip install onnxruntime-openvino",
    "WebGpuExecutionProvider": "python -m venv web && web/bin/pip install onnxruntime onnxruntime-ep-webgpu",
    "XnnpackExecutionProvider": "sudo apt install python3-onnxruntime",
}
"""Provider -> what installs it on Linux; the target then names that interpreter as runtime.python."""

State = Literal["runs", "does not run", "absent"]


@dataclass(frozen=True)
class Availability:
    """What became of one provider in one interpreter.

    Attributes:
        provider: Its name; "" if the interpreter itself is of no use.
        python: The interpreter as the target names it; None: the one that runs edgeprune.
        state: ``"runs"``: it ran a trivial network here, proven by the placement. ``"does not run"``: it is
            listed, and did not. ``"absent"``: no interpreter that was asked lists it.
        why: Why it does not run, or what it takes to have it; "" if it runs.
        time: What its time means here: ``"real"``, or why it means nothing; "" if it does not run.
    """

    provider: str
    python: str | None
    state: State
    why: str = ""
    time: str = ""

    @property
    def time_is_real(self) -> bool:
        """Whether latency and memory measured here mean anything."""
        return self.time == "real"


def find_providers(pythons: Iterable[str | None] = (None,)) -> tuple[Availability, ...]:
    """Ask each interpreter for its providers, run a trivial network on each, and say how to have the others.

    Args:
        pythons: Interpreters as in ``runtime.python``.
    """
    found: list[Availability] = []
    for python in dict.fromkeys(pythons):
        try:
            listed = _runner(python).run("providers")["providers"]
        except MeasurementError as error:
            found.append(Availability("", python, "does not run", str(error)))
            continue
        found += [_probe(python, provider) for provider in listed if provider not in NOT_PROBED]
    seen = {one.provider for one in found}
    found += [
        Availability(provider, None, "absent", how_to_get(provider))
        for provider in OF_INTEREST
        if provider not in seen
    ]
    return tuple(found)


def how_to_get(provider: str) -> str:
    """What it takes to have a provider here, or that it cannot be had."""
    if provider in ELSEWHERE and not (provider.startswith("CoreML") and platform.system() == "Darwin"):
        return ELSEWHERE[provider]
    text = PACKAGES.get(provider, "a build of onnxruntime for that device")
    here = platform.system() == "Linux" and platform.machine() == "x86_64"
    name = SCRIPTS.get(provider) if here else None
    return f"{text}; here: scripts/providers {name} FOLDER" if name else text


def install_command(provider: str) -> str | None:
    """The command that brings a provider to this machine; None: no command does."""
    return COMMANDS.get(provider) if platform.system() == "Linux" else None


def _runner(python: str | None, provider: str = "CPUExecutionProvider") -> LocalRunner:
    return LocalRunner(Runtime(provider=provider, python=python), timeout_s=PROBE_TIMEOUT_S)


def _probe(python: str | None, provider: str) -> Availability:
    try:
        answer = _runner(python, provider).run("probe")
    except MeasurementError as error:
        return Availability(provider, python, "does not run", str(error.value))
    time = f"means nothing: {answer['functional_only']}" if answer["functional_only"] else "real"
    return Availability(provider, python, "runs", "", time)
