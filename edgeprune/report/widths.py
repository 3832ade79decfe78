"""Latency against width, for a terminal and as an SVG file. Device side: no torch."""

from __future__ import annotations

from html import escape

import numpy as np

from edgeprune.units import format_quantity
from edgeprune.widths import MULTIPLES, Curve, WidthReport, line_through

BLOCKS = " ▁▂▃▄▅▆▇█"
ROWS = 10
COLUMNS = 68  # and a margin of 12 make 80

WHAT = {
    "conv": "3x3 convolution, ReLU, 3x3 convolution",
    "depthwise": "1x1 convolution, depthwise 3x3, 1x1 convolution",
}


def title_of(curve: Curve) -> str:
    """What was measured."""
    shape = f"{curve.input_width} -> width -> {curve.input_width} at {curve.size}x{curve.size}"
    return f"{WHAT[curve.kind]}, {shape}"


def latencies_of(curve: Curve) -> list[float]:
    """Median over processes, by width, in seconds."""
    return [float(np.median(row)) for row in curve.latency_s]


def chart(curve: Curve) -> str:
    """A bar for each width; more than fit into 80 columns go on below."""
    return "\n".join(
        _chart(curve.widths[start : start + COLUMNS], latencies_of(curve)[start : start + COLUMNS])
        for start in range(0, len(curve.widths), COLUMNS)
    )


def _chart(widths: tuple[int, ...], latencies: list[float]) -> str:
    top = max(latencies)
    lines = []
    for row in range(ROWS, 0, -1):
        label = format_quantity(top * row / ROWS, "time", like=top) if row in (ROWS, ROWS // 2) else ""
        cells = [BLOCKS[round(8 * min(1.0, max(0.0, time / top * ROWS - row + 1)))] for time in latencies]
        lines.append(f"{label:>10} {''.join(cells)}".rstrip())
    ruler = [" "] * (len(widths) + 4)
    for place, width in enumerate(widths):
        if width % 8 == 0:
            ruler[place : place + len(str(width))] = str(width)
    return "\n".join([*lines, f"{'width':>10} {''.join(ruler)}".rstrip()])


def price_lines(curve: Curve) -> list[str]:
    """What each multiple costs, and the suggestion."""
    heads, prices, lows = ["multiples of"], ["above the line"], ["interval"]
    for multiple in MULTIPLES[:-1]:
        price = curve.prices[multiple]
        heads.append(str(multiple))
        prices.append(f"{price.value - 1:+.0%}")
        lows.append(f"{price.low - 1:+.0%} {price.high - 1:+.0%}")
    cells = [f"{line[0]:<14}" + "".join(f"{cell:>12}" for cell in line[1:]) for line in (heads, prices, lows)]
    found = f"suggested: {curve.multiple}" if curve.multiple > 1 else "no multiple is clearly better"
    return [*cells, found]


def conclusion(report: WidthReport) -> str:
    """One sentence for the target file."""
    said = f"{report.target_name} has channel_multiple = {report.target_multiple}"
    if report.multiple is None:
        return f"No multiple is clearly better than any width here; {said}."
    if report.multiple == report.target_multiple:
        return f"channel_multiple = {report.multiple} is right: {said}."
    return f"Suggested: channel_multiple = {report.multiple}; {said}."


def widths_text(report: WidthReport) -> str:
    """All of it for a terminal of 80 columns."""
    parts = [f"{report.target_name}: latency of a convolution against its width"]
    for curve in report.curves:
        parts += ["", title_of(curve), chart(curve), "", *price_lines(curve)]
    return "\n".join([*parts, "", conclusion(report), *(f"note: {note}" for note in report.notes)])


_WIDTH, _HEIGHT, _LEFT, _GAP = 640, 240, 64, 56


def widths_svg(report: WidthReport) -> str:
    """A drawing: a dot for each width, filled where it is a multiple of the suggestion, and the line."""
    panels = "".join(
        _panel(curve, 30 + number * (_HEIGHT + _GAP)) for number, curve in enumerate(report.curves)
    )
    height = 30 + len(report.curves) * (_HEIGHT + _GAP) + 12
    style = (
        "text{font:12px system-ui,sans-serif;fill:#222}.grid{stroke:#ddd}.line{stroke:#888;fill:none}"
        ".dot{fill:#fff;stroke:#b33}.on{fill:#15803d;stroke:#15803d}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}"><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'{panels}<text x="8" y="{height - 8}">{escape(conclusion(report))}</text></svg>\n'
    )


def _panel(curve: Curve, top: float) -> str:
    widths, latencies = np.array(curve.widths), np.array(latencies_of(curve))
    most = float(latencies.max()) * 1.05
    span = max(1, int(widths[-1] - widths[0]))

    def place(width: float, latency: float) -> tuple[float, float]:
        x = _LEFT + (width - widths[0]) / span * (_WIDTH - _LEFT - 16)
        return x, top + _HEIGHT * (1 - latency / most)

    parts = [f'<text x="8" y="{top - 12:.0f}">{escape(title_of(curve))}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(widths[0], share * most)
        label = format_quantity(share * most, "time", like=most)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - 16}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for width in widths[widths % 16 == 0]:
        x, y = place(width, 0.0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{width}</text>')
    known = widths % MULTIPLES[-1] == 0
    ends = widths[(widths >= widths[known][0]) & (widths <= widths[known][-1])]
    line = line_through(ends, widths[known], latencies[known])
    points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in zip(ends, line, strict=True))
    parts.append(f'<polyline class="line" points="{points}"/>')
    for width, latency in zip(widths, latencies, strict=True):
        x, y = place(width, latency)
        kind = "dot on" if curve.multiple > 1 and width % curve.multiple == 0 else "dot"
        text = f"{width}: {format_quantity(latency, 'time')}"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{text}</title></circle>')
    return "".join(parts)
