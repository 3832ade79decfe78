"""The verdicts for GitHub: Markdown for a pull request, annotations of a workflow. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.outcome import Outcome, worst
from edgeprune.report.content import printable, reasons, verdict_row, verdict_rows
from edgeprune.report.markup import bullets, inline, table

TITLES = {0: "passed", 1: "failed", 3: "cannot tell"}
LEVELS = {"failed": "error", "unmeasured": "error", "cannot tell": "warning", "skipped": "notice"}
"""State -> level of the annotation; what passed gets none."""


def pull_request_markdown(outcomes: Sequence[Outcome]) -> str:
    """What the gate found, as a comment on a pull request or the summary of a workflow's step."""
    parts = [f"## edgeprune gate: {TITLES[worst(outcomes)]}"]
    for outcome in outcomes:
        network = f", {inline(outcome.network)}" if outcome.network else ""
        parts.append(f"### {inline(outcome.name)}{network}")
        parts.append(f"**{inline(outcome.sentence)}**")
        if outcome.error:
            parts.append(inline(outcome.error))
        if outcome.verdicts:
            parts.append(table(verdict_rows(outcome.verdicts)))
        if lines := reasons(outcome.verdicts):
            parts.append(bullets(lines))
    return "\n\n".join(parts) + "\n"


def github_annotations(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Workflow commands that make GitHub show each budget that did not pass, a line each.

    Example:
        >>> github_annotations([Outcome("pi", "Pi 5", error="No answer: 100 %.")])
        ('::error title=edgeprune%3A Pi 5::No answer: 100 %25.',)
    """
    lines = []
    for outcome in outcomes:
        title = f"edgeprune: {outcome.name}"
        if outcome.error:
            lines.append(_command("error", title, outcome.error))
        for verdict in outcome.verdicts:
            if verdict.state in LEVELS:
                _, measured, limit, _, state = verdict_row(verdict)
                text = f"{state}: {verdict.text} (measured {measured}, limit {limit})"
                lines.append(_command(LEVELS[verdict.state], f"{title}: {verdict.budget.key}", text))
    return tuple(lines)


def _command(level: str, title: str, text: str) -> str:
    """``::error title=…::…``; a comma or colon would end the title, and a line break the command."""
    title, text = (printable(part).replace("%", "%25") for part in (title, text))
    return f"::{level} title={title.replace(':', '%3A').replace(',', '%2C')}::{text}"
