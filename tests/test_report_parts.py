"""The sections of a report: what they say, and that their plots show it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgeprune.report import make_report, plotting, report_html, report_markdown
from edgeprune.report.classes import shorten
from edgeprune.report.headline import key_figures
from edgeprune.report.parts import (
    LayerWidth,
    class_accuracies,
    memory_of,
    memory_sentence,
    search_of,
    widths_of,
    widths_sentence,
)
from edgeprune.report.plots import DOTS, classes_plot, latency_plots, memory_plot, search_plot, widths_plot
from edgeprune.report.plotting import Plot
from edgeprune.report.sections import MOST_ROWS, classes_left_out, classes_table, search_table
from edgeprune.verdict import gate
from tests.goldens import golden
from tests.test_report import ALL_STATES, COMMAND, DENSE, NASTY, PASSED, SLIM, Page, samples

BY_CLASS = {"cat": 0.9, "dog": 0.95, "<ship>": 0.8}


def probe(threshold: float, share: float, kept: float, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("size_bytes", "latency_ratio", "low", "high"))
    known = {"threshold": threshold, "macs_ratio": share, "params_ratio": share / 2, "kept_score": kept}
    return {**known, **empty, **more}


PLAN: dict[str, Any] = {
    "threshold": 0.2,
    "budgets": {"max_macs_ratio": 0.6},
    "widths": {"conv1": [16, 16], "layer1.0.conv1": [16, 8], "fc": [10, 10]},
    "search": [probe(0.1, 0.8, 0.95), probe(0.2, 0.55, 0.8), probe(0.3, 0.3, 0.5)],
}


def with_classes(dense: dict[str, float], slim: dict[str, float], split: str = "test"):
    baseline = replace(DENSE, artifact=replace(DENSE.artifact, accuracy_by_class={split: dense}))
    artifact = replace(SLIM.artifact, accuracy_by_class={split: slim})
    return replace(SLIM, artifact=artifact, baseline=baseline)


def full_report(**more: Any):
    measurement = with_classes(BY_CLASS, BY_CLASS | {"cat": 0.85, "dog": 0.96})
    return make_report(measurement, ALL_STATES, command=COMMAND, plan=PLAN, **more)


def texts(plot: Plot) -> list[str]:
    return [text.text or "" for text in ET.fromstring(plot.svg).iter("text")]


# --- the page as a whole ---


@pytest.mark.usefixtures("no_plots")
def test_the_page_golden() -> None:
    """Without plots, whose bytes are matplotlib's, and without the style."""
    text = report_html(full_report(also={"a phone": gate(PASSED, SLIM)}))
    golden("report.html", re.sub(r"(?s)<style>.*</style>", "<style></style>", text))


def test_the_markdown_golden() -> None:
    golden("report_run.md", report_markdown(full_report(also={"a phone": gate(PASSED, SLIM)})))


def test_without_matplotlib_the_text_stands_in_for_the_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Page(report_html(full_report()))
    monkeypatch.setattr(plotting, "find_spec", lambda _: None)
    bare = Page(report_html(full_report()))
    kinds = [[tag for tag, _ in page.tags].count("svg") for page in (drawn, bare)]
    assert kinds == [6, 0]
    assert "Plots are left out, their text stands in their place: `pip install" in bare.text
    assert "Plots are left out" not in drawn.text
    assert widths_sentence(widths_of(PLAN)) in bare.text


def test_every_plot_says_what_it_shows() -> None:
    html = report_html(full_report())
    for svg in re.findall(r"(?s)<svg.*?</svg>", html):
        title, description = ET.fromstring(svg)[:2]
        assert (title.tag, description.tag) == ("title", "desc")
        assert re.search(r"\d", description.text or "")


def test_every_table_has_a_caption_and_every_cell_a_header() -> None:
    html = report_html(full_report())
    tables = re.findall(r"(?s)<table.*?</table>", html)
    assert len(tables) == 7
    for table in tables:
        assert re.search(r"<caption>[^<]+</caption>", table)
        assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", table))
        for row in re.findall(r"(?s)<tbody>(.*)</tbody>", table)[0].split("</tr>")[:-1]:
            assert row.strip().startswith('<tr><th scope="row">')


@pytest.mark.usefixtures("no_plots")
def test_sections_of_a_run_that_has_nothing_to_show_say_why_and_a_measurement_alone_leaves_them_out() -> None:
    run = make_report(SLIM, ALL_STATES, command=COMMAND, plan={})
    alone = make_report(SLIM, ALL_STATES, command=COMMAND)
    for write in (report_html, report_markdown):
        for title, why in (
            ("Width of each layer", "The plan of this run tells no widths"),
            ("The search for the budget", "Nothing was searched: without a budget"),
            ("Accuracy by class", "The sidecars of this run tell no accuracy by class"),
        ):
            assert title in write(run)
            assert why in write(run)
            assert title not in write(alone)


