"""The report in a browser: Chromium without a window, at two widths, light, dark and printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.report import class_structure, report_html, training_curves
from edgeprune.verdict import gate
from tests.test_report import PASSED, SLIM
from tests.test_report_classes import facts_of
from tests.test_report_curves import EPOCHS
from tests.test_report_parts import full_report

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VIEWS = [
    (width, scheme, media)
    for width in (1280, 390)
    for scheme in ("light", "dark")
    for media in ("screen", "print")
    if (width, media) != (390, "print")
] + [(680, "light", "print")]  # a page of A4 inside its margins
SECTIONS = (
    "verdicts", "comparison", "widths", "latency", "memory", "by-class", "search", "structure", "training",
    "method", "run", "environment", "reproduce",
)  # fmt: skip
MOST_BYTES = 2_000_000
LEAST_LETTERS = (9.5, 8.5)  # pixels, of letters in plots, on a screen and on paper
LOOK = """() => {
  const found = [];
  const least = LEAST[Number(matchMedia('print').matches)];
  const say = (text, node) => found.push(text + ': ' + (node.textContent || '').trim().slice(0, 60));
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) found.push(`the page is ${wide} pixels wide of ${innerWidth}`);
  const plots = [...document.querySelectorAll('svg')];
  if (!plots.length) found.push('no plots');
  for (const plot of plots) {
    const of = key => document.getElementById(plot.getAttribute(key))?.textContent || '';
    if (plot.getAttribute('role') !== 'img' || !of('aria-labelledby')) say('a plot has no name', plot);
    if (!/\\d/.test(of('aria-describedby'))) say('a plot has no text alternative', plot);
    const box = plot.getBoundingClientRect();
    if (box.width < 50 || box.height < 50) say('a plot is too small', plot);
    const scale = box.width / plot.viewBox.baseVal.width;
    const texts = [...plot.querySelectorAll('text')].filter(text => text.textContent.trim());
    const places = texts.map(text => text.getBoundingClientRect());
    texts.forEach((text, one) => {
      const size = parseFloat(getComputedStyle(text).fontSize) * scale;
      if (size < least) say(`letters of ${size.toFixed(1)} pixels`, text);
      if (places[one].right > innerWidth || places[one].left < 0) say('text is cut off', text);
      for (let two = 0; two < one; two++) {
        const [a, b] = [places[one], places[two]];
        const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (over > 1 && high > 3) say(`'${texts[two].textContent}' lies under`, text);
      }
    });
  }
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption?.textContent.trim()) say('a table has no caption', table);
    if (table.querySelector('th:not([scope])')) say('a header has no scope', table);
    const box = table.getBoundingClientRect();
    if (box.right > innerWidth + 1) say('a table is cut off', table);
    const frame = table.parentElement;
    if (frame.scrollWidth > frame.clientWidth + 1) say('a table scrolls', table);
    if (matchMedia('print').matches && !table.checkVisibility()) say('a table is not printed', table);
  }
  const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
  if (new Set(ids).size < ids.length) found.push('an id is there twice');
  const empty = [...document.querySelectorAll('section')].filter(part => part.innerText.trim().length < 20);
  empty.forEach(part => say('an empty section', part));
  return [found, ids, getComputedStyle(document.body).backgroundColor];
}""".replace("LEAST", str([*LEAST_LETTERS]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def faults_of(browser: Any, path: Path, width: int, scheme: str, media: str) -> list[str]:
    """What is wrong with a report when it is looked at in one way."""
    size = path.stat().st_size
    faults = [f"{size} bytes"] if size >= MOST_BYTES else []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.emulate_media(media=media)
    address = path.as_uri()

    def ask(route: Any) -> None:
        if route.request.url == address:
            route.continue_()
        else:
            faults.append(f"a request: {route.request.url}")
            route.abort()

    context.route("**/*", ask)
    page.on("console", lambda message: faults.append(f"the console says: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"an error: {error}"))
    try:
        page.goto(address)
        found, ids, ground = page.evaluate(LOOK)
    finally:
        context.close()
    faults += found
    faults += [f"no section {name}" for name in SECTIONS if name not in ids]
    wanted = "rgb(21, 24, 27)" if (scheme, media) == ("dark", "screen") else "rgb(255, 255, 255)"
    return faults + ([] if ground == wanted else [f"the ground is {ground}"])


def test_a_report_of_a_real_run(browser: Any, tmp_path: Path) -> None:
    words = "--model resnet20 --data digits --epochs 1 --scheme sglp-ib --max-macs-ratio 0.6 --processes 3"
    command = [sys.executable, "-m", "edgeprune", "run", *words.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
    assert done.returncode in (0, 1, 3), done.stderr
    path = tmp_path / "run" / "report.html"
    assert [(view, fault) for view in VIEWS for fault in faults_of(browser, path, *view)] == []


@pytest.fixture(scope="module")
def everything() -> str:
    """A report with every section, that of several targets and a sparsity curve among them."""
    return report_html(
        full_report(
            extra={"scheme": "both"},
            classes=class_structure(facts_of("graph")),
            curves=training_curves({"proximal-ns": {"epochs": EPOCHS}}),
            also={"a phone": gate(PASSED, SLIM)},
        )
    )


@pytest.mark.parametrize("view", VIEWS)
def test_a_report_with_all_sections(browser: Any, everything: str, tmp_path: Path, view: Any) -> None:
    path = tmp_path / "report.html"
    path.write_text(everything, encoding="utf-8")
    assert faults_of(browser, path, *view) == []


def without_policy(text: str) -> str:
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)


def planted(node: str) -> Callable[[str], str]:
    return lambda text: text.replace("<main>", f"<main>{node}")


IMAGE = planted('<img alt="" src="https://example.invalid/x.png">')
SCRIPT = planted("<script>console.error('x')</script>")


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda text: IMAGE(without_policy(text)), "a request: https://example.invalid/x.png"),
        (IMAGE, "the console says: .*Content Security Policy"),  # the policy stops it, and that is told
        (lambda text: SCRIPT(without_policy(text)), "the console says: x"),
        (SCRIPT, "the console says: .*Content Security Policy"),
        (
            lambda text: planted("<script>missing()</script>")(without_policy(text)),
            "an error: missing is not",
        ),
        (
            lambda text: re.sub(r'(?s)<section aria-labelledby="memory">.*?</section>', "", text),
            "no section mem",
        ),
        (
            lambda text: re.sub(r"(?s)(<h2 id=\"memory\">).*?</section>", r"\1</h2></section>", text),
            "an empty sec",
        ),
        (planted('<p style="width: 2000px; max-width: none">x</p>'), "the page is 2... pixels wide of 1280"),
        (
            lambda text: re.sub(r"<desc[^>]*>[^<]*</desc>", "", text, count=1),
            "a plot has no text alternative",
        ),
        (lambda text: re.sub(r"<title id[^>]*>[^<]*</title>", "", text, count=1), "a plot has no name"),
        (lambda text: re.sub(r"<caption>[^<]*</caption>", "", text, count=1), "a table has no caption"),
        (lambda text: text.replace('<th scope="row">', "<th>", 1), "a header has no scope"),
        (lambda text: text.replace("font-size: 12px", "font-size: 5px", 1), r"letters of 5\.\d pixels"),
        (lambda text: re.sub(r"<text.*?</text>", r"\g<0>\g<0>", text, count=1), "lies under"),
        (lambda text: text.replace("color-scheme: light dark;", "--paper: red !important;"), "the ground is"),
        (
            planted(
                '<div style="width: 9px; overflow: auto">'
                '<table style="width: 99px"><caption>x</caption><tr><td>x</table></div>'
            ),
            "a table scrolls",
        ),
        (planted('<i id="memory">x</i>'), "an id is there twice"),
        (planted(f"<!--{'x' * MOST_BYTES}-->"), "bytes"),
        (lambda text: text.replace("<svg", "<s").replace("</svg>", "</s>"), "no plots"),
    ],
)
def test_a_planted_fault_is_found(
    browser: Any, everything: str, tmp_path: Path, plant: Callable[[str], str], fault: str
) -> None:
    path = tmp_path / "report.html"
    text = plant(everything)
    assert text != everything
    path.write_text(text, encoding="utf-8")
    found = faults_of(browser, path, 1280, "light", "screen")
    assert any(re.search(fault, one) for one in found), found


def test_a_table_that_print_leaves_out_is_found(browser: Any, everything: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(
        re.sub(r"details::details-content \{.*?\}", "", everything.replace("<details open>", "<details>"))
    )
    assert any("a table is not printed" in one for one in faults_of(browser, path, 1280, "light", "print"))
