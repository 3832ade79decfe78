"""Tables for a terminal of 80 columns. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from edgeprune.report.content import Report, printable, reasons, verdict_rows
from edgeprune.verdict import Verdict

WIDTH = 80
KEY_WIDTHS = (28, 24, 20)
"""What is left to the keys, one after the other, until the table fits."""
GAP = 1  # between columns

_STATE_STYLE = {
    "passed": "green", "failed": "bold red", "unmeasured": "bold red", "cannot tell": "yellow",
    "skipped": "dim",
}  # fmt: skip


def verdict_table(verdicts: Sequence[Verdict], width: int = WIDTH) -> Table:
    """The verdicts for a terminal of 80 columns; what they say does not depend on colour.

    If it would be wider, intervals go below their values and long keys go on below at an underscore.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    header = verdict_rows(verdicts).header
    for column in header:
        table.add_column(column, overflow="fold", no_wrap=column in ("budget", "verdict"))
    for verdict, row in zip(verdicts, _fitting(header, verdict_rows(verdicts).rows, width), strict=True):
        cells = [Text(printable(cell, keep="\n")) for cell in row]
        cells[-1].stylize(_STATE_STYLE[verdict.state])
        table.add_row(*cells)
    return table


def reason_lines(verdicts: Sequence[Verdict]) -> tuple[Text, ...]:
    """A line for each budget that did not pass: by how much, why, or how many runs would tell."""
    return tuple(Text(printable(line)) for line in reasons(verdicts))


def _fitting(header: Sequence[str], rows: Sequence[tuple[str, ...]], width: int) -> Sequence[tuple[str, ...]]:
    """The rows, broken into lines as far as it takes to fit."""
    tries = [rows, [_interval_below(row) for row in rows]]
    tries += [[(_folded(row[0], most), *row[1:]) for row in tries[1]] for most in KEY_WIDTHS]
    for found in tries:
        lines = [
            [len(line) for row in (header, *found) for line in row[k].split("\n")] for k in range(len(header))
        ]
        if sum(map(max, lines)) + GAP * (len(header) - 1) <= width:
            return found
    return tries[-1]


def _interval_below(row: tuple[str, ...]) -> tuple[str, ...]:
    key, measured, *rest = row
    return key, measured.replace(" [", "\n["), *rest


def _folded(key: str, width: int) -> str:
    """A key in lines of at most ``width``, broken behind underscores."""
    lines = [""]
    for part in key.replace("_", "_ ").split(" "):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def comparison_table(report: Report) -> Table:
    """Dense against slim, or the one network alone; columns stand closer where 80 would not hold them."""
    rows = (report.comparison.header, *report.comparison.rows)
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]
    wide = sum(widths) + 2 * (len(widths) - 1) <= WIDTH
    table = Table(box=box.SIMPLE_HEAD, padding=(0, int(wide), 0, 0), pad_edge=False, show_edge=False)
    for number, column in enumerate(report.comparison.header):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    for row in report.comparison.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
