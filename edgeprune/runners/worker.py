"""What runs on the device: one self-contained script on numpy and onnxruntime (>= 1.21), Python >= 3.10.

Providers live in environments that exclude each other, so the interpreter that the target names runs this
file by its path, and nothing of edgeprune is imported here. It reads one job as JSON from stdin and prints
one JSON object as the last line of stdout.

    {"job": "environment"}
    {"job": "placement" | "memory", "models": [path], ...}
    {"job": "latency", "models": [path, ...], "runs": 70, "min_runs": 13, "seconds": 4.0, ...}

    with ... = "provider": name, "provider_options": {}, "threads": 1, "input": shape of the first or null

A failure answers {"error": {"kind", "message", "hint", "model"}} and exits with 2 or 3. Kinds: "model" (the
file), "provider" (absent, or took no part), "environment" (numpy or onnxruntime), "worker" (a bug here).
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import math
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IMPORT_ERROR: Exception | None = None
try:
    import numpy as np
    import onnxruntime as ort
except Exception as reason:  # broken libraries raise OSError and worse
    IMPORT_ERROR = reason

Job = dict[str, Any]

CPU = "CPUExecutionProvider"
XNNPACK = "XnnpackExecutionProvider"
OLDEST = (1, 21)
BLOCK = 5  # timed runs between two switches of models
WARM_UP = 5
GIVE_SHAPE = "Give the shape as runtime.input in the target, e.g. input = [1, 3, 224, 224]."
FIX_DIMENSION = "Fix it in the file, e.g. with python -m onnxruntime.tools.make_dynamic_shape_fixed."
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {f"tensor({name})": name for name in (*INTEGERS, "float16", "bool")}
DTYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}
CPP_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?|Exception during initialization: "
    r"|/\S+\.(?:cc|h):\d+ .*?\) |\b\w+\.(?:cc|h):\d+ \w+ "
)
# Convolution, depthwise convolution, Relu, Add, pooling and Gemm on 1x16x8x8, as ONNX (opset 13): it brings
# onnxruntime's code and buffers into memory, so that they count for neither model.
WARM_MODEL = base64.b64decode(
    "CAc63wIKFwoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlChcKAWQSAXYiD0NvbnN0YW50T2ZTaGFwZQoXCgFmEgFtIg9Db25zdGFudE9mU2hh"
    "cGUKIgoBeAoBdxIBYSIEQ29udioRCgRwYWRzQAFAAUABQAGgAQcKDAoBYRIBYiIEUmVsdQowCgFiCgF2EgFjIgRDb252KgwKBWdyb3Vw"
    "GBCgAQIqEQoEcGFkc0ABQAFAAUABoAEHCg4KAWIKAWMSAWUiA0FkZAoZCgFlEgFnIhFHbG9iYWxBdmVyYWdlUG9vbAoPCgFnEgFoIgdG"
    "bGF0dGVuCg8KAWgKAW0SAXkiBEdlbW0SBHdhcm0qDQgEEAc6BBAQAwNCAXMqDQgEEAc6BBABAwNCAWQqCwgCEAc6AhAKQgFmWhsKAXgS"
    "FgoUCAESEAoCCAEKAggQCgIICAoCCAhiEwoBeRIOCgwIARIICgIIAQoCCApCBAoAEA0="
)


class Fault(Exception):  # noqa: N818 - the fault is the model's or the machine's
    """A failure whose cause the caller can name."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind, self.message, self.hint, self.model = kind, message, hint, ""


@contextlib.contextmanager
def blaming(model: str) -> Iterator[None]:
    """Put the model's path into a fault that happens inside."""
    try:
        yield
    except Fault as fault:
        fault.model = model
        raise


def plain(reason: BaseException) -> str:
    """An exception's text without onnxruntime's codes and the places in its sources."""
    text = CPP_NOISE.sub("", " ".join(str(reason).split())).rstrip(".") or type(reason).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def as_text(shape: Any) -> str:
    """(1, 3, 32, 32) -> 1x3x32x32."""
    return "x".join("?" if size is None else str(size) for size in shape) or "a scalar"


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
    return options


