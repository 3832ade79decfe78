"""The class structure as plots of the page. Device side: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.report.classes import ClassStructure, Matrix, shorten
from edgeprune.report.plotting import FONT, WIDTH, Plot, canvas, colour, make_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 40
"""More are not drawn: nobody could read their names."""

_NAME, _LONGEST = 104, 14  # pixels for names, and letters that fit
_LEVELS = 10  # of colour, in each direction
_SMALL = 104  # pixels across the map of a layer before


def structure_plots(structure: ClassStructure) -> list[Plot]:
    """The last layer's relatedness, and the tree or the graph of it; none of too many classes."""
    if len(structure.classes) > MOST_CLASSES:
        return []
    size = min(34.0, (WIDTH - _NAME) / (len(structure.classes) - 1))
    key = "Cosine of two classes' mean output maps, of which the mean of all classes is taken off."
    key += " Framed: joined by an edge of the graph." if structure.edges else ""
    key += "" if size >= FONT else " Classes from the top as beside."
    layer, row = structure.layer, max(size, FONT + 2)
    found = [
        make_plot(
            f"Relatedness of the classes in {layer}", structure.lines[0], key, lambda: _map(structure, size)
        )
    ]
    if structure.kind == "tree":
        key = "Classes and branches meet at the relatedness that any two of them have at least."
        found.append(
            make_plot(f"Class tree of {layer}", structure.lines[1], key, lambda: _tree(structure, row))
        )
    else:
        key = "An arc for each edge; the thicker, the more related, and the more the scheme ties the two."
        found.append(
            make_plot(f"Class graph of {layer}", structure.lines[1], key, lambda: _graph(structure, row))
        )
    return found


def depth_plots(structure: ClassStructure) -> list[Plot]:
    """Small maps of layers before, in the same order of classes."""
    if len(structure.classes) > MOST_CLASSES:
        return []
    return [
        make_plot(
            name, f"Relatedness of the classes in {name}: {_range(related)}.", "",
            partial(_small, structure, related),
        )
        for name, related in structure.before.items()
    ]  # fmt: skip


def _range(related: Matrix) -> str:
    pairs = [value for place, row in enumerate(related) for value in row[:place]]
    return f"from {min(pairs):z.2f} to {max(pairs):z.2f}"


def _map(structure: ClassStructure, size: float) -> Figure:
    """Half of the matrix, a class's name at the end of its row and the top of its column."""
    order, related = structure.order, structure.relatedness
    drawing, axes = canvas(WIDTH, len(order) * size + 34)
    _cells(axes, related, order, size)
    place = {number: row for row, number in enumerate(order)}
    for one, two, _ in structure.edges:
        column, row = sorted((place[one], place[two]))
        _square(axes, column * size + 1, row * size + 1, size - 2, fill=False, ec=colour("ink"), lw=1.3)
    if size >= 26:
        for row in range(len(order)):
            for column in range(row):
                text = f"{related[order[row]][order[column]]:z.2f}"
                _text(axes, (column + 0.5) * size, (row + 0.5) * size, text, "center", "ink", FONT - 2)
    if size >= FONT:
        for row, number in enumerate(order):
            _text(axes, row * size + 5, (row + 0.5) * size, shorten(structure.classes[number], _LONGEST))
    _scale(axes, len(order) * size + 10)
    return drawing


