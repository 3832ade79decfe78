"""What a sweep has found, as a page, as Markdown and as a table for 80 columns. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from edgeprune.metrics import METRICS, Estimate
from edgeprune.report import plotting
from edgeprune.report.colours import variables
from edgeprune.report.content import NONE, Table, printable
from edgeprune.report.front import DENSE, FrontPoint, front_of, front_svg
from edgeprune.units import format_quantity
from edgeprune.verdict import format_measured

COSTS = {"size": "s", "macs": "m", "latency_ratio": "l"}
"""Metrics that a front is drawn over, and the letter that marks it in a table."""
LEGEND = "front: best accuracy for its size (s), multiply-adds (m), latency (l)"


@dataclass(frozen=True)
class SweepReport:
    """All that is said of a sweep.

    Attributes:
        title: What was swept where.
        outcome: Which point is released, or why none, in one sentence.
        state: Of the whole: ``"passed"``, ``"failed"`` or ``"cannot tell"``.
        points: The dense network and every point that was measured.
        ratio_of: Metric that the points' labels bound, e.g. ``"macs"``.
        failures: Name of each point that failed, and why.
        misses: Name of each point that does not pass, and its budgets that it does not pass.
        notes: What the reader should know.
        commands: That do it again, and that show a point.
    """

    title: str
    outcome: str
    state: str
    points: tuple[FrontPoint, ...]
    ratio_of: str
    failures: tuple[tuple[str, str], ...]
    misses: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...]
    commands: tuple[str, ...]


def front_letters(points: Sequence[FrontPoint]) -> dict[str, str]:
    """By name, the letters of the fronts that a point is on."""
    found = {point.name: "" for point in points}
    for cost, letter in COSTS.items():
        for point in front_of(points, cost):
            found[point.name] += letter
    return found


def sweep_table(report: SweepReport, *, brief: bool = False) -> Table:
    """A row for each network.

    Args:
        report: Of a sweep.
        brief: For 80 columns: multiply-adds as a share of the dense network's, and two digits.
    """
    letters = front_letters(report.points)
    dense = next((point for point in report.points if point.series == DENSE), None)
    macs = "MACs" if brief else METRICS["macs"].text
    header: tuple[str, ...] = ("scheme", "ratio", "size", macs)
    header += ("latency", "acc. %") if brief else (METRICS["latency_ratio"].text, METRICS["accuracy"].text)
    rows = []
    for point in report.points:
        cells = [point.series, NONE if point.series == DENSE else point.label]
        cells.append(format_measured(point.values.get("size"), "size"))
        if brief:
            cells += [_share(point, dense), _ratio(point.values.get("latency_ratio"))]
        else:
            cells += [
                format_measured(point.values.get("macs"), "count"),
                _or_none(point.values.get("latency_ratio"), "ratio"),
            ]
        accuracy = format_measured(point.values.get("accuracy"), "fraction")
        cells.append(accuracy.removesuffix(" %") if brief else accuracy)
        state = "passed, best" if point.chosen else point.state or NONE
        if brief and point.chosen:
            state = "best"
        rows.append((*cells, letters[point.name] or NONE, state))
    for name, _ in report.failures:
        scheme, _, rest = name.partition(f"-{report.ratio_of}-")
        rows.append((scheme, rest, *(NONE for _ in range(5)), "error"))
    return Table((*header, "front", "verdict"), tuple(rows))


def terminal_table(report: SweepReport) -> RichTable:
    """The table for a terminal of 80 columns; what it says does not depend on colour."""
    table = RichTable(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    content = sweep_table(report, brief=True)
    for number, name in enumerate(content.header):
        right = 0 < number < len(content.header) - 2
        table.add_column(
            name, overflow="fold", no_wrap=number > 0, justify="right" if right else "left", min_width=3
        )
    colours = {
        "passed": "green",
        "best": "bold green",
        "failed": "bold red",
        "error": "bold red",
        "cannot tell": "yellow",
    }
    for row in content.rows:
        cells = [Text(printable(cell)) for cell in row]
        cells[-1].stylize(colours.get(row[-1], ""))
        table.add_row(*cells)
    return table


def sweep_html(report: SweepReport) -> str:
    """The sweep as a page of its own: no scripts, nothing loaded from elsewhere."""
    drawings = []
    if plotting.has_matplotlib():
        drawings = [svg for cost in COSTS if (svg := front_svg(report.points, cost))]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeprune.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    return environment.get_template("sweep.html").render(
        report=report, table=sweep_table(report), legend=LEGEND, sections=sections_of(report),
        drawings=drawings, no_plots="" if drawings else plotting.HINT,
        light=variables("light"), dark=variables("dark"), printable=printable,
        state=report.state.replace(" ", "-"), ratio_of=METRICS[f"{report.ratio_of}_ratio"].text,
    )  # fmt: skip


def sections_of(report: SweepReport) -> list[tuple[str, list[str]]]:
    """Title and lines of what stands below the table."""
    found = []
    if report.failures:
        found.append(("Failed", [f"{name}: {text}" for name, text in report.failures]))
    if report.misses:
        found.append(
            ("Budgets that are not met", [f"{name}: {'; '.join(how)}" for name, how in report.misses])
        )
    found.append(("Notes", list(report.notes)))
    return found


def _share(point: FrontPoint, dense: FrontPoint | None) -> str:
    macs, whole = point.value("macs"), dense.value("macs") if dense else None
    return NONE if macs is None or not whole else f"{macs / whole:.3f}"


def _ratio(value: float | Estimate | None) -> str:
    if isinstance(value, Estimate):
        return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
    return NONE if value is None else f"{value:.2f}"


def _or_none(value: float | Estimate | None, quantity: str) -> str:
    if isinstance(value, float):
        return format_quantity(value, quantity)  # type: ignore[arg-type]
    return NONE if value is None else format_measured(value, quantity)  # type: ignore[arg-type]
