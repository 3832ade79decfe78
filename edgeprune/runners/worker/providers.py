"""Execution providers: where they come from, how they are opened, whether their time means anything.

onnxruntime has providers built in, or loads them from packages of their own (plug-ins). Neither being listed
nor being part of a session proves that one runs anything: only ``placement`` does.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from .common import XNNPACK, Fault, Job, ort, plain

QNN = "QNNExecutionProvider"
WEBGPU = "WebGpuExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PLUGINS = {
    QNN: lambda: import_module("onnxruntime_qnn"),
    WEBGPU: lambda: import_module("onnxruntime_ep_webgpu"),
}
"""Provider -> how to import the package that has its library; onnxruntime 1.24 or later loads it."""

QNN_BACKENDS = ("htp", "gpu", "cpu")
WEBGPU_SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
TIMED = ("latency", "memory")
"""Jobs whose figures would be taken for the device's."""


def plugin(provider: str) -> Any:
    """The package of a plug-in, its library registered; None if there is no such package here."""
    if provider not in PLUGINS or not hasattr(ort, "register_execution_provider_library"):
        return None
    try:
        package = PLUGINS[provider]()
    except ImportError:
        return None
    if not devices(provider):
        try:
            ort.register_execution_provider_library(provider, package.get_library_path())
        except Exception as reason:
            if "already" not in str(reason):  # registered before, and without a device
                message = f"a plug-in that onnxruntime {ort.__version__} cannot load ({plain(reason)})"
                raise Fault("provider", message) from None
    return package


def devices(provider: str) -> list[Any]:
    """The devices that a plug-in found, the most special kind first: an NPU, then a GPU, then the CPU."""
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    return sorted(found, key=lambda device: -"CPU GPU NPU".find(device.device.type.name))


def listed() -> list[str]:
    """Every provider that this interpreter names; a plug-in counts if its package is there."""
    names = list(ort.get_available_providers())
    for name in PLUGINS:
        try:
            names += [name] if plugin(name) is not None and name not in names else []
        except Fault:
            names.append(name)  # it is there, and opening it says what is wrong
    return names


def providers_for(job: Job) -> tuple[list[Any], list[Any], dict[str, str]]:
    """How to open a session: built-in providers with their options, or a plug-in's device and its options.

    Returns:
        (providers, devices, options of the devices); one of the lists is empty.
    """
    provider = job["provider"]
    settings = {str(key): str(value) for key, value in (job.get("provider_options") or {}).items()}
    package = plugin(provider)
    if package is not None:
        found = devices(provider)
        if not found:
            raise Fault("provider", "loaded, but found no device" + _software_hint(provider))
        if provider == QNN:
            settings = _qnn_settings(settings, package)
            kind = settings.get("backend_type", "")
            found = [
                d for d in found if d.device.type.name.lower() == {"htp": "npu"}.get(kind, kind)
            ] or found
        return [], found[:1], settings
    available = ort.get_available_providers()
    if provider not in available:
        message = f"absent from onnxruntime {ort.__version__}, which has {', '.join(available)}"
        raise Fault("provider", message)
    if provider == XNNPACK:
        settings = {"intra_op_num_threads": str(job["threads"]), **settings}
    providers: list[Any] = [(provider, settings)]
    if provider == TENSORRT and CUDA in available:  # takes on the GPU what TensorRT cannot
        providers.append((CUDA, {"device_id": settings.get("device_id", "0")}))
    return providers, [], {}


def _qnn_settings(settings: dict[str, str], package: Any) -> dict[str, str]:
    """With a backend, which QNN demands.

    One that it does not know it takes for another, and one without its library leaves every node to the CPU.
    """
    if "backend_path" in settings:
        return settings
    settings = {"backend_type": "htp", **settings}
    kind = settings["backend_type"]
    if kind not in QNN_BACKENDS:
        raise Fault("provider", f"without a backend '{kind}'", f"QNN has {', '.join(QNN_BACKENDS)}.")
    library = Path(getattr(package, f"get_qnn_{kind}_path")())
    if not library.is_file():
        raise Fault("provider", f"without the backend '{kind}': {library.name} is not in its package here")
    return settings


def _software_hint(provider: str) -> str:
    """What would let WebGPU start without a GPU."""
    return f" (no GPU; {WEBGPU_SOFTWARE}=1 allows a software adapter)" if provider == WEBGPU else ""


def functional_only(provider: str) -> str | None:
    """Why a provider's time and memory say nothing of the device that it stands for; None if they do."""
    if provider == QNN and platform.machine().lower() in ("x86_64", "amd64"):
        return (
            "QNN runs on a simulator of the Hexagon (HTP) on this processor: "
            "outputs and placement are those of the device, time and memory are not"
        )
    drivers = " ".join(os.environ.get(name, "") for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"))
    software = re.search("swiftshader|lvp", drivers) or os.environ.get(WEBGPU_SOFTWARE) == "1"
    if provider == WEBGPU and (software or all(d.device.type.name == "CPU" for d in devices(provider))):
        return (
            "WebGPU runs on a software adapter (SwiftShader) on this processor: "
            "outputs and placement are real, time and memory are not those of a GPU"
        )
    return None


def refuse_to_time(job: Job) -> None:
    """No figure of a simulator may be taken for the device's, whoever asks."""
    why = functional_only(job["provider"]) if job.get("job") in TIMED else None
    if why:
        raise Fault("provider", f"functional only here: {why}")


def check_started(job: Job, session: Any) -> None:
    """A provider that fails to start is dropped by onnxruntime, with a line in the log at best."""
    if job["provider"] not in session.get_providers():
        message = f"listed by onnxruntime {ort.__version__}, but does not start here"
        reasons = {CUDA: "no GPU, or its driver, CUDA or cuDNN is missing or of another version"}
        reasons[TENSORRT] = "no GPU, or its driver, CUDA or TensorRT is missing or of another version"
        why = reasons.get(job["provider"])
        raise Fault("provider", f"{message} ({why})" if why else message)
