"""Instructions of one warm inference: a cost that does not jitter, for hard limits. Device side: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from edgeprune.budget import Budget
from edgeprune.errors import MeasurementError, UsageError
from edgeprune.runners import Runner
from edgeprune.target import Target

LAUNCHES = 3
PROVIDERS = ("CPUExecutionProvider", "XnnpackExecutionProvider", "DnnlExecutionProvider")
SPREAD = 0.0025  # of launches: what differs is the alignment of buffers
NOT_COUNTED: dict[str, Any] = {
    "count": None,
    "method": None,
    "why": "Instructions were not counted: `edgeprune bench --instructions` does that",
    "repeats": [],
}


def must_count(target: Target, asked: bool) -> bool:
    """Whether a measurement without a count is worth nothing: it is asked for, or a budget insists on it."""
    return asked or any(not budget.optional for budget in _needing(target))


def _needing(target: Target) -> list[Budget]:
    return [budget for budget in target.budgets if budget.metric.startswith("instructions")]


def planned_launches(target: Target, asked: bool) -> int:
    """Processes to count in: 0 unless it is asked for, or a budget of the target needs it.

    Raises:
        UsageError: The target has more than one thread, or a provider that computes elsewhere, and
            ``must_count``.
    """
    if not asked and not _needing(target):
        return 0
    runtime = target.runtime
    for key, expected, is_right, hint in (
        (
            "threads",
            "1, since threads that wait for each other count what depends on the clock",
            runtime.threads == 1,
            "Count them with a target of its own that has threads = 1.",
        ),
        (
            "provider",
            f"one that computes on the thread that asks: {', '.join(PROVIDERS)}",
            runtime.provider in PROVIDERS,
            "Instructions of another processor, or of threads of its own, cannot be counted.",
        ),
    ):
        if not is_right and not must_count(target, asked):
            return 0
        if not is_right:
            value = getattr(runtime, key)
            raise UsageError(
                "could not count instructions",
                where=f"runtime.{key}",
                value=value,
                expected=expected,
                hint=hint,
            )
    return LAUNCHES


def count_instructions(
    runner: Runner, path: Path, launches: int, on_launch: Callable[[str], None], *, optional: bool = False
) -> dict[str, Any]:
    """Count in fresh processes: ``count``, the middle one, ``repeats``, ``method``, ``why`` (None).

    Args:
        runner: Of the target.
        path: The ONNX file.
        launches: From `planned_launches`.
        on_launch: Called with what comes next.
        optional: If what counts is absent, go on without.

    Raises:
        ArtifactError: The file is at fault.
        MeasurementError: What counts is absent, or the provider is, and it is not optional.
    """
    found = []
    for launch in range(launches):
        on_launch(f"instructions of {path.name}, process {launch + 1} of {launches}")
        try:
            found.append(runner.run("instructions", [path]))
        except MeasurementError as reason:
            if not optional:
                raise
            return {**NOT_COUNTED, "why": str(reason).rstrip(".")}
    if not found:
        return dict(NOT_COUNTED)
    repeats = [answer["count"] for answer in found]
    return {"count": median_low(repeats), "method": found[0]["method"], "why": None, "repeats": repeats}


def instruction_notes(name: str, counts: Sequence[int]) -> list[str]:
    """Launches that should agree."""
    spread = (max(counts) - min(counts)) / min(counts) if counts else 0.0
    if spread <= SPREAD:
        return []
    return [
        f"{name}: instructions differ by {spread:.2%} between processes: "
        "take them as no more exact than that."
    ]


def is_instructions(value: Any) -> bool:
    """Whether a JSON value is what ``count_instructions`` gives, or says why there is none."""
    if not isinstance(value, dict) or set(value) != set(NOT_COUNTED):
        return False
    repeats = value["repeats"]
    if not isinstance(repeats, list) or not all(type(count) is int and count > 0 for count in repeats):
        return False
    if value["count"] is None:
        return isinstance(value["why"], str) and not repeats
    return value["count"] in repeats and isinstance(value["method"], str)
