"""Where each node of a model runs."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from .common import CPU, Fault, Job, blaming, ort
from .session import make_inputs, open_session, run_once, session_options


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
