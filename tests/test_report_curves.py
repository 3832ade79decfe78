"""The curves of the trainings in the report."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from edgeprune.report import Curves, make_report, report_html, report_markdown, training_curves
from edgeprune.report.curves import curve_plot
from edgeprune.report.plotting import Plot
from tests.test_report import COMMAND, SLIM

EPOCHS = [
    {"loss": 2.0, "val_accuracy": 0.5, "sparsity": 0.0},
    {"loss": 1.0, "val_accuracy": 0.75, "sparsity": 0.25},
    {"loss": 0.5, "val_accuracy": 0.7, "sparsity": 0.5},
]
PLAIN = [{**epoch, "sparsity": None} for epoch in EPOCHS]


def test_only_trainings_with_epochs_have_curves() -> None:
    found = training_curves(
        {
            "dense training": {"epochs": PLAIN},
            "none": {"epochs": []},
            "absent": None,
            "ns": {"epochs": EPOCHS},
        }
    )
    assert found == (
        Curves("dense training", (2.0, 1.0, 0.5), (0.5, 0.75, 0.7)),
        Curves("ns", (2.0, 1.0, 0.5), (0.5, 0.75, 0.7), (0.0, 0.25, 0.5)),
    )
    assert found[1].sentence == (
        "ns, 3 epochs: loss from 2 to 0.5; validation accuracy from 50.00 % to 70.00 %, at best 75.00 %; "
        "zeros from 0.00 % to 50.00 %"
    )
    assert replace(found[0], losses=(1.0,)).sentence.startswith("dense training, 1 epoch: loss from 1 to 1;")


def lines(plot: Plot) -> list[np.ndarray]:
    """Points of the lines of a plot, in pixels, from the panel above on."""
    paths = [
        path for path in ET.fromstring(plot.svg).iter("path") if "stroke: var(--slim)" in str(path.attrib)
    ]
    points = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.attrib["d"]) for path in paths]
    return [np.array(found, dtype=float) for found in points if len(found) == len(EPOCHS)]


def test_the_lines_are_drawn_where_the_values_are() -> None:
    (curves,) = training_curves({"ns": {"epochs": EPOCHS}})
    plot = curve_plot(curves)
    drawn = lines(plot)
    assert len(drawn) == 3
    for points, values in zip(drawn, (curves.losses, curves.accuracies, curves.sparsities), strict=True):
        steps, heights = np.diff(values), -np.diff(points[:, 1])  # of a page, y grows downwards
        assert heights / heights[0] == pytest.approx(steps / steps[0], rel=0.01)
        assert np.diff(points[:, 0])[0] == pytest.approx(np.diff(points[:, 0])[1], abs=0.02)
        assert np.sign(heights[0]) == np.sign(steps[0])
    assert plot.description == f"{curves.sentence}."
    shown = [text.text for text in ET.fromstring(plot.svg).iter("text")]
    assert {"loss", "validation accuracy, %", "variables at zero, %", "epoch", "1", "2", "3"} <= {*shown}
    single = curve_plot(Curves("one", (0.0,), (1.0,)))
    assert "nan" not in single.svg
    assert "<svg" in curve_plot(Curves("diverged", (1.0, float("inf"), float("nan")), (0.1,) * 3)).svg
    assert "variables at zero" not in single.svg


def test_the_report_has_them_as_a_drawing_and_as_text() -> None:
    curves = training_curves({"dense <b>": {"epochs": PLAIN}})
    report = make_report(SLIM, (), command=COMMAND, curves=curves)
    page, text = report_html(report), report_markdown(report)
    assert "Training</h2>" in page
    assert "dense &lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<svg ") == 1 + 2 + 1  # the training, the latency, the memory
    assert "## Training\n\n- dense &lt;b>, 3 epochs: loss from 2 to 0.5" in text
    without = make_report(SLIM, (), command=COMMAND)
    assert "Training" not in report_html(without) + report_markdown(without)
