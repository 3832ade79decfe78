"""An explanation as lines for a terminal of 80 columns. Device side: no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from edgeprune.explanation import Advice, Explanation
from edgeprune.report.content import printable
from edgeprune.units import format_quantity

WIDTH = 80
ROWS = 10  # of a table, and groups of a list
NAME = 32


def why_lines(found: Explanation) -> list[str]:
    """Tables by operator and by group or layer, what each missed budget would take, and notes."""
    facts = [format_quantity(found.size_bytes, "size")]
    facts += [] if found.macs is None else [f"{_count(found.macs)} MACs"]
    facts += [] if found.time_s is None else [f"{format_quantity(found.time_s, 'time')} in kernels"]
    lines = [f"Where it sits: {found.file}, {', '.join(facts)}", "", *_operators(found), "", *_groups(found)]
    for advice in found.missed:
        lines += ["", *_advice(advice)]
    if found.notes:
        lines.append("")
    for note in found.notes:
        lines += _wrapped(note, "")
    return [printable(line) for line in lines]


def _operators(found: Explanation) -> list[str]:
    macs = sum(row.macs for row in found.operators)
    time = found.time_s or 0.0
    rows: list[tuple[str, ...]] = [
        (
            row.op_type, str(row.nodes or "-"), format_quantity(row.size_bytes, "size"),
            _percent(row.size_bytes / found.size_bytes), _percent(row.macs / macs if macs else None),
            str(row.kernels or "-"), _time(row.time_s, time),
            _percent(row.time_s / time if time else None),
        )
        for row in found.operators[:ROWS]
    ]  # fmt: skip
    left = found.size_bytes - sum(row.size_bytes for row in found.operators)
    rest = found.operators[ROWS:]
    if rest:
        size, spent = sum(row.size_bytes for row in rest), sum(row.time_s for row in rest)
        rows.append(
            (f"{len(rest)} more", str(sum(row.nodes for row in rest) or "-"), format_quantity(size, "size"),
             _percent(size / found.size_bytes), _percent(sum(r.macs for r in rest) / macs if macs else None),
             str(sum(row.kernels for row in rest) or "-"), _time(spent, time),
             _percent(spent / time if time else None))
        )  # fmt: skip
    rows.append(
        ("names and facts", "", format_quantity(left, "size"), _percent(left / found.size_bytes), *[""] * 4)
    )
    header = ("by operator", "nodes", "size", "", "MACs", "kernels", "time", "")
    return _table([header, *rows], (19, 6, 9, 7, 7, 8, 9, 7))


def _groups(found: Explanation) -> list[str]:
    what = "by layer" if found.by_layer else "by channel group"
    rows = []
    for row in found.groups[:ROWS]:
        units = "" if row.units is None else f"{row.units[0]} of {row.units[1]}"
        mark = "*" if row.frozen_because else ""
        rows.append((_short(row.name) + mark, units, *map(_percent, row.shares)))
    more = len(found.groups) - ROWS
    header = (what, "" if found.by_layer else "units", "size", "MACs", "time")
    lines = _table([header, *rows], (NAME + 4, 11, 8, 8, 8))
    if more > 0:
        lines.append(f"… and {more} more (all with --json)")
    if any(row.frozen_because for row in found.groups[:ROWS]):
        lines.append("* cannot be cut: `edgeprune groups` says why")
    if not found.by_layer:
        lines.append("A layer counts for the group it makes and the one it reads: shares overlap.")
    return lines


def _advice(advice: Advice) -> list[str]:
    def amount(value: float) -> str:
        return format_quantity(value, advice.quantity) if advice.quantity != "count" else _count(value)

    lines = [f"{advice.key}:"]
    if advice.needed is not None and advice.of is not None:
        part = advice.needed / advice.of if advice.of else 0.0
        lines = [f"{advice.key}: {amount(advice.needed)} of {amount(advice.of)} ({part:.1%}) has to go"]
    for change in advice.changes[:ROWS]:
        units = f"{change.before} -> {change.after} units"
        lines.append(f"  {_short(change.group):<{NAME}} {units:>20}   -{amount(change.saves)}")
    rest = advice.changes[ROWS:]
    if rest:
        lines.append(f"  … and {len(rest)} more groups: -{amount(sum(c.saves for c in rest))}")
    if advice.changes:
        lines.append(f"  together about -{amount(advice.saves)}, an estimate: least score lost per saving")
    for line in advice.lines:
        # A command stays in one piece, to be copied.
        lines += [f"  {line}"] if line.startswith("Plan again:") else _wrapped(line, "  ")
    return lines


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """The first column to the left, the others to the right."""

    def line(row: Sequence[str]) -> str:
        first, *others = row
        cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        return f"{first:<{widths[0]}}{''.join(cells)}".rstrip()

    header, *body = map(line, rows)
    return [header, "─" * sum(widths), *body]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) or [""]


def _short(name: str) -> str:
    """A name that fits its column: its end tells more than its beginning."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _time(value: float, whole: float) -> str:
    return "?" if not whole else format_quantity(value, "time") if value else "-"


def _percent(value: float | None) -> str:
    return "?" if value is None else "<0.5 %" if 0 < value < 0.005 else f"{value * 100:.0f} %"


def _count(value: float) -> str:
    """12.3 million as 12.3M: in full it would not fit."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
