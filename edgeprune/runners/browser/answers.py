"""What the page's answers must look like: they come from outside, and decide releases."""

from __future__ import annotations

from typing import Any

ENVIRONMENT = (
    "browser", "platform", "machine", "cores", "gpu", "software_adapter", "cross_origin_isolated",
    "clock_step_ms", "providers",
)  # fmt: skip
MAX_TEXT = 500
MAX_COUNT = 10**15


def is_whole(job: str, answer: dict[str, Any], models: int) -> bool:
    """Whether an answer has what the rest reads: it comes from outside."""
    if job == "environment":
        return _are_texts(answer, "software_adapter") and _is_count(answer.get("cores"))
    if job == "placement":
        nodes, left, difference = (answer.get(key) for key in ("nodes", "left_to_cpu", "difference"))
        return (
            isinstance(nodes, dict)
            and all(map(_is_count, nodes.values()))
            and isinstance(left, list)
            and all(isinstance(node, dict) and _are_texts(node, "name", "op_type") for node in left)
            and (difference is None or (isinstance(difference, float | int) and difference >= 0))
            and _is_count(answer.get("repeat"))
            and _are_texts(answer, "software_adapter")
            and isinstance(answer.get("clock_step_ms"), float | int)
        )
    found = answer.get("models")
    if not isinstance(found, list) or len(found) != models:
        return False
    lists = [one.get("samples_ns") if isinstance(one, dict) else None for one in found]
    singles = [one.get(key) for one in found if isinstance(one, dict) for key in ("load_ns", "first_ns")]
    return (
        all(isinstance(taken, list) and taken and all(map(_is_count, taken)) for taken in lists)
        and all(map(_is_count, singles))
        and len({len(taken) for taken in lists if taken}) == 1
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_COUNT


def _are_texts(value: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(value.get(key), str) for key in keys)


def cleaned(value: Any) -> Any:
    """A JSON value whose texts are short and printable: they end in terminals and reports."""
    if isinstance(value, str):
        return "".join(filter(str.isprintable, value[:MAX_TEXT]))
    if isinstance(value, dict):
        return {cleaned(key): cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return value