def open_session(job: Job, model: str, options: Any) -> Any:
    """Load a model on the provider of the job, never on another in its place."""
    provider, available = job["provider"], ort.get_available_providers()
    if provider not in available:
        message = f"absent from onnxruntime {ort.__version__}, which has {', '.join(available)}"
        raise Fault("provider", message)
    settings = {"intra_op_num_threads": str(job["threads"])} if provider == XNNPACK else {}
    settings.update(job.get("provider_options") or {})
    try:
        return ort.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
    except Exception as reason:
        fault = Fault("model", f"not a model that onnxruntime {ort.__version__} can load ({plain(reason)})")
        if provider != CPU:
            with contextlib.suppress(Exception):
                ort.InferenceSession(model, providers=[CPU])
                fault = Fault("provider", f"unable to load {model}, which the CPU can ({plain(reason)})")
        raise fault from None


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


def memory_bytes() -> int:
    """Physical memory; 8 GB where the system does not tell."""
    return 1024 * int(first_match("/proc/meminfo", r"MemTotal:\s*(\d+) kB") or 8_000_000)


def warm_library() -> None:
    """Run a trivial model on random numbers: what the libraries do once per process is then done."""
    options = session_options({"provider": CPU, "threads": 1})
    x = np.random.default_rng(0).standard_normal((1, 16, 8, 8), dtype=np.float32)
    ort.InferenceSession(WARM_MODEL, options, providers=[CPU]).run(None, {"x": x})


def latency(job: Job) -> Job:
    """Time the models in turns, ABBA, so that what disturbs the machine meets all of them alike.

    Each turn throws one run away, since the other model evicted the caches, and times ``BLOCK`` runs. Sample
    k of one model and sample k of the other make a pair. Stops after ``runs`` samples of each model, or after
    ``seconds`` once there are ``min_runs``, always after a whole ABBA.
    """
    warm_library()
    opened = [open_timed(job, model) for model in job["models"]]
    for run, _ in opened:
        for _ in range(WARM_UP):
            run()
    samples: list[list[int]] = [[] for _ in opened]
    turns = [*range(len(opened)), *reversed(range(len(opened)))]
    clock = time.perf_counter_ns
    deadline = clock() + int(job["seconds"] * 1e9)
    gc.collect()
    gc.disable()
    while len(samples[0]) < job["runs"] and (len(samples[0]) < job["min_runs"] or clock() < deadline):
        for index in turns:
            run, record = opened[index][0], samples[index].append
            run()
            for _ in range(BLOCK):
                start = clock()
                run()
                record(clock() - start)
    return {"models": [{**o[1], "samples_ns": taken} for o, taken in zip(opened, samples, strict=True)]}


def open_timed(job: Job, model: str) -> tuple[Callable[[], None], dict[str, int]]:
    """Load a model: a function that runs it on buffers made before; times of loading and the first run."""
    clock = time.perf_counter_ns
    with blaming(model):
        start = clock()
        session = open_session(job, model, session_options(job))
        load_ns = clock() - start
        feed = make_inputs(job, session)
        start = clock()
        outputs = run_once(job, session, feed)
        first_ns = clock() - start
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output, array in zip(session.get_outputs(), outputs, strict=True):
        if output.type in DTYPES:
            value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype)
            binding.bind_ortvalue_output(output.name, value)
        else:  # strings and sequences cannot be allocated before
            binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding), {"load_ns": load_ns, "first_ns": first_ns}


def memory(job: Job) -> Job:
    """Memory of the process over its state before the model: peak of loading, loaded, peak of running.

    The kernel's high-water mark is reset before each phase. Without a low ``MALLOC_MMAP_THRESHOLD_`` the
    allocator keeps freed copies of the weights, and running seems to cost nothing.
    """
    model, options = job["models"][0], session_options(job)
    names = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")
    clear = Path("/proc/self/clear_refs")
    warm_library()
    gc.collect()
    try:
        clear.write_text("5")
        # Counted page by page; the counter in `status` lags.
        base = kernel_bytes("smaps_rollup", "Rss")
    except (OSError, ValueError):
        why = "this system has no /proc that tells a process's memory and resets its peak"
        return {**dict.fromkeys(names), "method": None, "why": why}
    with blaming(model):
        session = open_session(job, model, options)
        load_peak = kernel_bytes("status", "VmHWM") - base
        gc.collect()
        loaded = kernel_bytes("smaps_rollup", "Rss") - base
        feed = make_inputs(job, session)
        clear.write_text("5")
        for _ in range(WARM_UP):
            run_once(job, session, feed)
        run_peak = kernel_bytes("status", "VmHWM") - base
    allocator = os.environ.get("MALLOC_MMAP_THRESHOLD_", "default")
    method = f"high-water mark of the process over onnxruntime alone, MALLOC_MMAP_THRESHOLD_={allocator}"
    figures = (load_peak, loaded, run_peak, max(load_peak, run_peak))
    # Counters lag by some pages, so that a model of next to nothing could come out below it.
    return {**{n: max(0, f) for n, f in zip(names, figures, strict=True)}, "method": method, "why": None}


