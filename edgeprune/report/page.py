"""The report as one HTML file: no scripts, nothing loaded from elsewhere. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from edgeprune.report import curves, drawing
from edgeprune.report.content import Report, Table, printable, reasons, verdict_rows
from edgeprune.units import format_quantity
from edgeprune.verdict import exit_code

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dce1; --paper: #ffffff;
  --panel: #f5f6f8; --dense: #8d4a00; --slim: #0b62a8; --good: #14713d; --bad: #b3261e; --open: #7a5900;
  --alike: #e8892f; --unlike: #4c9be8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a0a6ae; --line: #363b42; --paper: #15181b; --panel: #1e2226;
    --dense: #f0a35e; --slim: #6cb6ff; --good: #63cf8e; --bad: #ff8f86; --open: #e6c15c;
    --alike: #a85a06; --unlike: #1c63a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
.outcome { border-left: .3rem solid; padding: .1rem 0 .1rem .75rem; font-weight: 650; }
.headline { margin: .75rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .925rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; }
tr { border-bottom: 1px solid var(--line); }
td:last-child, th:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
.figures td, .figures thead th:not(:first-child) { text-align: right; white-space: nowrap; }
.budgets td, .budgets th { white-space: nowrap; }
.facts th { width: 12rem; color: var(--soft); }
.facts td, li { overflow-wrap: anywhere; }
.passed { color: var(--good); }
.failed, .unmeasured { color: var(--bad); }
.cannot-tell { color: var(--open); }
td.passed, td.failed, td.unmeasured, td.cannot-tell { font-weight: 650; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
pre { background: var(--panel); padding: .75rem; border-radius: .3rem; overflow-x: auto;
  font: .875rem/1.45 ui-monospace, monospace; }
.strip { margin: 0 0 .75rem; }
.strip figcaption { font-size: .925rem; }
.strip svg { display: block; width: 100%; background: var(--panel); border-radius: .3rem; }
.axis { display: flex; justify-content: space-between; margin-top: .2rem; }
.axis, .soft { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.dense { color: var(--dense); }
.slim, .network { color: var(--slim); }
path { stroke: currentColor; stroke-linecap: round; vector-effect: non-scaling-stroke; fill: none; }
.runs { stroke-width: 3.5; opacity: .45; }
.median { stroke-width: 2; }
@media (max-width: 40rem) {  /* a row of a table becomes two lines, so that nothing is cut off */
  .figures tr { display: grid; grid-template-columns: repeat(3, 1fr); }
  .figures tbody th, .figures thead th:first-child { grid-column: 1 / -1; padding-bottom: 0; }
  .figures thead th:first-child { padding: 0; }
  .figures thead th:not(:first-child), .figures td { text-align: left; white-space: normal; }
  .budgets thead { display: none; }
  .budgets tr { display: grid; grid-template-columns: 1.7fr 1fr 1.2fr; }
  .budgets td { white-space: normal; }
  .budgets tbody th { grid-area: 1 / 1 / 2 / 3; padding-bottom: 0; }
  .budgets td:last-child { grid-area: 1 / 3; padding-bottom: 0; }
  .facts th { width: 7rem; }
}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_WIDTH, _ROW = 1000, 7  # of the drawing: units across, pixels for a process
_DOTS = 200  # drawn for a process at most
_SHOWN = 0.95  # of each network's runs the axis must hold; stragglers would squeeze the rest to a line


def report_html(report: Report) -> str:
    """The report as a page of its own, light or dark as the reader's system is."""
    outcome = {0: "passed" if report.verdicts else "cannot-tell", 1: "failed", 3: "cannot-tell"}
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        f'<p class="outcome {outcome[exit_code(report.verdicts)]}">{_text(report.outcome)}</p>',
        f'<p class="headline">{_text(report.headline)}</p>',
        f"<h2>{'Dense against slim' if len(report.comparison.header) > 2 else 'Measured'}</h2>",
        _table(report.comparison, "figures"),
        "<h2>Budgets</h2>",
        _verdicts(report),
    ]
    if report.samples_s:
        parts += ["<h2>Every timed inference</h2>", _strips(report.samples_s)]
    if report.notes:
        parts += ["<h2>Notes</h2>", _list(report.notes)]
    parts += ["<h2>How it was measured</h2>", _list(report.method)]
    parts.append(f"<pre>{_text(report.command, keep=chr(10))}</pre>")
    if report.classes:
        parts += [f"<h2>{_text(report.classes.title)}</h2>", drawing.structure_html(report.classes)]
    if report.curves:
        parts += ["<h2>Training</h2>", curves.curves_html(report.curves)]
    for title, table in (("Run", report.run), ("Environment", report.environment)):
        if table.rows:
            parts += [f"<h2>{title}</h2>", _table(table, "facts")]
    style = _STYLE + (drawing.STYLE if report.classes else "") + (curves.STYLE if report.curves else "")
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_text(report.title)}</title>\n<style>{style}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _text(text: str, keep: str = "") -> str:
    return escape(printable(text, keep))


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _table(table: Table, kind: str, states: Sequence[str] = ()) -> str:
    """A table; with ``states`` the last cell of each row is marked as that state."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    rows = []
    for number, (name, *cells) in enumerate(table.rows):
        tags = ["<td>"] * len(cells)
        if states:
            tags[-1] = f'<td class="{states[number].replace(" ", "-")}">'
        row = "".join(f"{tag}{_text(cell)}</td>" for tag, cell in zip(tags, cells, strict=True))
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{row}</tr>\n')
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>\n{"".join(rows)}</tbody></table></div>'


def _verdicts(report: Report) -> str:
    if not report.verdicts:
        return "<p>There are no budgets.</p>"
    states = [verdict.state for verdict in report.verdicts]
    lines = reasons(report.verdicts)
    return _table(verdict_rows(report.verdicts), "budgets", states) + (_list(lines) if lines else "")


def _strips(samples_s: dict[str, tuple[tuple[float, ...], ...]]) -> str:
    """One drawing for each network on a common axis: a row for each process, a dot for each run."""
    everything = np.concatenate([process for samples in samples_s.values() for process in samples])
    most = max(float(np.quantile(np.concatenate(samples), _SHOWN)) for samples in samples_s.values())
    low, high = 0.98 * float(everything.min()), 1.05 * most
    beyond = int((everything > high).sum())
    figures = [_strip(name, samples, low, high) for name, samples in samples_s.items()]
    ticks = "".join(f"<span>{format_quantity(tick, 'time')}</span>" for tick in np.linspace(low, high, 5))
    legend = "A row for each process, a dot for each inference; the line is the median."
    if max(len(process) for samples in samples_s.values() for process in samples) > _DOTS:
        legend += f" Of each process {_DOTS} are drawn, evenly from the fastest to the slowest."
    if beyond:
        slowest = format_quantity(float(everything.max()), "time")
        legend += f" Beyond the right end lie {beyond} of {everything.size}; the slowest took {slowest}."
    return f'{"".join(figures)}<div class="axis">{ticks}</div><p class="soft">{legend}</p>'


def _strip(name: str, samples: Sequence[Sequence[float]], low: float, high: float) -> str:
    scale = _WIDTH / (high - low)
    height = _ROW * len(samples) + 5
    dots = []
    for row, process in enumerate(samples):
        y = _ROW * row + 6
        drawn = np.sort(process)
        if len(drawn) > _DOTS:
            drawn = drawn[np.linspace(0, len(drawn) - 1, _DOTS).round().astype(int)]
        dots += [f"M{(value - low) * scale:.1f} {y}h0" for value in drawn if value <= high]
    median = float(np.median(np.concatenate(samples)))
    x = f"{(median - low) * scale:.1f}"
    caption = f"{name}: median {format_quantity(median, 'time')}"
    return (
        f'<figure class="strip"><figcaption class="{_text(name)}">{_text(caption)}</figcaption>'
        f'<svg class="{_text(name)}" role="img" aria-label="{_text(caption)}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none">'
        f'<path class="runs" d="{"".join(dots)}"/><path class="median" d="M{x} 0V{height}"/></svg></figure>'
    )
