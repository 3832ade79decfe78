"""What the worker feeds a model: shapes from the file and from the job, numbers of every type."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune.runners.worker import common, session

JOB = {"provider": common.CPU, "provider_options": {}, "threads": 1, "input": None}


def _inputs(**shapes: list[Any]) -> list[Any]:
    return [SimpleNamespace(name=name, shape=shape) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    ("shapes", "given", "expected"),
    [
        ({"x": [1, 3, 8, 8]}, {}, [[1, 3, 8, 8]]),
        ({"x": ["N", 3, 8, 8]}, {}, [[1, 3, 8, 8]]),
        ({"x": [None, 3]}, {}, [[1, 3]]),
        ({"x": [-1, 3]}, {}, [[1, 3]]),
        ({"x": ["N", 3, "H", "W"]}, {"input": [2, 3, 16, 8]}, [[2, 3, 16, 8]]),
        ({"x": ["N", 3, "H", "W"]}, {"dims": {"H": 16, "W": 8}}, [[1, 3, 16, 8]]),
        ({"x": ["N", 3, "H"], "z": ["N", 4]}, {"dims": {"N": 2, "H": 6}}, [[2, 3, 6], [2, 4]]),
        ({"x": ["N", "L"], "mask": ["N", "L"], "k": []}, {"input": [2, 7]}, [[2, 7], [2, 7], []]),
        ({"x": ["N", "L"], "mask": ["N", "L"]}, {"inputs": {"mask": [2, 7]}}, [[2, 7], [2, 7]]),
        ({"x": ["N", 3], "z": ["M", 4]}, {"input": [2, 3]}, [[2, 3], [2, 4]]),
        ({"x": [1, None], "z": [-1, None]}, {"inputs": {"x": [1, 5], "z": [3, 6]}}, [[1, 5], [3, 6]]),
        ({"x": []}, {"input": [1, 5]}, [[1, 5]]),
        ({"x": ["N", 3]}, {"input": [2, 3], "inputs": {"x": [2, 3]}, "dims": {"N": 2}}, [[2, 3]]),
        ({}, {}, []),
    ],
)
def test_input_shapes(shapes: dict[str, list[Any]], given: dict[str, Any], expected: list[list[int]]) -> None:
    assert session.input_shapes(_inputs(**shapes), given) == expected


@pytest.mark.parametrize(
    ("shapes", "given", "message", "hint"),
    [
        (
            {"x": [1, 3, "H", 8]},
            {},
            r"open in dimension 'H' \(axis 2\) of its input 'x' of 1x3xHx8",
            "Give --dim 'H=SIZE', or the same under [runtime.dims]",
        ),
        (
            {"x": [1, 3, "H", "W"]},
            {},
            r"open in dimensions 'H' \(axis 2\), 'W' \(axis 3\) of its input",
            "--dim 'H=SIZE' --dim 'W=SIZE'",
        ),
        (
            {"x": [1, None]},
            {},
            r"dimension '\?' \(axis 1\) of its input 'x' of 1x\?",
            "Give --input 'x=1,SIZE', or the same under [runtime.inputs]",
        ),
        (
            {"x": [1], "z": [1, "L"]},
            {"input": [1]},
            r"dimension 'L' \(axis 1\) of its input 'z'",
            "--dim 'L=SIZE'",
        ),
        (
            {"x": [None, None], "z": [1, None]},
            {"input": [1, 5]},
            r"'\?' \(axis 1\) of its input 'z'",
            "--input 'z=1,SIZE'",
        ),
        (
            {"x": [1, 3, 8, 8]},
            {"input": [1, 3, 9, 9]},
            "an input 'x' of 1x3x8x8, while 1x3x9x9 is asked for",
            "leave them out",
        ),
        ({"x": ["N", 3]}, {"input": [1, 3, 9]}, "while 1x3x9 is asked for", "leave them out"),
        (
            {"x": ["N", 3]},
            {"input": [2, 3], "dims": {"N": 4}},
            "while 2x3 is asked for, and 'N' is 4 elsewhere",
            "leave them out",
        ),
        ({"x": ["N", "N"]}, {"input": [2, 3]}, "and 'N' is 2 elsewhere", "leave them out"),
        (
            {"x": ["N", 3]},
            {"dims": {"n": 4}},
            r"without an open dimension 'n' \(it has: 'N'\)",
            "one of these",
        ),
        (
            {"x": [1, 3]},
            {"dims": {"n": 4}},
            r"without an open dimension 'n' \(it has: none\)",
            "Leave it out",
        ),
        ({"x": [1, 3]}, {"inputs": {"y": [4]}}, r"without an input 'y' \(it has: 'x'\)", "one of these"),
        ({}, {"input": [4]}, "without inputs, while 4 is asked for", "Leave the shape out"),
        (
            {"x": ["N", 3]},
            {"input": [2, 3], "inputs": {"x": [4, 3]}},
            "asked to take 2x3 as the first one and 4x3 by its name at its input 'x'",
            "one of them",
        ),
    ],
)
def test_input_shapes_that_cannot_be(
    shapes: dict[str, list[Any]], given: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(common.Fault, match=message) as caught:
        session.input_shapes(_inputs(**shapes), given)
    assert caught.value.kind == "model"
    assert hint in caught.value.hint


def test_codes_in_names_do_not_reach_the_terminal() -> None:
    assert common.Fault("model", "no \x1b[2J\n\x9b such 'ä'").message == "no ?[2J?? such 'ä'"


def test_inputs_without_elements_are_refused() -> None:
    empty = SimpleNamespace(name="x", type="tensor(float)", shape=[0, 3])
    full = SimpleNamespace(name="z", type="tensor(float)", shape=[2, 3])
    with pytest.raises(common.Fault, match=r"inputs without elements \('x' of 0x3\)"):
        session.make_inputs(JOB, SimpleNamespace(get_inputs=lambda: [empty]))
    feed = session.make_inputs(JOB, SimpleNamespace(get_inputs=lambda: [empty, full]))
    assert [array.shape for array in feed.values()] == [(0, 3), (2, 3)]  # an empty cache is fine


def test_inputs_share_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "memory_bytes", lambda: 4 * 2 * 200 * 4)  # room for two inputs of 50 x 4
    assert len(session.make_inputs(JOB, _session("float", "int32"))) == 2
    with pytest.raises(common.Fault, match=r"an input 'int64' of 50x4, 1\.6e-06 GB"):
        session.make_inputs(JOB, _session("float", "int32", "int64"))


def test_a_failure_on_whole_numbers_says_what_was_fed() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of range")

    with pytest.raises(common.Fault, match=r"failing when it runs on i of 2 \(out of range\)") as caught:
        session.run_once(JOB, SimpleNamespace(run=fail), {"i": np.zeros(2, np.int64)})
    assert "fed 0s and 1s" in caught.value.hint


def _session(*types: str) -> Any:
    values = [SimpleNamespace(name=name, type=f"tensor({name})", shape=[50, 4]) for name in types]
    return SimpleNamespace(get_inputs=lambda: values)


def test_inputs_of_every_type_are_the_same_each_time() -> None:
    names = [name.removeprefix("tensor(").removesuffix(")") for name in session.DTYPES]
    first, second = (session.make_inputs(JOB, _session(*names)) for _ in range(2))
    for name, array in first.items():
        assert array.dtype == session.DTYPES[f"tensor({name})"]
        assert array.shape == (50, 4)
        np.testing.assert_array_equal(array, second[name])
    assert set(first["int64"].flat) == {0, 1}
    assert first["uint8"].max() > 200
    assert first["int8"].min() < -100
    assert first["bool"].all()
    assert 0.8 < first["float"].std() < 1.2
