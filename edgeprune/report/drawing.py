"""The class structure as drawings of the page. Device side: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from edgeprune.report.classes import ClassStructure, Matrix, shorten

MOST_CLASSES = 40
"""More are not drawn: nobody could read their names."""

STYLE = """
.classes { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin-top: .75rem; }
.classes figure { flex: 1 1 20rem; max-width: 27.5rem; margin: 0; }
.classes figcaption, .depths figcaption { font-size: .925rem; margin-bottom: .4rem; }
.classes svg, .depths svg { display: block; width: 100%; }
.classes text { font: 12px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
.classes .soft { fill: var(--soft); }
.cells path { stroke: none; }
.even { fill: var(--panel); }
.alike { fill: var(--alike); }
.unlike { fill: var(--unlike); }
.edges, .branches { stroke-width: 1.5; }
.arcs { opacity: .55; }
.depths { display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; margin: .75rem 0; }
.depths figure { width: 7.5rem; margin: 0; overflow-wrap: anywhere; }
"""

_WIDTH = 440  # of a drawing; at most as many pixels, so that letters keep their size
_NAME, _LONGEST = 104, 14  # width for names, and letters that fit
_LEVELS = 10  # of colour, in each direction


def structure_html(structure: ClassStructure) -> str:
    """The section's drawings and sentences."""
    said = "".join(f"<li>{_safe(line)}</li>" for line in structure.lines)
    if len(structure.classes) > MOST_CLASSES:
        return f"<ul>{said}</ul><p>More than {MOST_CLASSES} classes are not drawn.</p>"
    size = min(34.0, (_WIDTH - _NAME) / (len(structure.classes) - 1))
    second = _tree if structure.kind == "tree" else _graph
    figures = f'<div class="classes">{_map(structure, size)}{second(structure, max(size, 14.0))}</div>'
    return f"{figures}<ul>{said}</ul>{_depths(structure)}"


def _map(structure: ClassStructure, size: float) -> str:
    """Half of the matrix, a class's name at the end of its row and the top of its column."""
    order, related = structure.order, structure.relatedness
    parts = [f'<g class="cells">{_cells(related, order, size)}</g>']
    if structure.edges:
        place = {number: row for row, number in enumerate(order)}
        tied = [sorted((place[one], place[two])) for one, two, _ in structure.edges]
        inset = size - 2
        frames = "".join(
            f"M{column * size + 1:.1f} {row * size + 1:.1f}h{inset:.1f}v{inset:.1f}h-{inset:.1f}z"
            for column, row in tied
        )
        parts.append(f'<path class="edges" d="{frames}"/>')
    if size >= 26:
        parts += [
            _label((column + 0.5) * size, (row + 0.5) * size, f"{related[order[row]][order[column]]:z.2f}")
            for row in range(len(order))
            for column in range(row)
        ]
    if size >= 10:
        parts += [
            _name(row * size + 5, (row + 0.5) * size, structure.classes[number], "start")
            for row, number in enumerate(order)
        ]
    text = f"Relatedness of the classes in {structure.layer}"
    note = " Framed: joined by an edge of the graph." if structure.edges else ""
    note += "" if size >= 10 else " Classes from the top as beside."
    key = "Cosine of two classes' mean output maps, of which the mean of all classes is taken off."
    picture = _svg(f"{text}. {structure.lines[0]}", len(order) * size, parts)
    return (
        f"<figure><figcaption>{_safe(text)}</figcaption>{picture}"
        f'<p class="soft">{key}{note}</p>{_scale()}</figure>'
    )


def _tree(structure: ClassStructure, row: float) -> str:
    """The dendrogram: leaves to the left, the root to the right."""
    order, links = structure.order, structure.links
    scale = (_WIDTH - _NAME - 16) / max(links[-1][2], 1e-9)
    ends = [(0.0, 0.0)] * len(order)  # of each node: x, y
    for place, number in enumerate(order):
        ends[number] = (_NAME, (place + 0.5) * row)
    lines = []
    for left, right, height in links:
        (x1, y1), (x2, y2), x = ends[left], ends[right], _NAME + height * scale
        lines.append(f"M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}")
        ends.append((x, (y1 + y2) / 2))
    x, y = ends[-1]
    bottom = len(order) * row
    parts = [*_names(structure, row), f'<path class="branches" d="{"".join(lines)}M{x:.1f} {y:.1f}h8"/>']
    ticks = [value for value in (1.0, 0.5, 0.0, -0.5, -1.0) if 1 - value <= links[-1][2] + 1e-9]
    parts += [
        _label(_NAME + (1 - value) * scale, bottom + 9, f"{value:g}", kind=' class="soft"') for value in ticks
    ]
    text = f"Class tree of {structure.layer}"
    key = (
        "Complete linkage: any two classes below a joint are related at least as its place on the scale says."
    )
    picture = _svg(f"{text}. {structure.lines[1]}", bottom + 20, parts)
    return f'<figure><figcaption>{_safe(text)}</figcaption>{picture}<p class="soft">{key}</p></figure>'


def _graph(structure: ClassStructure, row: float) -> str:
    """An arc for each edge."""
    place = {number: at for at, number in enumerate(structure.order)}
    tallest = max([abs(place[one] - place[two]) * row / 2 for one, two, _ in structure.edges], default=1.0)
    flat = min(1.0, (_WIDTH - _NAME - 10) / tallest)
    arcs = []
    for one, two, value in structure.edges:
        top, bottom = sorted(((place[one] + 0.5) * row, (place[two] + 0.5) * row))
        high = (bottom - top) / 2
        arc = f"M{_NAME} {top:.1f}A{high * flat:.1f} {high:.1f} 0 0 1 {_NAME} {bottom:.1f}"
        arcs.append(f'<path stroke-width="{0.75 + 5 * value:.1f}" d="{arc}"/>')
    parts = [*_names(structure, row), f'<g class="arcs">{"".join(arcs)}</g>']
    text = f"Class graph of {structure.layer}"
    key = "An arc for each edge; the thicker, the more related, and the more the scheme ties the two."
    picture = _svg(f"{text}. {structure.lines[1]}", len(place) * row, parts)
    return f'<figure><figcaption>{_safe(text)}</figcaption>{picture}<p class="soft">{key}</p></figure>'


def _depths(structure: ClassStructure) -> str:
    """Small maps of layers before, in the same order of classes."""
    if not structure.before:
        return ""
    size = len(structure.order) - 1
    figures = [
        f'<figure><figcaption>{_safe(name)}</figcaption><svg role="img" viewBox="0 1 {size} {size}" '
        f'aria-label="{_safe(f"How {name} relates the classes")}"><g class="cells">'
        f"{_cells(related, structure.order, 1)}</g></svg></figure>"
        for name, related in structure.before.items()
    ]
    order = f"Layers before {structure.layer}, from the first on; classes in the order above."
    return f'<p class="soft">{_safe(order)}</p><div class="depths">{"".join(figures)}</div>'


def _cells(related: Matrix, order: Sequence[int], size: float) -> str:
    """Half of a matrix as squares, one path for each colour."""
    squares: dict[int, list[str]] = {}
    for row, number in enumerate(order):
        for column, other in enumerate(order[:row]):
            level = round(_LEVELS * max(-1.0, min(1.0, related[number][other])))
            squares.setdefault(level, []).append(_square(column * size, row * size, size))
    return "".join(_paint(level, "".join(found)) for level, found in sorted(squares.items()))


def _square(x: float, y: float, size: float) -> str:
    return f"M{x:.4g} {y:.4g}h{size:.4g}v{size:.4g}h-{size:.4g}z"


def _paint(level: int, squares: str) -> str:
    if level == 0:
        return f'<path class="even" d="{squares}"/>'
    kind = "alike" if level > 0 else "unlike"
    return f'<path class="{kind}" fill-opacity="{abs(level) / _LEVELS:g}" d="{squares}"/>'


def _scale() -> str:
    """What the colours mean."""
    wide = 8
    squares = [
        _paint(level, _square((level + _LEVELS) * wide + 10, 0, wide))
        for level in range(-_LEVELS, _LEVELS + 1)
    ]
    words = [_label(10 + (value + 1) * _LEVELS * wide + wide / 2, 18, str(value)) for value in (-1, 0, 1)]
    return _svg("Colours from -1 to 1", 28, [f'<g class="cells">{"".join(squares)}</g>', *words])


def _names(structure: ClassStructure, row: float) -> Iterator[str]:
    for place, number in enumerate(structure.order):
        yield _name(_NAME - 6, (place + 0.5) * row, structure.classes[number], "end")


def _name(x: float, y: float, name: str, anchor: str) -> str:
    """A class's name; the whole of it shows where a pointer rests on it."""
    short = shorten(name, _LONGEST)
    whole = "" if short == name else f"<title>{_safe(name)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{whole}{_safe(short)}</text>'


def _label(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="middle"{kind}>{text}</text>'


def _svg(text: str, height: float, parts: Sequence[str]) -> str:
    view = f"0 0 {_WIDTH} {height:.4g}"
    return f'<svg role="img" aria-label="{_safe(text)}" viewBox="{view}">{"".join(parts)}</svg>'


def _safe(text: str) -> str:
    return escape(text)
