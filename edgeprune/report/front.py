"""The Pareto front of several networks: who is best at what it costs. Device side: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.metrics import METRICS, Estimate
from edgeprune.report import plotting
from edgeprune.report.plotting import colour, svg_of
from edgeprune.units import format_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

HEIGHT = 290
MARKERS = "osD^vPX*<>"
"""By series, so that nobody has to tell colours apart."""
DENSE = "dense"
"""Series of the network that all others come from."""
STATES = {"passed": "good", "failed": "bad", "unmeasured": "bad", "cannot tell": "open"}
"""Colour by verdict; others are soft."""


@dataclass(frozen=True)
class FrontPoint:
    """One network.

    Attributes:
        name: Of it.
        series: What it is joined with, e.g. its scheme; ``DENSE`` for the network that all come from.
        label: Written beside it, e.g. its ratio.
        values: By metric of ``METRICS``, in SI units; None or left out: not measured.
        state: Verdict, ``"passed"``, ``"failed"`` or ``"cannot tell"``; empty: none.
        chosen: It is the one that is released.
    """

    name: str
    series: str
    label: str
    values: Mapping[str, float | Estimate | None]
    state: str = ""
    chosen: bool = False

    def value(self, metric: str) -> float | None:
        """The measured value, of an interval its middle."""
        found = self.values.get(metric)
        return found.value if isinstance(found, Estimate) else found


def front_of(points: Sequence[FrontPoint], cost: str, gain: str = "accuracy") -> tuple[FrontPoint, ...]:
    """The points that no other beats, by costing no more and gaining no less, and one of both better.

    Args:
        points: Networks; those without both values are left out.
        cost: Metric of which less is better.
        gain: Metric of which more is better.

    Returns:
        The front, from the cheapest on. Points that are equal in both are all on it.

    Example:
        >>> points = [FrontPoint(n, "s", n, {"size": x, "accuracy": y}) for n, x, y in
        ...           [("a", 1, 0.5), ("b", 2, 0.4), ("c", 3, 0.9)]]
        >>> [point.name for point in front_of(points, "size")]
        ['a', 'c']
    """
    known = [
        (found, won, point)
        for point in points
        if (found := point.value(cost)) is not None and (won := point.value(gain)) is not None
    ]
    kept = [
        (x, y, point)
        for x, y, point in known
        if not any((a <= x and b >= y) and (a < x or b > y) for a, b, _ in known)
    ]
    return tuple(point for _, _, point in sorted(kept, key=lambda one: one[:2]))


def front_svg(points: Sequence[FrontPoint], cost: str, gain: str = "accuracy", *, title: str = "") -> str:
    """Networks by what they cost and gain, with their front, as an ``<svg>`` element.

    Filled marks passed their budgets, hollow ones did not; the chosen one has a ring.

    Args:
        points: Networks; those without both values are left out.
        cost: Metric for the horizontal axis, of which less is better.
        gain: Metric for the vertical axis, of which more is better.
        title: Name of the drawing.

    Returns:
        The element; the empty string if no network has both values.
    """
    shown = [point for point in points if None not in (point.value(cost), point.value(gain))]
    if not shown:
        return ""
    front = front_of(shown, cost, gain)
    title = title or f"{METRICS[gain].text} by {METRICS[cost].text}".capitalize()
    with plotting.style():
        figure = plotting.figure(plotting.WIDTH, HEIGHT)
        axes = figure.subplots()
        _draw_front(axes, front, cost, gain, max(point.value(cost) or 0.0 for point in shown))
        markers: dict[str, str] = {}
        for point in shown:
            if point.series != DENSE:
                markers.setdefault(point.series, MARKERS[len(markers) % len(MARKERS)])
        for point in shown:
            _draw_point(axes, point, cost, gain, markers.get(point.series, "h"))
        for series, marker in {**markers, DENSE: "h"}.items():
            if any(point.series == series for point in shown):
                shade = colour("dense" if series == DENSE else "soft")
                axes.plot([], [], marker, color=shade, markersize=7, label=series)
        axes.xaxis.set_major_formatter(_ticks(cost))
        axes.yaxis.set_major_formatter(_ticks(gain))
        axes.xaxis.set_major_locator(_few(5))
        axes.yaxis.set_major_locator(_few(6))
        axes.margins(0.1, 0.12)
        axes.set_xlabel(METRICS[cost].text)
        axes.set_title(METRICS[gain].text)
        figure.legend(loc="outside lower left", ncols=3, handletextpad=0.2, columnspacing=1.0)
        return svg_of(figure, title=title, description=description_of(shown, cost, gain))


def description_of(points: Sequence[FrontPoint], cost: str, gain: str = "accuracy") -> str:
    """What the drawing shows, in words."""
    on_front = {point.name for point in front_of(points, cost, gain)}
    parts = []
    for point in points:
        x, y = point.value(cost), point.value(gain)
        if x is None or y is None:
            continue
        what = f"{format_quantity(x, METRICS[cost].quantity)}, {format_quantity(y, METRICS[gain].quantity)}"
        notes = [note for note, true in (
            (point.state, point.state), ("on the front", point.name in on_front), ("chosen", point.chosen)
        ) if true]  # fmt: skip
        parts.append(f"{point.name}: {what}" + (f" ({', '.join(notes)})" if notes else ""))
    return f"{METRICS[cost].text}, {METRICS[gain].text}. " + "; ".join(parts) + "."


def _draw_front(axes: Axes, front: Sequence[FrontPoint], cost: str, gain: str, far: float) -> None:
    """Steps: what is reached for at most that cost."""
    xs, ys = ([point.value(metric) or 0.0 for point in front] for metric in (cost, gain))
    xs, ys = [*xs, max(far, xs[-1])], [*ys, ys[-1]]
    axes.step(xs, ys, where="post", color=colour("soft"), linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)


def _draw_point(axes: Axes, point: FrontPoint, cost: str, gain: str, marker: str) -> None:
    x, y = point.value(cost) or 0.0, point.value(gain) or 0.0
    shade = colour("dense") if point.series == DENSE else colour(STATES.get(point.state, "soft"))
    interval = point.values.get(cost)
    if isinstance(interval, Estimate):
        axes.plot([interval.low, interval.high], [y, y], color=shade, linewidth=1.2, zorder=2)
    filled = shade if point.series == DENSE or point.state == "passed" else colour("paper")
    if point.chosen:
        axes.plot(
            [x], [y], "o", markersize=17, markerfacecolor="none", markeredgecolor=colour("ink"), zorder=3
        )
    axes.plot([x], [y], marker, markersize=7, markerfacecolor=filled, markeredgecolor=shade, zorder=4)
    axes.annotate(
        point.label, (x, y), xytext=(0, 9 if not point.chosen else 11), textcoords="offset points",
        ha="center", fontsize=11, color=colour("ink"), zorder=5,
    )  # fmt: skip


def _ticks(metric: str) -> Callable[[float, int], str]:
    quantity = METRICS[metric].quantity

    def text(value: float, _: int) -> str:
        if quantity == "fraction":
            return f"{value * 100:.4g} %"
        if quantity == "count":
            return next(
                (f"{value / size:.3g} {letter}" for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"))
                 if abs(value) >= size),
                f"{value:.0f}",
            )  # fmt: skip
        if quantity in ("ratio", "error"):
            return f"{value:.3g}"
        return format_quantity(value, quantity)

    return text


def _few(count: int) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count)
