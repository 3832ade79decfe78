"""The report as Markdown. Device side: no torch."""

from __future__ import annotations

from edgeprune.report import sections
from edgeprune.report.content import Report, reasons, verdict_rows
from edgeprune.report.markup import block, bullets, inline, table
from edgeprune.report.parts import widths_sentence
from edgeprune.report.sweeps import LEGEND, SweepReport, sections_of, sweep_table


def report_markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {inline(report.title)}", f"**{inline(report.outcome)}** {inline(report.headline)}"]
    parts.append("## Budgets")
    for target, verdicts in sections.gates(report):
        parts += [f"### {inline(target)}"] if target else []
        parts.append(table(verdict_rows(verdicts)) if verdicts else "There are no budgets.")
        if lines := reasons(verdicts):
            parts.append(bullets(lines))
    comparison = "Dense against slim" if len(report.comparison.header) > 2 else "Measured"
    parts += [f"## {comparison}", table(report.comparison)]
    for key, title, found in _sections(report):
        if found:
            parts += [f"## {title}", *found]
        elif key in report.missing:
            parts += [f"## {title}", inline(report.missing[key])]
    if report.classes:
        parts += [f"## {inline(report.classes.title)}", bullets(report.classes.lines)]
    if report.curves:
        parts += ["## Training", bullets([one.sentence for one in report.curves])]
    if report.notes:
        parts += ["## Notes", bullets(report.notes)]
    parts += ["## How it was measured", bullets(report.method)]
    for title, facts in (("Run", report.run), ("Environment", report.environment)):
        if facts.rows:
            parts += [f"## {title}", table(facts)]
    parts += ["## Reproduce", block(report.command)]
    return "\n\n".join(parts) + "\n"


def _sections(report: Report) -> list[tuple[str, str, list[str]]]:
    """Field of the report, title, and what is said: a sentence and a table, or nothing."""
    widths, classes, search = report.widths, report.class_accuracies, report.search
    found: dict[str, list[str]] = {"widths": [], "class_accuracies": [], "search": []}
    if widths:
        found["widths"] = [inline(widths_sentence(widths)), table(sections.widths_table(widths))]
    if classes:
        found["class_accuracies"] = [inline(classes.sentence), table(sections.classes_table(classes))]
        if more := sections.classes_left_out(classes):
            found["class_accuracies"].append(inline(more))
    if search:
        found["search"] = [inline(search.sentence), table(sections.search_table(search))]
    titles = ("Width of each layer", "Accuracy by class", "The search for the budget")
    return [(key, title, found[key]) for key, title in zip(found, titles, strict=True)]


def sweep_markdown(report: SweepReport) -> str:
    """The sweep as Markdown."""
    parts = [f"# {inline(report.title)}", f"**{inline(report.outcome)}**", table(sweep_table(report))]
    parts.append(inline(LEGEND))
    for title, lines in sections_of(report):
        parts += [f"## {title}", bullets(lines)]
    parts.append(block("\n".join(report.commands)))
    return "\n\n".join(parts) + "\n"
