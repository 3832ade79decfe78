"""Sessions on the provider that the job names, and what is fed to them."""

from __future__ import annotations

import base64
import contextlib
import math
import warnings
from typing import Any

from .common import CPU, XNNPACK, Fault, Job, as_text, memory_bytes, np, ort, plain
from .providers import QNN, check_started, providers_for, refuse_to_time

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
        whole = any(value.dtype.name in INTEGERS for value in feed.values())
        hint = "Inputs of whole numbers are fed 0s and 1s, of bytes all values." if whole else ""
        raise Fault(kind, f"failing when it runs on {shapes} ({plain(reason)})", hint) from None


def input_shapes(inputs: list[Any], job: Job) -> list[list[int]]:
    """Shapes to run with: the declared ones, with the job's sizes where the file leaves them open.

    The job's ``input`` is the shape of the first input, ``inputs`` has shapes by name, ``dims`` sizes of
    named dimensions. A dimension that is open after that takes the size that its name has in another input;
    an open first axis is a batch, of the first input's size or 1.
    """
    given: dict[str, list[int]] = dict(job.get("inputs") or {})
    named: dict[Any, int] = dict(job.get("dims") or {})
    known = {size for value in inputs for size in value.shape if isinstance(size, str)}
    check_known("an input", given, {value.name for value in inputs})
    check_known("an open dimension", named, known)
    if first := job.get("input"):
        if not inputs:
            raise Fault(
                "model", f"without inputs, while {as_text(first)} is asked for", "Leave the shape out."
            )
        if given.setdefault(inputs[0].name, first) != first:
            both = f"{as_text(first)} as the first one and {as_text(given[inputs[0].name])} by its name"
            raise Fault("model", f"asked to take {both} at its input '{inputs[0].name}'", "Give one of them.")
    for value in inputs:
        if value.name in given:
            check_given(value, given[value.name], named)
    shapes: list[list[int]] = []
    for value in inputs:
        shape: list[Any] = given.get(value.name) or [named.get(s) if is_open(s) else s for s in value.shape]
        if shape and shape[0] is None:
            shape[0] = shapes[0][0] if shapes and shapes[0] else 1
        if None in shape:
            axes = [axis for axis, size in enumerate(shape) if size is None]
            open_axes = ", ".join(f"'{value.shape[axis] or '?'}' (axis {axis})" for axis in axes)
            where = f"its input '{value.name}' of {as_text(value.shape)}"
            message = f"open in dimension{'s' * (len(axes) > 1)} {open_axes} of {where}"
            raise Fault("model", message, how_to_give(value, axes))
        # A value of unknown rank is declared without sizes, like a scalar.
        for name, size in zip(value.shape, shape, strict=False):
            if isinstance(name, str):
                named.setdefault(name, size)
        shapes.append(list(shape))
    return shapes


def is_open(size: Any) -> bool:
    """Whether a declared size is left open: a name or nothing, or a negative number as old exporters do."""
    return not isinstance(size, int) or size < 0


def check_known(what: str, given: Job, known: set[str]) -> None:
    """A size for what is not in the file is a misspelt name."""
    for name in given:
        if name not in known:
            there = ", ".join(f"'{other}'" for other in sorted(known)) or "none"
            hint = "Give its size to one of these." if known else "Leave it out: the file fixes all sizes."
            raise Fault("model", f"without {what} '{name}' (it has: {there})", hint)


def check_given(value: Any, shape: list[int], named: dict[Any, int]) -> None:
    """Hold a given shape against the declared one, and learn the sizes of names from it."""
    text = f"made for an input '{value.name}' of {as_text(value.shape)}, while {as_text(shape)} is asked for"
    hint = "Give the model's own sizes in --input, --dim, runtime.input, inputs and dims, or leave them out."
    if value.shape and len(value.shape) != len(shape):
        raise Fault("model", text, hint)
    for declared, size in zip(value.shape, shape, strict=False):
        if named.get(declared, size) != size:
            raise Fault("model", f"{text}, and '{declared}' is {named[declared]} elsewhere", hint)
        if not is_open(declared) and declared != size:
            raise Fault("model", text, hint)
        if isinstance(declared, str):
            named[declared] = size


def how_to_give(value: Any, axes: list[int]) -> str:
    """The options that would close open axes of an input."""
    if all(isinstance(value.shape[axis], str) for axis in axes):
        sizes = " ".join(f"--dim '{name}=SIZE'" for name in dict.fromkeys(value.shape[axis] for axis in axes))
        return f"Give {sizes}, or the same under [runtime.dims] in the target."
    example = ",".join("SIZE" if is_open(size) else str(size) for size in value.shape)
    return f"Give --input '{value.name}={example}', or the same under [runtime.inputs] in the target."


def make_inputs(job: Job, session: Any) -> dict[str, Any]:
    """The same numbers in every process. Integers that may be indices are 0 or 1, masks are all true."""
    inputs = session.get_inputs()
    for value in inputs:
        if value.type not in DTYPES:
            message = f"made for an input '{value.name}' of type {value.type}"
            raise Fault("model", message, "Inputs can be tensors of numbers or booleans.")
    feed: dict[str, Any] = {}
    free = memory_bytes() // 4
    shapes = input_shapes(inputs, job)
    for value, shape in zip(inputs, shapes, strict=True):
        dtype = DTYPES[value.type]
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        free -= size_bytes
        if free < 0:
            message = f"made for an input '{value.name}' of {as_text(shape)}, {size_bytes / 1e9:.3g} GB"
            raise Fault("model", message, "Its inputs take more than a quarter of this machine's memory.")
        rng = np.random.default_rng(len(feed))
        if dtype in INTEGERS:
            low, high = {"uint8": (0, 255), "int8": (-128, 127)}.get(dtype, (0, 1))
            feed[value.name] = rng.integers(low, high, shape, dtype, endpoint=True)
        elif dtype == "bool":
            feed[value.name] = np.ones(shape, dtype)
        else:
            feed[value.name] = rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
    if feed and not any(array.size for array in feed.values()):
        texts = ", ".join(f"'{name}' of {as_text(array.shape)}" for name, array in feed.items())
        raise Fault("model", f"made for inputs without elements ({texts})", "There is nothing to measure.")
    return feed


def warm_library() -> None:
    """Run a trivial model on random numbers: what the libraries do once per process is then done."""
    options = session_options({"provider": CPU, "threads": 1})
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8), dtype=np.float32)
    ort.InferenceSession(WARM_MODEL, options, providers=[CPU]).run(None, {"x": x})
