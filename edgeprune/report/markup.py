"""Markdown that shows a text as it is, whatever a user has written. Device side: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeprune.report.content import Table, printable


def inline(text: str) -> str:
    """Text on one line; what stands between a pair of backticks stays code."""
    return _escaped(text, "\\*|" if text.count("`") % 2 == 0 else "\\`*|")


def literal(value: object) -> str:
    """The same of what is no text of ours: its backticks are shown."""
    return _escaped(str(value), "\\`*|")


def bullets(lines: Sequence[str], line: Callable[[str], str] = inline) -> str:
    """A list."""
    return "\n".join(f"- {line(one)}" for one in lines)


def table(content: Table, cell: Callable[[str], str] = inline) -> str:
    """A table; figures, where there are more than two columns, stand to the right."""
    align = ["---"] + ["---:" if len(content.header) > 2 else "---"] * (len(content.header) - 1)
    rows = [[cell(text) for text in row] for row in (content.header, *content.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], align, *rows[1:]))


def block(text: str, language: str = "") -> str:
    """Lines of code, fenced by more backticks than they hold."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{printable(text, keep=chr(10))}\n{fence}"


def _escaped(text: str, chars: str) -> str:
    text = printable(text).strip()
    for char in chars:
        text = text.replace(char, f"\\{char}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