def kernel_bytes(file: str, key: str) -> int:
    """A figure that the kernel keeps of this process; ValueError if it does not."""
    return 1024 * int(first_match(f"/proc/self/{file}", rf"{key}:\s*(\d+) kB"))


def first_match(path: str, pattern: str) -> str:
    """The first group of a pattern in a file, "" if there is no such file or match."""
    with contextlib.suppress(OSError):
        found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
        return found.group(1).strip() if found else ""
    return ""


def placement(job: Job) -> Job:
    """Prove where each node runs, which a session's own list of providers does not.

    From onnxruntime 1.24 a session records its assignment (nodes before fusion); before that a profile of one
    inference tells (kernels after fusion).
    """
    model, provider, options = job["models"][0], job["provider"], session_options(job)
    recorded = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info") and not job.get("profile")
    with blaming(model), tempfile.TemporaryDirectory() as folder:
        if recorded:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, "profile"))
        session = open_session(job, model, options)
        feed = make_inputs(job, session)
        run_once(job, session, feed)
        if recorded:
            parts = session.get_provider_graph_assignment_info()
            nodes = [(part.ep_name, node.name, node.op_type) for part in parts for node in part.get_nodes()]
        else:
            nodes = profiled_nodes(session.end_profiling())
        count = Counter(by for by, _, _ in nodes)
        if provider != CPU and not count[provider]:
            raise Fault("provider", f"listed, but took none of the {len(nodes)} nodes of {model}")
    left = [{"name": name, "op_type": op_type} for by, name, op_type in nodes if by == CPU != provider]
    inputs = [
        {"name": i.name, "type": i.type, "shape": list(feed[i.name].shape)} for i in session.get_inputs()
    ]
    source = "assignment" if recorded else "profile"
    return {"source": source, "nodes": dict(count), "left_to_cpu": left, "inputs": inputs}


def profiled_nodes(path: str) -> list[tuple[str, str, str]]:
    """(provider, name, operator) of each kernel in a profile of one inference."""
    end = "_kernel_time"
    events = json.loads(Path(path).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(end)]
    return [(k["args"]["provider"], k["name"].removesuffix(end), k["args"]["op_name"]) for k in kernels]


def environment(_: Job) -> Job:
    """What the figures are taken on."""
    return {
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": first_match("/proc/cpuinfo", r"(?:model name|Model|Hardware)\s*: (.+)")
        or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "governor": first_match("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", r"(\S+)") or None,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "providers": ort.get_available_providers(),
    }


JOBS = {"environment": environment, "latency": latency, "memory": memory, "placement": placement}


def check_environment() -> None:
    """Say what is missing before a job trips over it."""
    hint = f"Install numpy and onnxruntime>={OLDEST[0]}.{OLDEST[1]} there."
    if IMPORT_ERROR is not None:
        message = f"unable to import what it needs ({plain(IMPORT_ERROR)})"
        raise Fault("environment", message, hint)
    if tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2]) < OLDEST:
        raise Fault("environment", f"too old, with onnxruntime {ort.__version__}", hint)
    ort.set_default_logger_severity(3)


def answer(job: Job) -> tuple[Job, int]:
    """Do a job: its answer and the exit status."""
    try:
        check_environment()
        return JOBS[job["job"]](job), 0
    except Fault as fault:
        return {"error": vars(fault)}, 2 if fault.kind == "model" else 3
    except Exception as reason:
        traceback.print_exc()
        return {"error": vars(Fault("worker", f"{type(reason).__name__}: {plain(reason)}"))}, 3


if __name__ == "__main__":
    # Let an allocation fail before the machine runs out; if it does run out, this process is the one to go.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        available = 1024 * int(first_match("/proc/meminfo", r"MemAvailable:\s*(\d+) kB"))
        resource.setrlimit(resource.RLIMIT_DATA, (available, resource.RLIM_INFINITY))
        Path("/proc/self/oom_score_adj").write_text("1000")
    result, status = answer(json.load(sys.stdin))
    print("\n" + json.dumps(result), flush=True)
    sys.exit(status)
