"""Tables of the sections, for the page and for Markdown. Device side: no torch."""

from __future__ import annotations

from edgeprune.report.content import NONE, Report, Table
from edgeprune.report.parts import ClassAccuracies, LayerWidth, MemoryPhase, Search
from edgeprune.units import format_quantity
from edgeprune.verdict import Verdict

MOST_ROWS = 100
"""Classes that a table names; the others lost least."""


def gates(report: Report) -> list[tuple[str, tuple[Verdict, ...]]]:
    """Verdicts by target, the report's own first; a target without a name stands alone."""
    if not report.also:
        return [("", report.verdicts)]
    return [(report.target, report.verdicts), *report.also.items()]


def widths_table(widths: tuple[LayerWidth, ...]) -> Table:
    """A row for each layer."""
    rows = [
        (one.name, f"{one.dense:,}", f"{one.slim:,}", format_quantity(one.slim / one.dense, "ratio"))
        for one in widths
    ]
    return Table(("layer", "dense", "slim", "slim / dense"), tuple(rows))


def memory_table(phases: tuple[MemoryPhase, ...]) -> Table:
    """A row for each phase."""
    rows = []
    for one in phases:
        ratio = format_quantity(one.slim / one.dense, "ratio") if one.dense else NONE
        dense = NONE if one.dense is None else format_quantity(one.dense, "size")
        rows.append((one.name, dense, format_quantity(one.slim, "size"), ratio))
    if not any(one.dense is not None for one in phases):
        return Table(("phase", "network"), tuple((name, slim) for name, _, slim, _ in rows))
    return Table(("phase", "dense", "slim", "slim / dense"), tuple(rows))


def classes_table(found: ClassAccuracies) -> Table:
    """A row for each class, those that lost most first."""
    rows = []
    for one in found.classes[:MOST_ROWS]:
        slim = format_quantity(one.slim, "fraction")
        if one.dense is None or one.change is None:
            rows.append((one.name, NONE, slim, NONE))
        else:
            change = format_quantity(one.change, "drop", signed=True)
            rows.append((one.name, format_quantity(one.dense, "fraction"), slim, change))
    return Table(("class", "dense", "slim", "change"), tuple(rows))


def classes_left_out(found: ClassAccuracies) -> str:
    """A sentence on the classes that the table does not name; empty if it names all."""
    more = found.classes[MOST_ROWS:]
    if not more:
        return ""
    first = more[0].change
    text = f"{len(more)} more classes are left out"
    return (
        f"{text}." if first is None else f"{text}: {format_quantity(first, 'drop', signed=True)} or better."
    )


def search_table(search: Search) -> Table:
    """A row for each candidate; the chosen one says so."""
    sized = any(probe.size_bytes is not None for probe in search.probes)
    timed = any(probe.latency_ratio is not None for probe in search.probes)
    header = ["threshold", "multiply-adds", "parameters", "scores kept"]
    header += ["ONNX file"] * sized + ["latency"] * timed
    rows = []
    for probe in search.probes:
        shares = (probe.macs_ratio, probe.params_ratio, probe.kept_score)
        chosen = " (chosen)" if probe.threshold == search.chosen else ""
        row = [f"{probe.threshold:.6g}{chosen}", *(f"{share * 100:.1f} %" for share in shares)]
        if sized:
            row.append(NONE if probe.size_bytes is None else format_quantity(probe.size_bytes, "size"))
        if timed:
            row.append(NONE if probe.latency_ratio is None else f"{probe.latency_ratio * 100:.1f} %")
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))
