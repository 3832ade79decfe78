"""The Pareto front: who is on it, and what the drawing says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.metrics import Estimate
from edgeprune.report.front import DENSE, FrontPoint, description_of, front_of, front_svg


def point(name: str, size: Any, accuracy: Any, **more: Any) -> FrontPoint:
    return FrontPoint(name, more.pop("series", "s"), name, {"size": size, "accuracy": accuracy}, **more)


POINTS = (
    point("dense", 100.0, 0.9, series=DENSE),
    point("a", 50.0, 0.8, state="passed", chosen=True),
    point("b", 60.0, 0.7, state="failed"),
    point("c", 70.0, 0.85, state="cannot tell", series="t"),
)


def test_the_front_is_what_no_other_beats() -> None:
    assert [one.name for one in front_of(POINTS, "size")] == ["a", "c", "dense"]
    assert [one.name for one in front_of(POINTS[::-1], "size")] == ["a", "c", "dense"]
    # As good for less leaves it; the same in both stays.
    assert [one.name for one in front_of((*POINTS, point("d", 70.0, 0.9)), "size")] == ["a", "d"]
    assert [one.name for one in front_of((*POINTS, point("e", 50.0, 0.8)), "size")] == [
        "a",
        "e",
        "c",
        "dense",
    ]


def test_what_was_not_measured_is_left_out() -> None:
    points = (*POINTS, point("f", None, 0.99), point("g", 1.0, None))
    assert [one.name for one in front_of(points, "size")] == ["a", "c", "dense"]
    assert front_of(points, "latency_ratio") == ()
    assert front_svg(points, "latency_ratio") == ""
    assert front_of((point("h", Estimate(2.0, 1.0, 3.0), 0.5),), "size")[0].value("size") == 2.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_whoever_is_not_on_the_front_is_beaten_by_one_that_is(values: list[tuple[int, int]]) -> None:
    points = [point(str(number), float(x), float(y)) for number, (x, y) in enumerate(values)]
    front = front_of(points, "size")
    costs = [(one.value("size"), one.value("accuracy")) for one in front]
    assert costs == sorted(costs)
    for one in points:
        x, y = one.value("size"), one.value("accuracy")
        beaten = any(a <= x and b >= y and (a, b) != (x, y) for a, b in costs)  # type: ignore[operator]
        assert beaten != (one in front)


def test_the_drawing_says_in_words_what_it_shows() -> None:
    svg = front_svg(POINTS, "size")
    assert svg == front_svg(POINTS, "size")
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.find("title").text == "Test accuracy by onnx file"  # type: ignore[union-attr]
    told = root.find("desc").text  # type: ignore[union-attr]
    assert told == description_of(POINTS, "size")
    assert "a: 50 B, 80.00 % (passed, on the front, chosen)" in told
    assert "b: 60 B, 70.00 % (failed)" in told
    texts = {node.text for node in root.iter("text")}
    assert {"dense", "a", "b", "c", "s", "t"} <= texts
    # Who has an interval gets a bar: one path more.
    wide = (*POINTS[:3], point("c", Estimate(70.0, 60.0, 80.0), 0.85, state="cannot tell", series="t"))
    assert front_svg(wide, "size").count("<path") == svg.count("<path") + 1


@pytest.mark.parametrize(("cost", "tick"), [("macs", "M"), ("latency_ratio", "0."), ("size", "kB")])
def test_axes_have_units(cost: str, tick: str) -> None:
    scale = {"macs": 1e7, "latency_ratio": 0.1, "size": 1e4}[cost]
    points = [
        FrontPoint(str(k), "s", str(k), {cost: scale * k, "accuracy": 0.5 + k / 10}, "passed")
        for k in (1, 2, 3)
    ]
    texts = [node.text or "" for node in ET.fromstring(front_svg(points, cost)).iter("text")]
    assert any(tick in text for text in texts)
    assert any(text.endswith("%") for text in texts)
