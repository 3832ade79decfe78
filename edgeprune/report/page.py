"""The report as one HTML file: no scripts, nothing loaded from elsewhere. Device side: no torch."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from edgeprune.report import sections
from edgeprune.report.colours import variables
from edgeprune.report.content import Report, printable, reasons, verdict_rows
from edgeprune.report.curves import curve_plot
from edgeprune.report.drawing import MOST_CLASSES, depth_plots, structure_plots
from edgeprune.report.parts import widths_sentence
from edgeprune.report.plots import classes_plot, latency_plots, memory_plot, search_plot, widths_plot
from edgeprune.report.plotting import HINT, has_matplotlib
from edgeprune.verdict import exit_code

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content Security Policy of the page: not even a picture of its own folder."""


def report_html(report: Report) -> str:
    """The report as a page of its own, light or dark as the reader's system is."""
    every = [verdict for _, verdicts in sections.gates(report) for verdict in verdicts]
    outcomes = {0: "passed" if every else "cannot-tell", 1: "failed", 3: "cannot-tell"}
    notes = report.notes
    if not has_matplotlib():
        notes += (f"Plots are left out, their text stands in their place: {HINT}",)
    plots = {
        "widths": [widths_plot(report.widths)] if report.widths else [],
        "latency": latency_plots(report.samples_s) if report.samples_s else [],
        "memory": [memory_plot(report.memory)] if report.memory else [],
        "by_class": [classes_plot(report.class_accuracies)] if report.class_accuracies else [],
        "search": [search_plot(report.search)] if report.search else [],
        "structure": structure_plots(report.classes) if report.classes else [],
        "depths": depth_plots(report.classes) if report.classes else [],
        "training": [curve_plot(one) for one in report.curves],
    }
    text = _environment().get_template("page.html").render(
        report=report, notes=notes, plots=plots, sections=sections, policy=POLICY,
        outcome=outcomes[exit_code(every)], reasons=reasons, verdict_rows=verdict_rows,
        widths_sentence=widths_sentence, most_classes=MOST_CLASSES,
        light=variables("light"), dark=variables("dark"),
    )  # fmt: skip
    return text + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("edgeprune.report") / "templates"

    def clean(value: object) -> object:
        """What a user wrote may hold control characters; what a template made may not."""
        if not isinstance(value, str) or hasattr(value, "__html__"):
            return value
        return printable(value, "\n\N{NO-BREAK SPACE}")

    return Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=clean,
    )  # fmt: skip
