"""Plots as SVG, and the colours that they share with the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from edgeprune.report import plotting
from edgeprune.report.colours import COLOURS, variables
from edgeprune.report.plotting import colour, figure, style, svg_of


def drawn(line: str = colour("slim"), title: str = "Loss <1>", description: str = "From 3\x00 to\n1.") -> str:
    with style():
        plot = figure(400, 200)
        axes = plot.subplots()
        axes.plot([1, 2, 3], [3, 4, 1], color=line, marker="o")
        axes.text(2, 2, "a<b> $x$", weight="bold")
        axes.set_xlabel("epoch")
        return svg_of(plot, title=title, description=description)


def test_a_plot_is_one_svg_element_with_a_title_and_a_description() -> None:
    svg = ET.fromstring(drawn())
    assert (svg.tag, svg.get("role"), svg.get("viewBox")) == ("svg", "img", "0 0 400 200")
    assert [(node.tag, node.text) for node in svg[:2]] == [("title", "Loss <1>"), ("desc", "From 3 to 1.")]
    assert svg.get("aria-labelledby") == svg[0].get("id")
    assert svg.get("aria-describedby") == svg[1].get("id")


def test_text_stays_text_in_the_font_of_the_page() -> None:
    texts = {node.text: node.get("style", "") for node in ET.fromstring(drawn()).iter("text")}
    assert "font-weight: 700; font-size: 12px" in texts["a<b> $x$"]
    assert "fill: var(--soft)" in texts["epoch"]
    assert "DejaVu" not in drawn()


def test_colours_are_those_of_the_page_and_others_are_refused() -> None:
    svg = drawn()
    assert {"--slim", "--line", "--soft", "--ink"} <= set(re.findall(r"var\((--\w+)\)", svg))
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(url\(|href=")#', "", svg))
    with pytest.raises(AssertionError, match="#123456 is no colour of a page"):
        drawn("#123456")


def test_nothing_of_a_plot_reaches_outside_and_ids_are_its_own() -> None:
    one, other = drawn(), drawn(title="another")
    assert not re.search(r"https?:|<style|<\?xml|@import", one)
    named = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert named[0]
    assert not named[0] & named[1]
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', one))
    assert used
    assert used <= named[0]


def test_equal_plots_are_equal_bytes_whatever_the_user_has_set() -> None:
    wanted = drawn()
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert drawn() == wanted
        assert mpl.rcParams["font.size"] == 30  # and it is set still


def test_matplotlib_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plotting.has_matplotlib()
    monkeypatch.setattr(plotting, "find_spec", lambda _: None)
    assert not plotting.has_matplotlib()


# --- contrast, as WCAG 2.2 reckons it: 4.5 for text, 3 for what else has to be seen ---


def luminance(hexa: str) -> float:
    parts = [int(hexa[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_measure_of_contrast() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # known to be just too little


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "panel", "alike", "unlike"])
def test_contrast(scheme: int, ground: str) -> None:
    cells = ground in ("alike", "unlike")
    for name in ("ink",) if cells else ("ink", "soft", "dense", "slim", "good", "bad", "open"):
        assert contrast(COLOURS[name][scheme], COLOURS[ground][scheme]) >= 4.5, (name, ground)


def test_variables() -> None:
    assert variables("light").startswith("--ink: #1c2024; --soft: ")
    assert "--paper: #15181b;" in variables("dark")
