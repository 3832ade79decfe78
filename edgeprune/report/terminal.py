"""Tables for a terminal of 80 columns. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from edgeprune.report.content import Report, printable, reasons, verdict_rows
from edgeprune.verdict import Verdict

_STATE_STYLE = {"passed": "green", "failed": "bold red", "unmeasured": "bold red", "cannot tell": "yellow"}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts for a terminal of 80 columns; what they say does not depend on colour."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    rows = verdict_rows(verdicts)
    for column in rows.header:
        table.add_column(column, overflow="fold", no_wrap=column in ("budget", "verdict"))
    for verdict, row in zip(verdicts, rows.rows, strict=True):
        cells = [Text(printable(cell)) for cell in row]
        cells[-1].stylize(_STATE_STYLE[verdict.state])
        table.add_row(*cells)
    if lines := reasons(verdicts):
        table.caption = Text(printable("\n".join(("", *lines)), keep="\n"))
        table.caption_justify = "left"
    return table


def comparison_table(report: Report) -> Table:
    """Dense against slim, or the one network alone."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, column in enumerate(report.comparison.header):
        table.add_column(column, overflow="fold", no_wrap=number > 0)
    for row in report.comparison.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