@pytest.mark.usefixtures("no_plots")
def test_several_targets_have_their_own_verdicts_and_one_outcome() -> None:
    report = make_report(SLIM, ALL_STATES[:4], command=COMMAND, also={"a <phone>": ALL_STATES})
    assert report.outcome == "Not released: 2 of 11 budgets failed or could not be measured."
    html, text = report_html(report), report_markdown(report)
    assert html.count('class="budgets"') == 2
    assert "<h3>a &lt;phone&gt;</h3>" in html
    assert "<caption>Budgets of a &lt;phone&gt;</caption>" in html
    assert "### a &lt;phone>\n\n| budget |" in text
    assert 'class="outcome failed"' in html
    single = report_html(make_report(SLIM, ALL_STATES[:4], command=COMMAND))
    assert "<h3>" not in single
    assert 'class="outcome passed"' in single


# --- headline ---


def test_key_figures() -> None:
    found = {
        one.name: tuple(text.replace("\N{NO-BREAK SPACE}", " ") for text in (one.value, one.detail))
        for one in key_figures(SLIM)
    }
    minus = "\N{MINUS SIGN}"
    assert found["as fast"] == ("1.64\N{MULTIPLICATION SIGN}", "[1.59, 1.69], 1.51 ms instead of 2.48 ms")
    assert found["ONNX file"] == (f"{minus}39.1 %", "671 kB instead of 1.10 MB")
    assert found["multiply-adds"] == (f"{minus}41.2 %", "24 M instead of 40.8 M")
    assert "instead of 40.8\N{NO-BREAK SPACE}M" in report_html(make_report(SLIM, (), command=COMMAND))
    assert found["test accuracy"] == ("97.22 %", f"{minus}0.28 pp against dense")
    slower = replace(
        SLIM, latency_samples_s=samples(2.40e-3), artifact=replace(SLIM.artifact, size_bytes=2_206_442)
    )
    found = {one.name: one.value for one in key_figures(slower)}
    assert found["as fast: no clear difference"] == "1.00\N{MULTIPLICATION SIGN}"
    assert found["ONNX file"] == "+100.0 %"
    alone = {one.name: one.value for one in key_figures(replace(SLIM, baseline=None))}
    assert alone["median latency"] == "1.51\N{NO-BREAK SPACE}ms"
    assert alone["ONNX file"] == "671\N{NO-BREAK SPACE}kB"
    untimed = replace(SLIM, latency_samples_s=(), load_s=(), first_inference_s=(), baseline=None)
    assert "median latency" not in {one.name for one in key_figures(untimed)}
    assert key_figures(replace(DENSE, baseline=DENSE))[1].value == "as dense"


# --- widths ---


def test_widths() -> None:
    widths = widths_of(PLAN)
    assert widths[1] == LayerWidth("layer1.0.conv1", 16, 8)
    assert widths_sentence(widths) == (
        "1 of 3 layers are narrower; 34 of 42 channels stay. Cut most: layer1.0.conv1, 8 of 16."
    )
    assert widths_sentence(widths[:1]) == "0 of 1 layers are narrower; 16 of 16 channels stay."
    plot = widths_plot(widths)
    assert {"conv1", "layer1.0.conv1", "fc", "8 of 16", "16", "10"} <= {text.strip() for text in texts(plot)}
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [^>]*style="fill: var\(--(slim|dense)', plot.svg)
    lengths = {"dense": [], "slim": []}
    for start, end, name in bars:
        lengths[name].append(float(end) - float(start))
    unit = lengths["dense"][0] / 16
    assert lengths["dense"] == pytest.approx([16 * unit, 16 * unit, 10 * unit], abs=0.05)
    assert lengths["slim"] == pytest.approx([16 * unit, 8 * unit, 10 * unit], abs=0.05)


def test_many_layers_are_a_profile_and_long_names_are_cut() -> None:
    many = tuple(LayerWidth(f"features.block{n}.conv", 64, 64 - n % 50) for n in range(160))
    assert "features" not in "".join(texts(widths_plot(many)))
    assert len(widths_plot(many).svg) < 20_000
    assert "…tures.block7.convolve" in "".join(
        texts(widths_plot((LayerWidth("features.block7.convolve", 4, 4),)))
    )


