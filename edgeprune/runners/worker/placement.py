"""Where each node of a model runs."""

from __future__ import annotations

import base64
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from .common import CPU, Fault, Job, blaming, ort
from .providers import functional_only, listed
from .session import make_inputs, open_session, run_once, session_options

# Convolution and Relu on 1x16x8x8, as ONNX (opset 13): what every provider for networks of images takes.
PROBE_MODEL = base64.b64decode(
    "CAc6pwEKFwoBcxIBdyIPQ29uc3RhbnRPZlNoYXBlCigKAXgKAXcSAWEaBGNvbnYiBENvbnYqEQoEcGFkc0ABQAFAAUABoAEHChIK"
    "AWESAXkaBHJlbHUiBFJlbHUSBXByb2JlKg0IBBAHOgQQEAMDQgFzWhsKAXgSFgoUCAESEAoCCAEKAggQCgIICAoCCAhiGwoBeRIW"
    "ChQIARIQCgIIAQoCCBAKAggICgIICEIECgAQDQ=="
)
NAMED = 20  # nodes that an error names at most


def placement(job: Job) -> Job:
    """Prove where each node runs, which a session's own list of providers does not.

    From onnxruntime 1.24 a session records its assignment (nodes before fusion); before that a profile of one
    inference tells (kernels after fusion). The profile also tells how often execution enters the provider.
    """
    model = job["models"][0]
    with blaming(model):
        try:
            return place(job, model)
        except Fault as fault:
            if not job.get("strict") or fault.kind != "provider":
                raise
            # What strict mode refuses it does not name: ask without it.
            left = place({**job, "strict": False}, model)["left_to_cpu"]
            if not left:
                raise
            names = ", ".join(f"{node['name']} ({node['op_type']})" for node in left[:NAMED])
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            message = f"leaving {len(left)} nodes to the CPU, which runtime.strict forbids: {names}{more}"
            hint = "Let them run on the CPU with strict = false, or change the network."
            raise Fault("provider", message, hint) from None


def place(job: Job, model: str | bytes) -> Job:
    """Open a model, run it once, and tell where its nodes went."""
    provider, options = job["provider"], session_options(job)
    recorded = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info") and not job.get("profile")
    with tempfile.TemporaryDirectory() as folder:
        if recorded:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = open_session(job, model, options)
        feed = make_inputs(job, session)
        run_once(job, session, feed)
        kernels = profiled_nodes(session.end_profiling())
        nodes = recorded_nodes(session) if recorded else kernels
    count = Counter(by for by, _, _ in nodes)
    if provider != CPU and not count[provider]:
        what = "the trivial model" if isinstance(model, bytes) else model
        message = f"listed, but took none of the {len(nodes)} nodes of {what}: every one is on the CPU"
        raise Fault("provider", message)
    return {
        "source": "assignment" if recorded else "profile",
        "nodes": dict(count),
        "left_to_cpu": [{"name": name, "op_type": kind} for by, name, kind in nodes if by == CPU != provider],
        "assigned": {name: [[node, kind] for by, node, kind in nodes if by == name] for name in count},
        "partitions": partitions(kernels, provider),
        "functional_only": functional_only(provider),
        "inputs": [
            {"name": i.name, "type": i.type, "shape": list(feed[i.name].shape)} for i in session.get_inputs()
        ],
    }


def recorded_nodes(session: Any) -> list[tuple[str, str, str]]:
    """(provider, name, operator) of each node as the session recorded it."""
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.name, node.op_type) for part in parts for node in part.get_nodes()]


def profiled_nodes(path: str) -> list[tuple[str, str, str]]:
    """(provider, name, operator) of each kernel in a profile of one inference, in the order of execution."""
    end = "_kernel_time"
    events = json.loads(Path(path).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(end)]
    return [(k["args"]["provider"], k["name"].removesuffix(end), k["args"]["op_name"]) for k in kernels]


def partitions(kernels: list[tuple[str, str, str]], provider: str) -> int:
    """How often one inference enters a provider: each time it hands data over and takes them back.

    A provider that compiles shows one kernel for each subgraph, whose made-up operator has an underscore, as
    no operator of onnxruntime has.
    """
    count, before = 0, ""
    for by, _, kind in kernels:
        if by == provider and (by != before or "_" in kind):
            count += 1
        before = by
    return count


def probe(job: Job) -> Job:
    """Whether the job's provider runs anything here: what ``placement`` finds on a trivial model."""
    return place({**job, "input": None, "strict": False}, PROBE_MODEL)


def providers(_: Job) -> Job:
    """The providers that are listed here; ``probe`` says of one whether it runs."""
    return {"providers": listed()}
