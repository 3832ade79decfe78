"""The plots of latency, widths, memory, classes and the search. Device side: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.report.classes import shorten
from edgeprune.report.content import printable
from edgeprune.report.parts import (
    ClassAccuracies,
    LayerWidth,
    MemoryPhase,
    Search,
    memory_sentence,
    widths_sentence,
)
from edgeprune.report.plotting import FONT, WIDTH, Plot, colour, figure, make_plot, stacked
from edgeprune.units import Quantity, format_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Samples = Mapping[str, tuple[tuple[float, ...], ...]]

DOTS = 200
"""Runs of a process that are drawn at most, evenly from the fastest to the slowest."""
SHOWN = 0.95
"""Of each network's runs the axis must hold; stragglers would squeeze the rest to a line."""
NAMED = 40
"""Layers that are drawn by name at most."""
CLASSES = 20
"""Classes that are drawn at most, those that lost most."""

_ROW = 19.0  # pixels for a named row
_LONGEST = 22  # letters of a name


def _shade(name: str) -> str:
    """The colour of a network."""
    return colour("dense" if name == "dense" else "slim")


def _short(name: str) -> str:
    """The end of a long name: layers begin alike."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


# --- latency ---


def latency_plots(samples_s: Samples) -> list[Plot]:
    """Every run by process, and the share of runs that are done within a time."""
    everything = np.concatenate([process for samples in samples_s.values() for process in samples])
    most = max(float(np.quantile(np.concatenate(samples), SHOWN)) for samples in samples_s.values())
    low, high = 0.98 * float(everything.min()), 1.05 * most
    said = []
    for name, samples in samples_s.items():
        marks = [format_quantity(float(mark), "time") for mark in _marks(samples)]
        said.append(
            f"{name}: fastest {marks[0]}, median {marks[1]}, three quarters within {marks[2]}, nine tenths "
            f"within {marks[3]}, slowest {marks[4]}"
        )
    description = f"{'; '.join(said)}."
    key = "A row for each process, a dot for each inference; the line is the median."
    if max(len(process) for samples in samples_s.values() for process in samples) > DOTS:
        key += f" Of each process {DOTS} are drawn, evenly from the fastest to the slowest."
    beyond = int((everything > high).sum())
    if beyond:
        slowest = format_quantity(float(everything.max()), "time")
        key += f" Beyond the right end lie {beyond} of {everything.size}; the slowest took {slowest}."
    done = "How many of the inferences were done within a time: the further left, the faster."
    return [
        make_plot("Every timed inference", description, key, lambda: _strips(samples_s, low, high)),
        make_plot("Done within", description, done, lambda: _shares(samples_s, low, high)),
    ]


def _marks(samples: Sequence[Sequence[float]]) -> list[float]:
    return [float(mark) for mark in np.quantile(np.concatenate(samples), [0, 0.5, 0.75, 0.9, 1])]


def _time_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: format_quantity(value, "time", like=high))


def _strips(samples_s: Samples, low: float, high: float) -> Figure:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = [len(samples) for samples in samples_s.values()]
    pixels = min(7.0, 150 / max(rows))
    drawing = figure(WIDTH, pixels * sum(rows) + 30 * len(rows) + 30)
    panels = stacked(drawing, rows)
    for axes, (name, samples) in zip(panels, samples_s.items(), strict=True):
        dots = []
        for row, process in enumerate(samples):
            drawn = np.sort(process)
            if len(drawn) > DOTS:
                drawn = drawn[np.linspace(0, len(drawn) - 1, DOTS).round().astype(int)]
            dots += [(value, row) for value in drawn if value <= high]
        ends = np.repeat(np.array(dots), 2, axis=0)  # lines of no length with round ends
        codes = np.tile([Path.MOVETO, Path.LINETO], len(dots))
        axes.add_patch(
            PathPatch(
                Path(ends, codes), fill=False, edgecolor=_shade(name), alpha=0.45,
                linewidth=min(3.5, pixels / 2), capstyle="round", gid="runs", clip_on=False,
            )
        )  # fmt: skip
        median = _marks(samples)[1]
        axes.plot([median, median], [-0.5, len(samples) - 0.5], color=_shade(name))
        axes.set_title(f"{name}: median {format_quantity(median, 'time')}", color=_shade(name))
        axes.set_ylim(len(samples) - 0.3, -0.7)
        axes.yaxis.set_ticks([])
    _time_axis(panels[-1], low, high)
    return drawing


def _shares(samples_s: Samples, low: float, high: float) -> Figure:
    drawing = figure(WIDTH, 250)
    axes = drawing.subplots()
    for name, samples in samples_s.items():
        drawn = np.sort(np.concatenate(samples))
        shares = np.arange(1, len(drawn) + 1) / len(drawn)
        kept = np.unique(np.linspace(0, len(drawn) - 1, 300).round().astype(int))
        axes.step(drawn[kept], shares[kept] * 100, where="post", color=_shade(name), label=name)
    _time_axis(axes, low, high)
    axes.set_ylim(0, 103)
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return drawing


# --- rows by name: widths, memory, classes ---


def _rows(names: Sequence[str], height: float = _ROW) -> tuple[Figure, Axes]:
    """Axes with a row for each name, the first above."""
    drawing = figure(WIDTH, height * len(names) + 46)
    axes = drawing.subplots()
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.yaxis.set_ticks(list(range(len(names))), labels=list(names))
    axes.tick_params(axis="y", labelcolor=colour("ink"))
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    return drawing, axes


def _beside(axes: Axes, x: float, y: float, text: str, weighty: bool = True) -> None:
    """A figure at the end of its bar."""
    axes.annotate(
        text, (x, y), (4, 0), textcoords="offset points", va="center_baseline", fontsize=FONT - 1,
        color=colour("ink" if weighty else "soft"),
    )  # fmt: skip


def widths_plot(widths: Sequence[LayerWidth]) -> Plot:
    """Channels of each layer: dense behind, slim before it."""
    if len(widths) <= NAMED:
        key = (
            "The pale bar is dense, the full one slim; beside it the channels that stay of those there were."
        )
        return make_plot("Channels by layer", widths_sentence(widths), key, lambda: _bars(widths))
    key = "Layers from the first to the last; the pale ground is dense, the full one slim."
    return make_plot("Channels by layer", widths_sentence(widths), key, lambda: _profile(widths))


def _bars(widths: Sequence[LayerWidth]) -> Figure:
    drawing, axes = _rows([_short(one.name) for one in widths])
    most = max(one.dense for one in widths)
    places = range(len(widths))
    axes.barh(places, [one.dense for one in widths], 0.7, color=colour("dense"), alpha=0.25)
    axes.barh(places, [one.slim for one in widths], 0.7, color=colour("slim"))
    for place, one in enumerate(widths):
        cut = one.slim < one.dense
        _beside(axes, one.dense, place, f"{one.slim} of {one.dense}" if cut else f"{one.dense}", cut)
    axes.set_xlim(0, most * 1.3)
    axes.xaxis.set_ticks([])
    axes.spines["bottom"].set_visible(False)
    return drawing


def _profile(widths: Sequence[LayerWidth]) -> Figure:
    drawing = figure(WIDTH, 220)
    axes = drawing.subplots()
    edges = np.arange(len(widths) + 1) + 0.5
    axes.stairs([one.dense for one in widths], edges, fill=True, color=colour("dense"), alpha=0.25)
    axes.stairs([one.slim for one in widths], edges, fill=True, color=colour("slim"))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(one.dense for one in widths) * 1.05)
    axes.set_xlabel("layer")
    axes.set_title("channels", color=colour("soft"))
    return drawing


def memory_plot(phases: Sequence[MemoryPhase]) -> Plot:
    """Memory by phase, dense above slim."""

    def draw() -> Figure:
        both = any(one.dense is not None for one in phases)
        drawing, axes = _rows([one.name for one in phases], 40.0 if both else 26.0)
        for place, one in enumerate(phases):
            bars = [("slim", one.slim, 0.0)]
            if both:
                bars = [("slim", one.slim, 0.2), ("dense", one.dense or 0.0, -0.2)]
            for name, size, shift in bars:
                axes.barh(place + shift, size, 0.34, color=_shade(name))
                _beside(axes, size, place + shift, format_quantity(size, "size"))
        most = max(max(one.slim, one.dense or 0.0) for one in phases)
        axes.set_xlim(0, max(most, 1.0) * 1.3)
        axes.xaxis.set_ticks([])
        axes.spines["bottom"].set_visible(False)
        return drawing

    key = (
        "The upper bar is dense, the lower one slim." if any(one.dense is not None for one in phases) else ""
    )
    return make_plot("Memory by phase", memory_sentence(phases), key, draw)


def classes_plot(found: ClassAccuracies) -> Plot:
    """Accuracy by class: a line from dense to slim."""
    shown = found.classes[:CLASSES]
    both = any(one.dense is not None for one in shown)

    def draw() -> Figure:
        drawing, axes = _rows([shorten(one.name, _LONGEST) for one in shown])
        for place, one in enumerate(shown):
            if one.dense is not None:
                axes.plot([one.dense * 100, one.slim * 100], [place, place], color=colour("soft"), lw=1.2)
                axes.plot([one.dense * 100], [place], "o", mfc="none", mec=colour("dense"), mew=1.6, ms=9)
            axes.plot([one.slim * 100], [place], "o", color=colour("slim"), ms=5)
        shares = [share for one in shown for share in (one.dense, one.slim) if share is not None]
        room = max(max(shares) - min(shares), 0.02) * 6
        axes.set_xlim(min(shares) * 100 - room, max(shares) * 100 + room)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %" if 0 <= value <= 100 else "")
        return drawing

    key = (
        "Ring: dense; dot: slim. The class that lost most is above." if both else "The worst class is above."
    )
    if len(found.classes) > CLASSES:
        key += f" The first {CLASSES} of {len(found.classes)} are drawn."
    return make_plot(f"Accuracy by class, {found.split} split", found.sentence, key, draw)


# --- the search for a budget ---

_COSTS: dict[str, tuple[str, Quantity | None]] = {
    "macs_ratio": ("multiply-adds, slim / dense", None),
    "params_ratio": ("parameters, slim / dense", None),
    "latency_ratio": ("latency, slim / dense", None),
    "size_bytes": ("ONNX file", "size"),
}


def search_plot(search: Search) -> Plot:
    """The scores that stay against what a candidate costs."""
    text, quantity = _COSTS[search.cost]
    costs, front = search.costs(), search.front()

    def say(cost: float) -> str:
        return f"{cost * 100:.0f} %" if quantity is None else format_quantity(cost, quantity)

    def draw() -> Figure:
        drawing = figure(WIDTH, 260)
        axes = drawing.subplots()
        places = [(cost, probe.kept_score * 100) for cost, probe in front]
        axes.plot(*zip(*places, strict=True), color=colour("slim"), lw=1.2)
        for cost, probe in costs:
            height = probe.kept_score * 100
            on_front = (cost, height) in places
            if search.cost == "latency_ratio" and probe.low is not None and probe.high is not None:
                axes.plot([probe.low, probe.high], [height, height], color=colour("soft"), lw=1)
            face = colour("slim" if on_front else "paper")
            axes.plot([cost], [height], "o", ms=6, mfc=face, mec=colour("slim"))
            if probe.threshold == search.chosen:
                axes.plot([cost], [height], "o", ms=13, mfc="none", mec=colour("ink"), mew=1.5)
                low, high = axes.get_xlim()
                high = max(high, search.limit or 0.0)  # its line comes later
                left = cost > low + 0.75 * (high - low)  # where the curve comes from, but there is room
                axes.annotate(
                    "chosen", (cost, height), (-11 if left else 11, -4), textcoords="offset points",
                    ha="right" if left else "left", va="top",
                )  # fmt: skip
        if search.limit is not None:
            axes.axvline(search.limit, color=colour("bad"), lw=1.2, ls=(0, (4, 3)))
        axes.set_xlabel(text)
        axes.set_title("scores kept", color=colour("soft"))
        axes.xaxis.set_major_formatter(lambda value, _: say(value))
        axes.yaxis.set_major_formatter("{x:g} %")
        axes.locator_params(nbins=5)
        return drawing

    ends = f"from {say(front[0][0])} to {say(front[-1][0])}"
    kept = f"{front[0][1].kept_score * 100:.1f} % to {front[-1][1].kept_score * 100:.1f} %"
    description = f"{search.sentence} On the front, {text} goes {ends} and the kept scores from {kept}."
    key = "Each dot is a candidate; filled: no other costs less and keeps as much."
    if search.limit is not None:
        key += f" Dashed: the budget, {say(search.limit)}."
    return make_plot("Pareto front of the budget search", description, key, draw)
