"""How the report shows what a scheme found about the classes; see test_report.py on golden files."""

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest

from edgeprune.files import write_json
from edgeprune.lasso import build_edges, build_tree
from edgeprune.pipeline.device import write_reports
from edgeprune.report import class_structure, report_html, report_markdown
from edgeprune.report.classes import shorten
from edgeprune.report.drawing import MOST_CLASSES, depth_plots, structure_plots
from edgeprune.verdict import verdicts_to_json
from tests.goldens import golden
from tests.test_report import ALL_STATES, NASTY, SLIM, Page, make_report

NAMES = ["cat", "ship", "dog", "truck", '<frog> & "toad" | that has a long name']


def layer_facts(related: np.ndarray, kind: str) -> dict[str, object]:
    """As `SGLPIB` and `STLPIB` keep them of a layer."""
    facts: dict[str, object] = {"certificate": 1e-7, "relatedness": related.tolist()}
    edges = build_edges(related)
    if kind == "graph":
        facts["edges"] = [[*pair, weight] for pair, weight in zip(edges.pairs, edges.weights, strict=True)]
    return {**facts, "linkage": build_tree(related).linkage.round(6).tolist()}


def matrix(count: int, seed: int) -> np.ndarray:
    """Cosines; the second class is like the fourth, the first like the third."""
    means = np.random.default_rng(seed).standard_normal((count, 12))
    if count > 3:
        means[2], means[3] = means[0] + 0.5 * means[2], means[1] + 0.6 * means[3]
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.round(means @ means.T, 4)


def facts_of(kind: str, names: list[str] = NAMES, layers: int = 3) -> dict[str, object]:
    """As they stand in run.json."""
    facts = {
        "classes": names,
        "images_per_class": 40,
        "joined_classes": {"cat and 1 more": ["cat", NASTY]},
        "layers": {f"layer{n}": layer_facts(matrix(len(names), n), kind) for n in range(layers)},
    }
    return json.loads(json.dumps(facts))


def report_of(facts):
    return make_report(SLIM, (), command="edgeprune run", classes=class_structure(facts))


@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_golden(kind):
    text = report_markdown(report_of(facts_of(kind)))
    section = text[text.index("## How layer2") :]
    golden(f"classes_{kind}.md", section[: section.index("\n## ", 3) + 1])


def test_the_last_layer_is_shown_and_some_before_it():
    structure = class_structure(facts_of("tree", layers=20))
    assert structure.layer == "layer19"
    assert list(structure.before) == ["layer0", "layer4", "layer7", "layer11", "layer14", "layer18"]
    assert list(class_structure(facts_of("tree", layers=3)).before) == ["layer0", "layer1"]
    assert class_structure(facts_of("tree", layers=1)).before == {}
    assert "Layers before" not in report_html(report_of(facts_of("tree", layers=1)))


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"certificate": 1e-7, "images": 100, "layers": {"conv": {"units": 3, "certificate": 1e-7}}},
        {"classes": NAMES},
        {"classes": ["one"], "layers": {"conv": {"relatedness": [[1.0]], "linkage": []}}},
    ],
)
def test_a_scheme_without_class_structure_has_no_such_section(facts):
    assert class_structure(facts) is None
    assert "relates the classes" not in report_markdown(report_of(facts))
    html = report_html(report_of(facts))
    assert "relates the classes" not in html
    assert "depths" not in html
    assert "relates the classes" in report_html(report_of(facts_of("tree")))  # the control


def drawings(facts) -> list[ET.Element]:
    """The drawings of the section; they are well-formed XML."""
    structure = class_structure(facts)
    return [ET.fromstring(plot.svg) for plot in (*structure_plots(structure), *depth_plots(structure))]


def texts(svg: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in svg.iter("text")]


def paths(svg: ET.Element, shade: str) -> list[ET.Element]:
    """Paths that are drawn or filled in a colour."""
    return [path for path in svg.iter("path") if f"var(--{shade})" in path.get("style", "")]


@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_every_pair_of_classes_is_a_cell_with_its_number(kind):
    facts = facts_of(kind)
    heat, _, *depths = drawings(facts)
    related = np.array(facts["layers"]["layer2"]["relatedness"])
    order = class_structure(facts).order
    assert sorted(order) == list(range(5))
    shown = [float(text) for text in texts(heat) if re.fullmatch(r"-?\d\.\d\d", text)]
    wanted = [related[order[row], order[column]] for row in range(5) for column in range(row)]
    assert np.allclose(shown, wanted, atol=0.0051)
    assert "-0.00" not in texts(heat)
    of_scale = 21
    for svg, more in ((heat, of_scale), *((depth, 0) for depth in depths)):
        filled = [path for shade in ("alike", "unlike", "panel") for path in paths(svg, shade)]
        assert sum(path.get("d").count("z") for path in filled) == 10 + more
        strengths = {re.sub(r"[^:]*fill: [^;]*;? ?", "", path.get("style")) for path in filled}
        assert len(strengths) > 3


def test_the_description_says_what_is_drawn():
    structure = class_structure(facts_of("graph"))
    heat, graph = structure_plots(structure)
    assert (heat.description, graph.description) == structure.lines[:2]
    values = [v for n, row in enumerate(structure.before["layer0"]) for v in row[:n]]
    depth = depth_plots(structure)[0]
    assert depth.description.endswith(f"layer0: from {min(values):z.2f} to {max(values):z.2f}.")


