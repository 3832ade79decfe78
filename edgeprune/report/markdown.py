"""The report as Markdown. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.report import sections
from edgeprune.report.content import Report, Table, printable, reasons, verdict_rows
from edgeprune.report.parts import widths_sentence
from edgeprune.report.sweeps import LEGEND, SweepReport, sections_of, sweep_table


def report_markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {_inline(report.title)}", f"**{_inline(report.outcome)}** {_inline(report.headline)}"]
    parts.append("## Budgets")
    for target, verdicts in sections.gates(report):
        parts += [f"### {_inline(target)}"] if target else []
        parts.append(_table(verdict_rows(verdicts)) if verdicts else "There are no budgets.")
        if lines := reasons(verdicts):
            parts.append(_list(lines))
    comparison = "Dense against slim" if len(report.comparison.header) > 2 else "Measured"
    parts += [f"## {comparison}", _table(report.comparison)]
    for key, title, found in _sections(report):
        if found:
            parts += [f"## {title}", *found]
        elif key in report.missing:
            parts += [f"## {title}", _inline(report.missing[key])]
    if report.classes:
        parts += [f"## {_inline(report.classes.title)}", _list(report.classes.lines)]
    if report.curves:
        parts += ["## Training", _list([one.sentence for one in report.curves])]
    if report.notes:
        parts += ["## Notes", _list(report.notes)]
    parts += ["## How it was measured", _list(report.method)]
    for title, table in (("Run", report.run), ("Environment", report.environment)):
        if table.rows:
            parts += [f"## {title}", _table(table)]
    parts += ["## Reproduce", _code(report.command)]
    return "\n\n".join(parts) + "\n"


def _sections(report: Report) -> list[tuple[str, str, list[str]]]:
    """Field of the report, title, and what is said: a sentence and a table, or nothing."""
    widths, classes, search = report.widths, report.class_accuracies, report.search
    found: dict[str, list[str]] = {"widths": [], "class_accuracies": [], "search": []}
    if widths:
        found["widths"] = [_inline(widths_sentence(widths)), _table(sections.widths_table(widths))]
    if classes:
        found["class_accuracies"] = [_inline(classes.sentence), _table(sections.classes_table(classes))]
        if more := sections.classes_left_out(classes):
            found["class_accuracies"].append(_inline(more))
    if search:
        found["search"] = [_inline(search.sentence), _table(sections.search_table(search))]
    titles = ("Width of each layer", "Accuracy by class", "The search for the budget")
    return [(key, title, found[key]) for key, title in zip(found, titles, strict=True)]


def _inline(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = printable(text).strip()
    for char in "\\*|" if text.count("`") % 2 == 0 else "\\`*|":
        text = text.replace(char, f"\\{char}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _table(table: Table) -> str:
    align = ["---"] + ["---:" if len(table.header) > 2 else "---"] * (len(table.header) - 1)
    rows = [table.header, tuple(align), *([_inline(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_inline(line)}" for line in lines)


def _code(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{printable(text, keep=chr(10))}\n{fence}"


def sweep_markdown(report: SweepReport) -> str:
    """The sweep as Markdown."""
    parts = [f"# {_inline(report.title)}", f"**{_inline(report.outcome)}**", _table(sweep_table(report))]
    parts.append(_inline(LEGEND))
    for title, lines in sections_of(report):
        parts += [f"## {title}", _list(lines)]
    parts.append(_code("\n".join(report.commands)))
    return "\n\n".join(parts) + "\n"