@pytest.mark.parametrize("name", [NASTY, "cat \u732b", "$\\frac{$", "x" * 99])
def test_names_of_users_break_no_plot(name: str) -> None:
    found = class_accuracies(with_classes({name: 0.9}, {name: 0.8}))
    assert found is not None
    for plot in (classes_plot(found), widths_plot((LayerWidth(name, 8, 4),))):
        svg = ET.fromstring(plot.svg)
        assert max(len(text.text or "") for text in svg.iter("text")) <= 22
        assert not {tag.tag for tag in svg.iter()} & {"script", "img"}
    assert shorten(name, 22) in texts(classes_plot(found))


# --- latency ---


def drawn_runs(plot: Plot) -> np.ndarray:
    """x of every dot."""
    found = re.findall(r'd="([^"]+)" style="[^"]*stroke-linecap: round', plot.svg)
    return np.array([float(x) for path in found for x in re.findall(r"M ([-\d.]+)", path)])


def test_the_strips_draw_every_run_inside_and_count_the_others() -> None:
    report = make_report(SLIM, (), command=COMMAND)
    strips, _ = latency_plots(report.samples_s)
    everything = [t for m in (SLIM, DENSE) for process in m.latency_samples_s for t in process]
    beyond = re.search(r"Beyond the right end lie (\d+) of (\d+)", strips.key)
    assert beyond is not None
    xs = drawn_runs(strips)
    assert len(xs) + int(beyond[1]) == len(everything) == int(beyond[2]) == 280
    assert int(beyond[1]) == sum(t > 4e-3 for t in everything) == 2
    assert min(xs) >= 0
    assert max(xs) <= plotting.WIDTH
    assert "dense: median 2.48 ms" in texts(strips)
    assert "dense: fastest 2.41 ms, median 2.48 ms, three quarters within" in strips.description


def test_long_processes_are_thinned_out_and_equal_runs_are_drawn() -> None:
    strips, _ = latency_plots({"network": ((0.001,) * 500,) * 2})
    assert len(drawn_runs(strips)) == 2 * DOTS == 400
    assert "Of each process 200 are drawn" in strips.key
    assert "Beyond" not in strips.key
    assert "network: median 1.00 ms" in texts(strips)


@pytest.mark.parametrize(
    "samples_s", [{"network": ((0.001,),)}, {"dense": ((0.002, 0.003),), "slim": ((0.001,) * 2,)}]
)
def test_a_single_process_is_drawn(samples_s: Any) -> None:
    strips, shares = latency_plots(samples_s)
    assert len(drawn_runs(strips)) == sum(len(process) for one in samples_s.values() for process in one)
    assert set(samples_s) <= {*texts(shares)}


