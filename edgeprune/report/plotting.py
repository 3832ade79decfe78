"""Plots by matplotlib as SVG inside a page: text stays text, colours follow the page. Device side: no torch.

matplotlib comes with the extras ``train`` and ``report``; it is imported when a plot is drawn. Draw inside
``style()`` and with the colours of ``colour``::

    with style():
        figure = plotting.figure(400, 200)
        axes = figure.subplots()
        axes.plot([1, 2], [3, 4], color=colour("slim"))
        svg = svg_of(figure, title="Loss", description="Loss falls from 4 to 3.")

Plots are about ``WIDTH`` pixels wide: as wide as a phone shows, so that letters keep their size there.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgeprune.report.colours import COLOURS
from edgeprune.report.content import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360
"""Pixels across a plot."""
FONT = 12.0
"""Size of letters in pixels."""
HINT = "`pip install edgeprune[report]` brings matplotlib, which draws them."
"""What to do where there are no plots."""

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NAMES = {light: name for name, (light, _) in COLOURS.items()} | {"#000000": "ink"}


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return find_spec("matplotlib") is not None


def colour(name: str) -> str:
    """A colour for matplotlib that a page shows as its own of that name; see ``COLOURS``."""
    return COLOURS[name][0]


@contextmanager
def style() -> Iterator[None]:
    """The looks of all plots, for as long as the context lasts; after it matplotlib is as the user set it."""
    import matplotlib as mpl

    ink, soft, line = map(colour, ("ink", "soft", "line"))
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change the pages
        mpl.rcParams.update(
            {
                "axes.axisbelow": True, "axes.edgecolor": line, "axes.facecolor": "none", "axes.grid": True,
                "axes.labelcolor": soft, "axes.labelsize": FONT, "axes.spines.left": False,
                "axes.spines.right": False, "axes.spines.top": False, "axes.titlecolor": ink,
                "axes.titlelocation": "left", "axes.titlesize": FONT, "axes.unicode_minus": False,
                "figure.facecolor": "none", "font.size": FONT, "grid.color": line, "grid.linewidth": 0.8,
                "legend.fontsize": FONT, "legend.frameon": False, "legend.labelcolor": ink,
                "lines.linewidth": 1.8, "path.simplify": False, "savefig.facecolor": "none",
                "svg.fonttype": "none", "svg.hashsalt": "edgeprune", "text.color": ink,
                "text.parse_math": False,
                "xtick.color": soft, "xtick.labelsize": FONT, "xtick.major.size": 0, "xtick.minor.size": 0,
                "xtick.major.pad": 7,
                "ytick.color": soft, "ytick.labelsize": FONT, "ytick.major.size": 0, "ytick.minor.size": 0,
            }
        )  # fmt: skip
        yield


@dataclass(frozen=True)
class Plot:
    """A plot of a page.

    Attributes:
        title: Its name.
        description: What it shows, in figures; stands in for the drawing where matplotlib is not.
        key: How to read it.
        svg: The ``<svg>`` element; empty without matplotlib.
    """

    title: str
    description: str
    key: str
    svg: str


def make_plot(title: str, description: str, key: str, draw: Callable[[], Figure]) -> Plot:
    """Draw, if matplotlib is here."""
    if not has_matplotlib():
        return Plot(title, description, key, "")
    with style():
        return Plot(title, description, key, svg_of(draw(), title=title, description=description))


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure to draw on in pixels from its upper left corner."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return drawing, axes


def figure(width: float, height: float) -> Figure:
    """An empty figure of so many pixels, to be drawn on inside ``style()``."""
    from matplotlib.figure import Figure

    with style():
        return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def stacked(drawing: Figure, heights: Sequence[float]) -> list[Axes]:
    """Axes one below the other on a common x axis, whose ticks the last one names."""
    grid = drawing.add_gridspec(len(heights), 1, height_ratios=list(heights))
    found: list[Axes] = []
    for place in range(len(heights)):
        found.append(drawing.add_subplot(grid[place, 0], sharex=found[0] if found else None))
    for axes in found[:-1]:
        axes.tick_params(labelbottom=False)
    return found


def svg_of(figure: Figure, *, title: str, description: str) -> str:
    """A figure as an ``<svg>`` element of a page; equal figures give equal text.

    Args:
        figure: Drawn with colours of ``colour``.
        title: Its name.
        description: What it shows, in figures: the text for who does not see it.
    """
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has it
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    drawn = ET.fromstring(buffer.getvalue())
    key = "p" + hashlib.sha256(f"{title}\0{description}".encode() + buffer.getvalue()).hexdigest()[:8]
    root = ET.Element(
        "svg",
        {
            "class": "plot", "viewBox": drawn.attrib["viewBox"], "role": "img",
            "aria-labelledby": f"{key}-title", "aria-describedby": f"{key}-desc",
            "stroke-linejoin": "round", "stroke-linecap": "butt",
        },
    )  # fmt: skip
    ET.SubElement(root, "title", {"id": f"{key}-title"}).text = _one_line(title)
    ET.SubElement(root, "desc", {"id": f"{key}-desc"}).text = _one_line(description)
    used = set(re.findall(rb'(?:url\(|href=")#([^)"]+)', buffer.getvalue()))
    for child in drawn:
        root.extend(_copied(child, key, {name.decode() for name in used}))
    return ET.tostring(root, encoding="unicode")


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _copied(node: ET.Element, key: str, used: set[str]) -> list[ET.Element]:
    """A node as a page wants it: its own ids, font and colours, and nothing that says nothing."""
    kind = node.tag.removeprefix(_SVG)
    unseen = node.get("style") == "fill: none"  # the grounds of the figure and of its axes
    if unseen or kind in ("metadata", "style"):  # a style would hold for the whole page
        return []
    found = ET.Element(kind)
    for name, value in node.attrib.items():
        if name == "id" and value in used:
            found.set("id", f"{key}-{value}")
        elif name == _LINK:
            found.set("href", f"#{key}-{value.removeprefix('#')}")
        elif name == "style":
            found.set("style", re.sub(r"#[0-9a-f]{6}\b", _variable, _own_font(value)))
        elif name in ("clip-path", "class"):
            found.set(name, value.replace("url(#", f"url(#{key}-"))
        elif name != "id" and not value.startswith("rotate(-0 "):
            found.set(name, " ".join(re.sub(r"-?\d+\.\d+", _short, value).split()))
    found.text = node.text if kind == "text" else None
    for child in node:
        found.extend(_copied(child, key, used))
    if kind in ("g", "defs") and not found.attrib:
        return list(found) if kind == "g" or not len(found) else [found]
    return [found]


def _own_font(css: str) -> str:
    """The size and weight of letters alone; the family is the page's."""
    css = re.sub(r"font: (?:(\w+) )?([\d.]+px)[^;]*", r"font-weight: \1; font-size: \2", css)
    return re.sub(r"font-weight: ; |font-family: [^;]*; ", "", css)


def _variable(match: re.Match[str]) -> str:
    assert match[0] in _NAMES, f"{match[0]} is no colour of a page: take colour(name) for it"
    return f"var(--{_NAMES[match[0]]})"


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
