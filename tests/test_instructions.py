"""What is counted when, and what a count must look like."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import MeasurementError, UsageError
from edgeprune.instructions import (
    LAUNCHES,
    NOT_COUNTED,
    count_instructions,
    instruction_notes,
    is_instructions,
    must_count,
    planned_launches,
)
from edgeprune.target import Budget, Runtime, Target

TARGET = Target("test device", 8, Runtime(), (), Path("test.toml"), "ab" * 32)
RATIO = Budget("max_instructions_ratio", "instructions_ratio", True, 0.6, "0.6")
COUNTED = {"count": 7, "method": "a counter", "why": None, "repeats": [7, 9, 5]}


class Counter:
    """Counts 9, 5, 7."""

    def __init__(self) -> None:
        self.counts = [9, 5, 7]

    def run(self, job: str, models: Any = (), **_: Any) -> dict[str, Any]:
        assert (job, models) == ("instructions", [Path("a.onnx")])
        return {"count": self.counts.pop(0), "method": "a counter"}


def test_counting_is_asked_for_or_needed_by_a_budget() -> None:
    assert planned_launches(TARGET, False) == 0
    assert planned_launches(TARGET, True) == LAUNCHES
    assert planned_launches(replace(TARGET, budgets=(RATIO,)), False) == LAUNCHES


def test_an_optional_budget_does_without_what_counts() -> None:
    class Absent:
        def run(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise MeasurementError("could not count instructions", where="valgrind", value="absent")

    optional = replace(TARGET, budgets=(replace(RATIO, optional=True),))
    assert planned_launches(optional, False) == LAUNCHES
    assert planned_launches(replace(optional, runtime=Runtime(threads=4)), False) == 0
    assert [must_count(optional, asked) for asked in (False, True)] == [False, True]
    assert must_count(replace(TARGET, budgets=(RATIO, *optional.budgets)), False)
    found = count_instructions(Absent(), Path("a.onnx"), 3, lambda _: None, optional=True)  # type: ignore[arg-type]
    assert found == {**NOT_COUNTED, "why": "could not count instructions: valgrind is absent"}
    assert is_instructions(found)
    with pytest.raises(MeasurementError, match="valgrind is absent"):
        count_instructions(Absent(), Path("a.onnx"), 3, lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (Runtime(threads=4), "could not count instructions: runtime.threads is 4, expected 1, since threads"),
        (
            Runtime(provider="CUDAExecutionProvider"),
            "runtime.provider is CUDAExecutionProvider, expected one that computes on the thread",
        ),
    ],
)
def test_what_cannot_be_counted(runtime: Runtime, message: str) -> None:
    target = replace(TARGET, runtime=runtime)
    assert planned_launches(target, False) == 0
    with pytest.raises(UsageError, match=message):
        planned_launches(target, True)


def test_the_middle_of_all_processes_is_taken_and_all_are_kept() -> None:
    steps: list[str] = []
    found = count_instructions(Counter(), Path("a.onnx"), 3, steps.append)
    assert found == {"count": 7, "method": "a counter", "why": None, "repeats": [9, 5, 7]}
    assert steps[1] == "instructions of a.onnx, process 2 of 3"
    assert count_instructions(Counter(), Path("a.onnx"), 0, steps.append) == NOT_COUNTED


@pytest.mark.parametrize(("counts", "noted"), [([], False), ([4000, 4010], False), ([4000, 4011], True)])
def test_processes_that_differ_are_noted(counts: list[int], noted: bool) -> None:
    notes = instruction_notes("a.onnx", counts)
    assert [note.startswith("a.onnx: instructions differ by 0.2") for note in notes] == [True] * noted


@pytest.mark.parametrize(
    ("change", "is_right"),
    [
        ({}, True),
        (NOT_COUNTED, True),
        ({"count": 8}, False),
        ({"count": 7.0, "repeats": [7.0]}, False),
        ({"count": True, "repeats": [True]}, False),
        ({"count": -7, "repeats": [-7]}, False),
        ({"method": None}, False),
        ({"repeats": None}, False),
        ({"count": None}, False),
        ({"count": None, "repeats": []}, False),
        ({"count": None, "repeats": [], "why": "no tool"}, True),
        ({"extra": 1}, False),
    ],
)
def test_strict_reading(change: dict[str, Any], is_right: bool) -> None:
    assert is_instructions(json.loads(json.dumps(COUNTED | change))) is is_right
    assert not is_instructions([])
