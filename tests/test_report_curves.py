"""The curves of the trainings in the report."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edgeprune.report import Curves, make_report, report_html, report_markdown, training_curves
from edgeprune.report.curves import curves_html
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


def test_the_lines_are_drawn_where_the_values_are() -> None:
    drawn = curves_html(training_curves({"ns": {"epochs": EPOCHS}}))
    lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]+)"', drawn))
    assert set(lines) == {"loss", "accuracy", "sparsity"}
    heights = {kind: [float(point.split(",")[1]) for point in text.split()] for kind, text in lines.items()}
    top, bottom, high = 8, 110, 84
    assert heights["loss"] == pytest.approx([top, top + high / 2, top + high * 0.75])
    assert heights["accuracy"] == pytest.approx(
        [bottom + high * share for share in (0.5, 0.25, 0.3)], abs=0.06
    )
    assert heights["sparsity"] == pytest.approx([bottom + high * share for share in (1, 0.75, 0.5)], abs=0.06)
    assert 'aria-label="ns, 3 epochs: loss from 2 to 0.5' in drawn
    single = curves_html((Curves("one", (0.0,), (1.0,)),))
    assert len(re.findall(r"polyline", single)) == 2
    assert "nan" not in single


def test_the_report_has_them_as_a_drawing_and_as_text() -> None:
    curves = training_curves({"dense <b>": {"epochs": PLAIN}})
    report = make_report(SLIM, (), command=COMMAND, curves=curves)
    page, text = report_html(report), report_markdown(report)
    assert "<h2>Training</h2>" in page
    assert "dense &lt;b&gt;" in page
    assert "<b>" not in page
    assert "## Training\n\n- dense &lt;b>, 3 epochs: loss from 2 to 0.5" in text
    without = make_report(SLIM, (), command=COMMAND)
    assert "Training" not in report_html(without) + report_markdown(without)
