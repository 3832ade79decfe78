"""Sessions on the provider that the job names, and what is fed to them."""

from __future__ import annotations

import base64
import contextlib
import math
import warnings
from typing import Any

from .common import CPU, XNNPACK, Fault, Job, as_text, memory_bytes, np, ort, plain
from .providers import QNN, check_started, providers_for, refuse_to_time

GIVE_SHAPE = "Give the shape as runtime.input in the target, e.g. input = [1, 3, 224, 224]."
FIX_DIMENSION = "Fix it in the file, e.g. with python -m onnxruntime.tools.make_dynamic_shape_fixed."
# Provider -> what helps if it refuses a model that the CPU can load.
REFUSALS = {
    QNN: "The Hexagon wants a quantized network (QDQ) of fixed shape; fp16 needs options of its own.",
}
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {f"tensor({name})": name for name in (*INTEGERS, "float16", "bool")}
DTYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}
# Convolution, depthwise convolution, Relu, Add, pooling and Gemm on 1x16x8x8, as ONNX (opset 13): it brings
# onnxruntime's code and buffers into memory, so that they count for neither model.
WARM_MODEL = base64.b64decode(
    "CAc63wIKFwoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlChcKAWQSAXYiD0NvbnN0YW50T2ZTaGFwZQoXCgFmEgFtIg9Db25zdGFudE9mU2hh"
    "cGUKIgoBeAoBdxIBYSIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcKDAoBYRIBYiIEUmVsdQowCgFiCgF2EgFjIgRDb252KgwKBWdyb3Vw"
    "GBCgAQIqEQoEcGFkc0ABQAFAAUABoAEHCg4KAWIKAWMSAWUiA0FkZAoZCgFlEgFnIhFHbG9iYWxBdmVyYWdlUG9vbAoPCgFnEgFoIgdG"
    "bGF0dGVuCg8KAWgKAW0SAXkiBEdlbW0SBHdhcm0qDQgEEAc6BBAQAwNCAXMqDQgEEAc6BBABAwNCAWQqCwgCEAc6AhAKQgFmWhsKAXgS"
    "FgoUCAESEAoCCAEKAggQCgIICAoCCAhiEwoBeRIOCgwIARIICgIIAQoCCApCBAoAEA0="
)


def session_options(job: Job) -> Any:
    """Options for a session. Several threads spin, since waking them up costs more than they gain."""
    # XNNPACK has a thread pool of its own, and onnxruntime's would only get in its way.
    threads = 1 if job["provider"] == XNNPACK else job["threads"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    if threads > 1:
        options.add_session_config_entry("session.dynamic_block_base", "4")
    if job.get("strict"):
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def open_session(job: Job, model: str | bytes, options: Any) -> Any:
    """Load a model on the provider of the job, never on another in its place."""
    refuse_to_time(job)
    provider = job["provider"]
    providers, devices, settings = providers_for(job)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # all that is said when a provider is dropped
            if devices:
                options.add_provider_for_devices(devices, settings)
                session = ort.InferenceSession(model, options, enable_fallback=0)
            else:
                session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as reason:
        fault = Fault("model", f"not a model that onnxruntime {ort.__version__} can load ({plain(reason)})")
        if provider != CPU:
            with contextlib.suppress(Exception):
                ort.InferenceSession(model, providers=[CPU])
                name = "the trivial model" if isinstance(model, bytes) else model
                message = f"unable to load {name}, which the CPU can ({plain(reason)})"
                fault = Fault("provider", message, REFUSALS.get(provider, ""))
        raise fault from None
    check_started(job, session)
    return session


def run_once(job: Job, session: Any, feed: dict[str, Any]) -> list[Any]:
    """One inference through the plain interface, which allocates its outputs."""
    try:
        return list(session.run(None, feed))
    except Exception as reason:
        shapes = ", ".join(f"{name} of {as_text(value.shape)}" for name, value in feed.items())
        kind = "model" if job["provider"] == CPU else "provider"
        raise Fault(kind, f"failing when it runs on {shapes} ({plain(reason)})") from None


def input_shapes(inputs: list[Any], given: list[int] | None) -> list[list[int]]:
    """Shapes to run with: the declared ones, ``given`` for the first input, 1 for an open batch.

    An open dimension of a later input takes the value that its name has in an earlier one.
    """
    named: dict[Any, int] = {}
    shapes: list[list[int]] = []
    for value in inputs:
        text = f"input '{value.name}' of {as_text(value.shape)}"
        shape: list[int | None] = [size if isinstance(size, int) else named.get(size) for size in value.shape]
        if given and not shapes:
            if len(given) != len(shape) or any(a not in (None, b) for a, b in zip(shape, given, strict=True)):
                message = f"made for an {text}, while the target asks for {as_text(given)}"
                raise Fault("model", message, "Set runtime.input to the model's own shape, or leave it out.")
            shape = [*given]
        elif shape and shape[0] is None:
            shape[0] = shapes[0][0] if shapes and shapes[0] else 1
        known = [size for size in shape if size is not None]
        if len(known) < len(shape):
            axis = shape.index(None)
            message = f"open in dimension '{value.shape[axis] or '?'}' (axis {axis}) of its {text}"
            raise Fault("model", message, FIX_DIMENSION if shapes else GIVE_SHAPE)
        named.update({name: size for name, size in zip(value.shape, known, strict=True) if name is not None})
        shapes.append(known)
    return shapes


def make_inputs(job: Job, session: Any) -> dict[str, Any]:
    """The same numbers in every process. Integers that may be indices are 0 or 1, masks are all true."""
    feed: dict[str, Any] = {}
    shapes = input_shapes(session.get_inputs(), job.get("input"))
    for value, shape in zip(session.get_inputs(), shapes, strict=True):
        if value.type not in DTYPES:
            message = f"made for an input '{value.name}' of type {value.type}"
            raise Fault("model", message, "Inputs can be tensors of numbers or booleans.")
        dtype = DTYPES[value.type]
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if size_bytes > memory_bytes() // 4:
            message = f"made for an input '{value.name}' of {as_text(shape)}, {size_bytes / 1e9:.3g} GB"
            raise Fault("model", message, "That is more than a quarter of this machine's memory.")
        rng = np.random.default_rng(len(feed))
        if dtype in INTEGERS:
            low, high = {"uint8": (0, 255), "int8": (-128, 127)}.get(dtype, (0, 1))
            feed[value.name] = rng.integers(low, high, shape, dtype, endpoint=True)
        elif dtype == "bool":
            feed[value.name] = np.ones(shape, dtype)
        else:
            feed[value.name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
    return feed


def warm_library() -> None:
    """Run a trivial model on random numbers: what the libraries do once per process is then done."""
    options = session_options({"provider": CPU, "threads": 1})
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8), dtype=np.float32)
    ort.InferenceSession(WARM_MODEL, options, providers=[CPU]).run(None, {"x": x})