def _tree(structure: ClassStructure, row: float) -> Figure:
    """The dendrogram: leaves to the left, the root to the right."""
    order, links = structure.order, structure.links
    bottom = len(order) * row
    drawing, axes = canvas(WIDTH, bottom + 20)
    scale = (WIDTH - _NAME - 16) / max(links[-1][2], 1e-9)
    ends = [(0.0, 0.0)] * len(order)  # of each node: x, y
    for place, number in enumerate(order):
        ends[number] = (_NAME, (place + 0.5) * row)
    for left, right, height in links:
        (x1, y1), (x2, y2), x = ends[left], ends[right], _NAME + height * scale
        axes.plot([x1, x, x, x2], [y1, y1, y2, y2], color=colour("slim"), lw=1.5)
        ends.append((x, (y1 + y2) / 2))
    x, y = ends[-1]
    axes.plot([x, x + 8], [y, y], color=colour("slim"), lw=1.5)
    _names(axes, structure, row)
    for value in (1.0, 0.5, 0.0, -0.5, -1.0):
        if 1 - value <= links[-1][2] + 1e-9:
            _text(axes, _NAME + (1 - value) * scale, bottom + 10, f"{value:g}", "center", "soft")
    return drawing


def _graph(structure: ClassStructure, row: float) -> Figure:
    """Arcs between the names of joined classes."""
    from matplotlib.patches import Arc

    place = {number: row for row, number in enumerate(structure.order)}
    drawing, axes = canvas(WIDTH, len(place) * row + 8)
    tallest = max([abs(place[one] - place[two]) * row / 2 for one, two, _ in structure.edges], default=1.0)
    flat = min(1.0, (WIDTH - _NAME - 10) / tallest)
    for one, two, value in structure.edges:
        top, bottom = sorted(((place[one] + 0.5) * row, (place[two] + 0.5) * row))
        high = bottom - top
        axes.add_patch(
            Arc(
                (_NAME, (top + bottom) / 2), high * flat, high, theta1=-90, theta2=90, color=colour("slim"),
                alpha=0.55, lw=round(0.75 + 5 * value, 1),
            )
        )  # fmt: skip
    _names(axes, structure, row)
    return drawing


def _small(structure: ClassStructure, related: Matrix) -> Figure:
    count = len(structure.order)
    size = _SMALL / (count - 1)
    drawing, axes = canvas(_SMALL, _SMALL)
    axes.set_ylim(_SMALL + size, size)  # the first row is empty
    _cells(axes, related, structure.order, size)
    return drawing


def _cells(axes: Axes, related: Matrix, order: Sequence[int], size: float) -> None:
    """Half of a matrix as squares, one path for each colour."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * size
    squares: dict[int, list[tuple[float, float]]] = {}
    for row, number in enumerate(order):
        for column, other in enumerate(order[:row]):
            level = round(_LEVELS * max(-1.0, min(1.0, related[number][other])))
            squares.setdefault(level, []).append((column * size, row * size))
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    for level, places in sorted(squares.items()):
        ends = np.concatenate([corners + np.array(place) for place in places])
        path = Path(ends, np.tile(codes, len(places)))
        axes.add_patch(PathPatch(path, lw=0, **_paint(level)))


def _paint(level: int) -> dict[str, Any]:
    if level == 0:
        return {"fc": colour("panel")}
    return {"fc": colour("alike" if level > 0 else "unlike"), "alpha": abs(level) / _LEVELS}


def _square(axes: Axes, x: float, y: float, size: float, **paint: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), size, size, **paint))


def _scale(axes: Axes, top: float) -> None:
    """What the colours mean."""
    wide = 8
    for level in range(-_LEVELS, _LEVELS + 1):
        _square(axes, (level + _LEVELS) * wide + 10, top, wide, lw=0, **_paint(level))
    for value in (-1, 0, 1):
        _text(axes, 10 + (value + 1) * _LEVELS * wide + wide / 2, top + 16, str(value), "center", "soft")


def _names(axes: Axes, structure: ClassStructure, row: float) -> None:
    for place, number in enumerate(structure.order):
        name = shorten(structure.classes[number], _LONGEST)
        _text(axes, _NAME - 6, (place + 0.5) * row, name, "right")


def _text(
    axes: Axes, x: float, y: float, text: str, side: str = "left", shade: str = "ink", size: float = FONT
) -> None:
    axes.text(x, y, text, ha=side, va="center_baseline", color=colour(shade), fontsize=size)
