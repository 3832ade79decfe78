"""onnxruntime_perf_test: how it is called, and what it says. Device side: no torch.

onnxruntime's own benchmark program, built with its tests (1.17 or later). It runs one network per process,
warms up with one run, and can write the time of each run to a file and a profile to another.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgeprune.errors import TargetError
from edgeprune.target import Runtime

CPU, XNNPACK = "CPUExecutionProvider", "XnnpackExecutionProvider"
# Its names of the providers that exist for Android.
PROVIDERS = {
    CPU: "cpu",
    XNNPACK: "xnnpack",
    "NnapiExecutionProvider": "nnapi",
    "QNNExecutionProvider": "qnn",
    "WebGpuExecutionProvider": "webgpu",
}
WARM_UP = 5  # timed by it, dropped by us, on top of its own first run


@dataclass(frozen=True)
class Timing:
    """One process of it.

    Attributes:
        load_ns: Time to load the model.
        first_ns: Upper bound of the first inference: it tells whole milliseconds, rounded down.
        samples_ns: Time of each run after the warm-up.
        peak_bytes: Peak of the whole process.
    """

    load_ns: int
    first_ns: int
    samples_ns: list[int]
    peak_bytes: int


def check_runtime(runtime: Runtime) -> None:
    """Refuse what it cannot be told.

    Raises:
        TargetError: A key of the target is at fault.
    """
    dims = [name for name in runtime.dims if not name or re.search(r"[\s:]", name)]
    fault = option_fault(runtime)
    hint = "The placement tells what the provider left to the CPU: give max_cpu_nodes as a budget."
    for key, value, expected, more in (
        ("strict", "true" if runtime.strict else None, 'false with runner = "adb"', hint),
        ("dims", f"'{dims[0]}', with a blank or a colon" if dims else None, "names without", ""),
        ("provider_options", fault, "what onnxruntime_perf_test can be given", ""),
    ):
        if value is not None:
            problem, where = "could not use the target file", f"runtime.{key}"
            raise TargetError(problem, where=where, value=value, expected=expected, hint=more)


def option_fault(runtime: Runtime) -> str | None:
    """What of a target's provider options it cannot be given, to follow "is"; None if nothing."""
    for key, value in runtime.provider_options.items():
        if re.search(r"[\s|]", key + value) or not key:
            return f"{key} = {value!r}, with a blank or a |"
        if runtime.provider == XNNPACK and (key, value) != ("intra_op_num_threads", str(runtime.threads)):
            return f"{key} = {value!r}, while it gives XNNPACK runtime.threads ({runtime.threads}) alone"
    return None


def arguments(runtime: Runtime, runs: int) -> list[str]:
    """Options for so many timed runs, without the files."""
    words = ["-e", PROVIDERS[runtime.provider], "-I", "-S", "1", "-m", "times", "-r", str(runs)]
    words += ["-x", str(runtime.threads)]
    if runtime.threads > 1 and runtime.provider == CPU:
        words += ["-C", "session.dynamic_block_base|4"]
    for name, size in runtime.dims.items():
        words += ["-f", f"{name}:{size}"]
    options = runtime.provider_options.items() if runtime.provider != XNNPACK else ()
    if options:
        # NNAPI's are flags without a value: what a target sets to 1.
        nnapi = runtime.provider == "NnapiExecutionProvider"
        given = [key if nnapi else f"{key}|{value}" for key, value in options if not nnapi or value == "1"]
        words += ["-i", " ".join(given)]
    return words


def read_timing(said: str, result: str, runs: int) -> Timing:
    """What one process said on stdout and wrote to its result file.

    Raises:
        ValueError: It is not what onnxruntime_perf_test writes; the text says why.
    """
    load_s = _figure(said, r"Session creation time cost: (\S+) s")
    first_ms = _figure(said, r"First inference time cost: (\S+) ms")
    total_s = _figure(said, r"Total inference time cost: (\S+) s")
    peak = _figure(said, r"Peak working set size: (\S+) bytes")
    rows = [line.split(",") for line in result.splitlines() if line.count(",") >= 4]
    samples_s = [float(row[-4]) for row in rows]
    if len(samples_s) != runs:
        raise ValueError(f"{len(samples_s)} times for {runs} runs")
    if not all(math.isfinite(one) and one > 0 for one in samples_s):
        raise ValueError("times that are not positive")
    if abs(sum(samples_s) - total_s) > 0.01 * total_s + 1e-6 * runs:
        raise ValueError(f"times that add up to {sum(samples_s):.6g} s, while it says {total_s:.6g} s")
    samples_ns = [round(one * 1e9) for one in samples_s[WARM_UP:]]
    return Timing(round(load_s * 1e9), round((first_ms + 1) * 1e6), samples_ns, round(peak))


def _figure(said: str, pattern: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise ValueError(f"no line like '{pattern.split(':')[0]}: …'")
    return float(found[1])


def read_profile(text: str, provider: str) -> dict[str, Any]:
    """Where each kernel of the last run in a profile ran, as the worker's ``placement`` tells it.

    Raises:
        ValueError: The profile proves nothing; the text says why.
    """
    end = "_kernel_time"
    try:
        events = json.loads(text)
        runs = [event for event in events if event.get("name") == "model_run"]
        start, length = runs[-1]["ts"], runs[-1]["dur"]
        kernels = [
            (event["args"]["provider"], event["name"].removesuffix(end), event["args"]["op_name"])
            for event in events
            if event.get("cat") == "Node"
            and event["name"].endswith(end)
            and start <= event["ts"] <= start + length
        ]
    except (ValueError, TypeError, LookupError, AttributeError) as reason:
        raise ValueError(f"a profile that cannot be read ({type(reason).__name__})") from None
    if not kernels or any(not by for by, _, _ in kernels):
        raise ValueError("a profile that names no kernels and their providers")
    nodes = Counter(by for by, _, _ in kernels)
    # Each time execution enters the provider. One that compiles shows a kernel for each subgraph, with an
    # underscore in its made-up operator.
    before = ["", *(by for by, _, _ in kernels[:-1])]
    entries = [
        by == provider and (by != last or "_" in kind)
        for last, (by, _, kind) in zip(before, kernels, strict=True)
    ]
    return {
        "source": "profile",
        "nodes": dict(nodes),
        "left_to_cpu": [
            {"name": name, "op_type": kind} for by, name, kind in kernels if by == CPU != provider
        ],
        "assigned": {name: [[node, kind] for by, node, kind in kernels if by == name] for name in nodes},
        "partitions": sum(entries),
    }