def test_the_tree_is_that_of_the_linkage():
    facts = facts_of("tree")
    _, tree, *_ = drawings(facts)
    links = np.array(facts["layers"]["layer2"]["linkage"])
    numbers = [[float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))] for path in paths(tree, "slim")]
    joints = [found[2] for found in numbers if len(found) == 8]
    assert len(joints) == 4
    x0, x1 = 104, 344  # of height 0 and of the root
    assert np.allclose(joints, x0 + links[:, 2] / links[-1, 2] * (x1 - x0), atol=0.06)


def test_the_graph_has_an_arc_and_a_frame_for_each_edge():
    facts = facts_of("graph")
    heat, graph, *_ = drawings(facts)
    edges = facts["layers"]["layer2"]["edges"]
    widths = sorted(
        float(re.search(r"stroke-width: ([\d.]+)", path.get("style"))[1]) for path in paths(graph, "slim")
    )
    assert widths == sorted(round(0.75 + 5 * edge[2], 1) for edge in edges)
    assert len(paths(heat, "ink")) == len(edges) > 0


def test_classes_that_no_edge_ties_are_named():
    facts = facts_of("graph")
    facts["layers"]["layer2"]["edges"] = [[0, 2, 0.5]]
    assert "ties 1 pair of classes; ship, truck, " in class_structure(facts).lines[1]
    facts["layers"]["layer2"]["edges"] = []
    assert len(drawings(facts)) == 4


def test_classes_that_cannot_be_told_apart():
    related = np.ones((3, 3))
    facts = {"classes": ["a", "b", "c"], "layers": {"fc": layer_facts(related, "tree")}}
    assert not any("nan" in path.get("d") for svg in drawings(facts) for path in svg.iter("path"))
    assert "(1.00)" in class_structure(facts).lines[1]


@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_names_are_escaped_and_cut_off_visibly(kind):
    facts = facts_of(kind, [NASTY, *NAMES[1:]])
    html = report_html(report_of(facts))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<frog" not in html
    assert not set(html) & {"\x1b", "\x00"}
    assert not [name for _, attrs in page.tags for name in attrs if name == "src" or name.startswith("on")]
    assert "…" in page.text
    for svg in drawings(facts)[:2]:
        assert len([text for text in texts(svg) if text == '<frog> & "toa…']) == 1
    table_free = report_markdown(report_of(facts)).split("## How layer2")[1]
    assert "<" not in table_free.replace("&lt;", "")
    assert class_structure(facts).lines[-1].startswith("Joined as cat and 1 more: cat, a|b <script>")


@pytest.mark.parametrize(
    ("name", "short"),
    [("ship", "ship"), ("a" * 24, "a" * 24), ("a" * 25, "a" * 23 + "…"), ("a\nb\x00", "a b"), ("\x1b", "?")],
)
def test_shorten(name, short):
    assert shorten(name) == short


def test_many_classes_stay_readable_and_small():
    names = [f"class number {n}" for n in range(MOST_CLASSES)]
    html = report_html(report_of(facts_of("tree", names, layers=9)))
    assert 30_000 < len(html) < 500_000
    heat, tree, *_ = drawings(facts_of("tree", names))
    assert texts(heat) == ["-1", "0", "1"]
    assert len(texts(tree)) > MOST_CLASSES
    html = report_html(report_of(facts_of("tree", [*names, "one more"])))
    assert "More than 40 classes are not drawn." in html
    assert "Most related: " in html


@pytest.mark.usefixtures("no_plots")
def test_a_run_reports_what_its_scheme_has_found(tmp_path):
    write_json(tmp_path / "measurement.json", SLIM.to_json())
    write_json(tmp_path / "verdicts.json", verdicts_to_json(ALL_STATES))
    facts = facts_of("graph") | {"certificate": 2.5e-7, "tolerance": 1e-6, "stopped_short": {}}
    score = {
        "scheme": "sglp-ib", "options": {"images": 200}, "zero_units": 0, "scored_units": 16, "frozen": {},
        "scheme_facts": facts, "val_accuracy": 0.9, "test_accuracy": 0.9,
    }  # fmt: skip
    settings = SimpleNamespace(
        model="resnet20", data="digits", recipe="quick", command=lambda folder: f"run {folder}"
    )
    run = SimpleNamespace(
        path=tmp_path, settings=settings, stages={}, file=lambda name: tmp_path / name,
        facts=lambda stage: score if stage == "score" else {},
    )  # fmt: skip

    def reports() -> tuple[str, str]:
        write_reports(SimpleNamespace(run=run))
        return (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()

    text, page = reports()
    assert "## How layer2 relates the classes" in text
    assert "Class graph of layer2" in page
    gap = "| sglp-ib: largest duality gap of a solution, as a share of the objective at 0 | 2.5e-07 |"
    assert gap in text
    assert "| sglp-ib: images per class | 40 |" in text
    assert "not solved so far" not in text
    assert reports() == (text, page)  # equal runs, equal bytes

    facts["stopped_short"] = {"layer1": 4e-5}
    assert "| sglp-ib: not solved so far | layer1 (4.0e-05) |" in reports()[0]
    score["scheme_facts"] = {}
    text, page = reports()
    assert "relates the classes" not in text + page
