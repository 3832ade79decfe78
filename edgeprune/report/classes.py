"""What a scheme found about the classes of each layer, in words. Device side: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from edgeprune.report.content import printable

LONGEST_NAME = 24
"""Letters of a class's name that are shown."""

_LAYERS = 6  # beside the last, evenly through the depth
_PAIRS, _SPLITS, _NAMES = 5, 4, 8  # said at most

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ClassStructure:
    """How a network's last scored layer relates the classes, and how the layers before come to it.

    Attributes:
        kind: ``"tree"`` or ``"graph"``: what the scheme ties the classes by.
        classes: Names, cut to ``LONGEST_NAME`` letters.
        order: The classes as the tree arranges them, so that related ones stand together.
        layer: The last layer.
        relatedness: Of its classes (C, C), from -1 to 1.
        links: Its tree: two nodes and their height per row; nodes 0 .. C-1 are the classes, then the rows.
        edges: Its graph: two classes and their relatedness per row. A tree has none.
        before: Relatedness by layer of some layers before it, in the network's order.
        lines: What the drawings show, in sentences.
    """

    kind: str
    classes: tuple[str, ...]
    order: tuple[int, ...]
    layer: str
    relatedness: Matrix
    links: tuple[tuple[int, int, float], ...]
    edges: tuple[tuple[int, int, float], ...]
    before: dict[str, Matrix]
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        """Of the section."""
        return f"How {self.layer} relates the classes"


def class_structure(facts: Mapping[str, Any]) -> ClassStructure | None:
    """Read the class structure from the facts that came with the scores.

    Args:
        facts: ``Scores.facts`` of a scheme: ``classes``, and by layer ``relatedness``, ``linkage`` and for a
            graph ``edges``; layers in the network's order.

    Returns:
        None for a scheme that looks at no classes, or if there is only one.
    """
    names = tuple(shorten(str(name)) for name in facts.get("classes", ()))
    layers = {name: about for name, about in facts.get("layers", {}).items() if "linkage" in about}
    if len(names) < 2 or not layers:
        return None
    *others, last = layers
    about = layers[last]
    links = tuple((int(left), int(right), float(height)) for left, right, height, _ in about["linkage"])
    edges = tuple((int(first), int(second), float(value)) for first, second, value in about.get("edges", ()))
    related = _matrix(about)
    kind = "graph" if "edges" in about else "tree"
    if len(others) > _LAYERS:
        others = [others[round(place * (len(others) - 1) / (_LAYERS - 1))] for place in range(_LAYERS)]
    lines = [_most_related(names, related)]
    lines.append(_graph(names, edges) if kind == "graph" else _tree(names, links))
    if "images_per_class" in facts:
        lines.append(f"Looked at on {facts['images_per_class']} images of each class.")
    for name, members in facts.get("joined_classes", {}).items():
        lines.append(f"Joined as {shorten(str(name))}: {_listed([shorten(str(one)) for one in members])}.")
    return ClassStructure(
        kind=kind,
        classes=names,
        order=_leaves(links, len(names)),
        layer=last,
        relatedness=related,
        links=links,
        edges=edges,
        before={name: _matrix(layers[name]) for name in others},
        lines=tuple(lines),
    )


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, visibly cut off where it is long."""
    name = " ".join(printable(name).split()) or "?"
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def _matrix(about: Mapping[str, Any]) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in about["relatedness"])


def _leaves(links: Sequence[tuple[int, int, float]], count: int) -> tuple[int, ...]:
    """The classes from one end of the tree to the other."""
    below: list[tuple[int, ...]] = [(leaf,) for leaf in range(count)]
    for left, right, _ in links:
        below.append(below[left] + below[right])
    return below[-1]


def _most_related(names: Sequence[str], related: Matrix) -> str:
    pairs = sorted(combinations(range(len(names)), 2), key=lambda pair: -related[pair[0]][pair[1]])[:_PAIRS]
    said = [f"{names[one]} and {names[two]} {related[one][two]:z.2f}" for one, two in pairs]
    return f"Most related: {', '.join(said)}."


def _graph(names: Sequence[str], edges: Sequence[tuple[int, int, float]]) -> str:
    alone = [name for number, name in enumerate(names) if all(number not in edge[:2] for edge in edges)]
    said = f"The graph ties {len(edges)} pair{'s' * (len(edges) != 1)} of classes"
    return f"{said}; {_listed(alone)} to none." if alone else f"{said}, and every class to another."


def _tree(names: Sequence[str], links: Sequence[tuple[int, int, float]]) -> str:
    """The splits nearest to the root."""
    below = [[name] for name in names]
    for left, right, _ in links:
        below.append(below[left] + below[right])
    splits = [
        f"{_listed(below[left])} from {_listed(below[right])} ({1 - height:z.2f})"
        for left, right, height in reversed(links[-_SPLITS:])
    ]
    least = "in brackets the relatedness that any two classes of a split have at least"
    return f"The tree parts from its root on, {least}: {'; '.join(splits)}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMES])} and {more} more"
