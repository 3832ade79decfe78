"""What the JSON of a measurement must look like: it decides releases, so it is read strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from edgeprune.artifact import Artifact
from edgeprune.instructions import is_instructions

MEASUREMENT_FORMAT = 3
MEMORY_FIGURES = ("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes")

TIMES = ("latency_samples_s", "load_s", "first_inference_s")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_times(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_number(t) and t > 0 for t in value)


def _is_samples(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(_is_times(times) for times in value)


def _is_nothing(value: Any) -> bool:
    """Of times: nothing was timed."""
    return isinstance(value, list | tuple) and not value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _is_nodes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(node, dict) and "op_type" in node for node in value)


def _is_assigned(value: Any) -> bool:
    if value is None:  # a runner that cannot tell
        return True
    lists = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(nodes, list) and all(map(_is_texts, nodes)) for nodes in lists)


def _is_placement(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_nodes(value.get("left_to_cpu")):
        return False
    partitions, shares, why = (value.get(key) for key in ("partitions", "macs_share", "functional_only"))
    return (
        _is_assigned(value.get("assigned"))
        and (partitions is None or (_is_number(partitions) and partitions >= 0))
        and (shares is None or (isinstance(shares, dict) and all(map(_is_number, shares.values()))))
        and (why is None or (isinstance(why, str) and bool(why)))
    )


def _is_memory(value: Any) -> bool:
    parts = {"arena": ("peak_bytes", "held_bytes"), "device": ("peak_bytes",)}
    if not _is_told(value, MEMORY_FIGURES) or not {"repeats", *parts} <= set(value):
        return False
    return all(_is_told(value[part], figures) for part, figures in parts.items())


def _is_told(value: Any, figures: Sequence[str]) -> bool:
    """Whether there are numbers with their method, or None for each and why."""
    if not isinstance(value, dict) or not {*figures, "method", "why"} <= set(value):
        return False
    return all(_is_number(value[name]) or (value["why"] and value[name] is None) for name in figures)


def _is_shares(value: Any) -> bool:
    """Of images: one number for each name."""
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_accuracies(value: Any) -> bool:
    """The three fields of an artifact, or of the note on what it was made of."""
    plain, by_class = (value.get("accuracy"), value.get("accuracy_top5")), value.get("accuracy_by_class")
    return (
        all(map(_is_shares, plain)) and isinstance(by_class, dict) and all(map(_is_shares, by_class.values()))
    )


def _is_variant(value: Any) -> bool:
    """The note on what a file in another precision was made of: the accuracy lost is told from it."""
    if not isinstance(value, dict) or not {"name", "provider", "source"} <= set(value):
        return False
    return isinstance(value["source"], dict) and _is_accuracies(value["source"])


def _is_artifact(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Artifact)}:
        return False
    numbers = [value[name] for name in ("macs", "params", "parity_error") if value[name] is not None]
    shape = value["input_shape"]
    return (
        _is_texts([value["path"], value["sha256"]])
        and _is_accuracies(value)
        and isinstance(value["provenance"], dict)
        and ("precision" not in value["provenance"] or _is_variant(value["provenance"]["precision"]))
        and (shape is None or isinstance(shape, list | tuple))
        and all(map(_is_number, [value["size_bytes"], *numbers, *(shape or [])]))
    )


_PARTS: dict[str, Callable[[Any], bool]] = {
    "target_name": lambda value: isinstance(value, str),
    "target_sha256": lambda value: isinstance(value, str),
    "runtime": lambda value: isinstance(value, dict),
    "artifact": _is_artifact,
    "environment": lambda value: isinstance(value, dict),
    "placement": _is_placement,
    "memory": _is_memory,
    "instructions": is_instructions,
    "latency_samples_s": lambda value: _is_nothing(value) or _is_samples(value),
    "load_s": lambda value: _is_nothing(value) or (_is_times(value) and len(value) > 1),
    "first_inference_s": lambda value: _is_nothing(value) or (_is_times(value) and len(value) > 1),
    "notes": _is_texts,
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
    if len(processes) > 1 and 0 in processes:
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
    return None if counts[0] == counts[1] else "without a partner for each sample of its baseline"
