"""What the JSON of a measurement must look like: it decides releases, so it is read strictly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeprune.artifact import is_artifact, is_number, is_texts
from edgeprune.instructions import is_instructions

MEASUREMENT_FORMAT = 3
MEMORY_FIGURES = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")

TIMES = ("latency_samples_s", "load_s", "first_inference_s")


def _is_times(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(is_number(t) and t > 0 for t in value)


def _is_samples(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(_is_times(times) for times in value)


def _is_nothing(value: Any) -> bool:
    """Of times: nothing was timed."""
    return isinstance(value, list | tuple) and not value


def _is_nodes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(node, dict) and "op_type" in node for node in value)


def _is_assigned(value: Any) -> bool:
    if value is None:  # a runner that cannot tell
        return True
    lists = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(nodes, list) and all(map(is_texts, nodes)) for nodes in lists)


def _is_placement(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_nodes(value.get("left_to_cpu")):
        return False
    partitions, shares, why = (value.get(key) for key in ("partitions", "macs_share", "functional_only"))
    nodes, inputs, source = value.get("nodes") or {}, value.get("inputs", []), value.get("source")
    return (
        _is_assigned(value.get("assigned"))
        and isinstance(nodes, dict)
        and isinstance(inputs, list)
        and all(isinstance(one, dict) and {"name", "type", "shape"} <= set(one) for one in inputs)
        and all(isinstance(one["shape"], list) for one in inputs)
        and (source is None or isinstance(source, str))
        and (partitions is None or (is_number(partitions) and partitions >= 0))
        and (shares is None or (isinstance(shares, dict) and all(map(is_number, shares.values()))))
        and (why is None or (isinstance(why, str) and bool(why)))
    )


def _is_memory(value: Any) -> bool:
    parts = {"arena": ("peak_bytes", "held_bytes"), "device": ("peak_bytes",)}
    if not _is_told(value, MEMORY_FIGURES) or not {"repeats", *parts} <= set(value):
        return False
    if not isinstance(value["repeats"], list | tuple) or not all(map(is_number, value["repeats"])):
        return False
    return all(_is_told(value[part], figures) for part, figures in parts.items())


def _is_told(value: Any, figures: Sequence[str]) -> bool:
    """Whether there are numbers with their method, or None for each and why."""
    if not isinstance(value, dict) or not {*figures, "method", "why"} <= set(value):
        return False
    numbers = [value[name] for name in figures if value[name] is not None]
    return all(is_number(one) and one >= 0 for one in numbers) and bool(
        value["why"] or len(numbers) == len(figures)
    )


_PARTS: dict[str, Callable[[Any], bool]] = {
    "target_name": lambda value: isinstance(value, str),
    "target_sha256": lambda value: isinstance(value, str),
    "runtime": lambda value: isinstance(value, dict),
    "artifact": is_artifact,
    "environment": lambda value: isinstance(value, dict),
    "placement": _is_placement,
    "memory": _is_memory,
    "instructions": is_instructions,
    "latency_samples_s": lambda value: _is_nothing(value) or _is_samples(value),
    "load_s": lambda value: _is_nothing(value) or (_is_times(value) and len(value) > 1),
    "first_inference_s": lambda value: _is_nothing(value) or (_is_times(value) and len(value) > 1),
    "notes": is_texts,
    "baseline": lambda value: value is None or isinstance(value, dict),
}


def format_fault(content: Any) -> str | None:
    """What is wrong with a measurement's JSON, to follow "is"; None if nothing is."""
    if not isinstance(content, dict) or content.get("format") != MEASUREMENT_FORMAT:
        return "of another format"
    odd = set(content) ^ {"format", *_PARTS}
    if odd:
        return f"with {', '.join(sorted(odd))} missing or unknown"
    placement = content["placement"]
    timeless = isinstance(placement, dict) and placement.get("functional_only")
    for key, is_right in _PARTS.items():
        # What a simulator took must not be there, and what a device took must.
        if (content[key] not in ([], ())) if timeless and key in TIMES else not is_right(content[key]):
            return f"wrong in '{key}'"
    processes = {len(content[key]) for key in ("latency_samples_s", "load_s", "first_inference_s")}
    starts = [len(content[key]) for key in ("load_s", "first_inference_s")]
    if (len(processes) > 1 and 0 in processes) or starts[0] != starts[1]:
        return "with a part of its times"
    baseline = content["baseline"]
    if baseline is None:
        return None
    if baseline.get("baseline") is not None:
        return "with a baseline of its baseline"
    fault = format_fault(baseline)
    if fault:
        return f"{fault} of its baseline"
    counts = [[len(samples) for samples in side["latency_samples_s"]] for side in (content, baseline)]
    if counts[0] != counts[1] or len(baseline["load_s"]) != starts[0]:
        return "without a partner for each sample of its baseline"
    return None