def test_the_shares_rise_to_one_and_dense_is_right_of_slim() -> None:
    _, shares = latency_plots({"dense": samples(2e-3), "slim": samples(1e-3)})
    lines = re.findall(r'd="(M [^"]+)"[^>]*style="fill: none; stroke: var\(--(dense|slim)\)', shares.svg)
    at_half = {}
    for path, name in lines:
        points = np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path), dtype=float)
        if len(points) > 9:
            assert (np.diff(points[:, 0]) >= 0).all()
            assert (np.diff(points[:, 1]) <= 0).all()
            at_half[name] = points[len(points) // 2, 0]
    assert at_half["dense"] > at_half["slim"]


# --- memory ---


def test_memory() -> None:
    phases = memory_of(SLIM)
    assert [(one.name, one.dense, one.slim) for one in phases[:2]] == [
        ("loading, peak", 5_800_000, 3_900_000), ("loaded", 2_900_000, 1_950_000)
    ]  # fmt: skip
    assert memory_sentence(phases).startswith("Memory: loading, peak 3.90 MB (dense 5.80 MB); loaded 1.95 MB")
    assert {"3.90 MB", "5.80 MB", "arena, peak"} <= {text.strip() for text in texts(memory_plot(phases))}
    alone = memory_of(replace(SLIM, baseline=None))
    assert "dense" not in memory_sentence(alone) + memory_plot(alone).svg
    nothing = dict.fromkeys(SLIM.memory) | {"repeats": [], "why": "no"}
    nothing |= dict.fromkeys(("arena", "device"), SLIM.memory["device"])
    assert memory_of(replace(SLIM, memory=nothing)) == ()


# --- accuracy by class ---


def test_the_class_that_lost_most_comes_first() -> None:
    found = class_accuracies(with_classes(BY_CLASS, {"cat": 0.85, "dog": 0.96, "<ship>": 0.79}))
    assert found is not None
    assert [one.name for one in found.classes] == ["cat", "<ship>", "dog"]
    assert found.sentence == (
        "2 of 3 classes are classified worse than by dense on the test split. cat lost most: 5.00 pp, from "
        "90.00 % to 85.00 %."
    )
    assert classes_table(found).rows[0] == ("cat", "90.00 %", "85.00 %", "-5.00 pp")
    assert [text for text in texts(classes_plot(found)) if "%" not in text] == ["cat", "<ship>", "dog"]
    better = class_accuracies(with_classes(BY_CLASS, BY_CLASS))
    assert better is not None
    assert better.sentence == "0 of 3 classes are classified worse than by dense on the test split."


def test_classes_without_dense_and_on_another_split() -> None:
    alone = replace(with_classes({}, BY_CLASS, "val"), baseline=None)
    found = class_accuracies(alone)
    assert found is not None
    assert found.sentence == "The worst of 3 classes on the val split is <ship> with 80.00 %."
    assert classes_table(found).rows[0] == ("<ship>", "-", "80.00 %", "-")
    assert "dense" not in classes_plot(found).svg
    assert class_accuracies(SLIM) is None


def test_of_many_classes_those_that_lost_most_are_named(request: pytest.FixtureRequest) -> None:
    dense = {f"class{n:04}": 0.9 for n in range(1000)}
    slim = {name: 0.9 - n / 1e5 for n, name in enumerate(dense)}
    found = class_accuracies(with_classes(dense, slim))
    assert found is not None
    assert len(classes_table(found).rows) == MOST_ROWS
    assert classes_left_out(found) == "900 more classes are left out: -0.90 pp or better."
    assert "The first 20 of 1000 are drawn." in classes_plot(found).key
    request.getfixturevalue("no_plots")
    report = make_report(with_classes(dense, slim), (), command=COMMAND)
    for text in (report_html(report), report_markdown(report)):
        assert "900 more classes" in text
        assert "class0999" in text
        assert "class0001" not in text


# --- the search ---


def test_search() -> None:
    search = search_of(PLAN)
    assert search is not None
    assert (search.cost, search.limit) == ("macs_ratio", 0.6)
    assert search.sentence == (
        "The search looked at 3 candidates and chose the threshold 0.2, which leaves 55.0 % of the "
        "multiply-adds, 27.5 % of the parameters and 80.0 % of the scores."
    )
    assert search_table(search).rows[1] == ("0.2 (chosen)", "55.0 %", "27.5 %", "80.0 %")
    plot = search_plot(search)
    assert "chosen" in texts(plot)
    assert "Dashed: the budget, 60 %." in plot.key
    assert plot.description.endswith(
        "On the front, multiply-adds, slim / dense goes from 30 % to 80 % and the kept scores from 50.0 % to "
        "95.0 %."
    )
    assert search_of({}) is None
    assert search_of(PLAN | {"search": []}) is None


def test_a_search_is_drawn_against_what_was_measured() -> None:
    timed = [
        probe(0.1, 0.8, 0.95, latency_ratio=0.9, low=0.85, high=0.95),
        probe(0.2, 0.55, 0.8, latency_ratio=0.6, low=0.55, high=0.65),
        probe(0.25, 0.5, 0.7, latency_ratio=0.7, low=0.65, high=0.75),  # slower, though smaller
        probe(0.3, 0.3, 0.5),
    ]
    search = search_of(PLAN | {"search": timed, "latency": {"limit": 0.65}})
    assert search is not None
    assert (search.cost, search.limit) == ("latency_ratio", 0.65)
    assert [one.threshold for _, one in search.front()] == [0.2, 0.1]
    assert search.sentence.endswith("80.0 % of the scores, at 60.0 % of the latency.")
    assert [row[-1] for row in search_table(search).rows] == ["90.0 %", "60.0 %", "70.0 %", "-"]
    assert search_plot(search).svg.count("var(--paper)") == 1  # the one off the front is hollow

    sized = [probe(0.2, 0.8, 0.95, size_bytes=2_000_000), probe(0.3, 0.5, 0.8, size_bytes=1_000_000)]
    search = search_of(PLAN | {"search": sized})
    assert search is not None
    assert search.cost == "size_bytes"
    assert search_table(search).rows[0][-1] == "2.00 MB"
    assert "from 1.00 MB to 2.00 MB" in search_plot(search).description
    search = search_of(PLAN | {"budgets": {"max_params_ratio": 0.3}})
    assert search is not None
    assert (search.cost, search.limit) == ("params_ratio", 0.3)
