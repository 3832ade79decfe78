"""The golden files show what a reader gets. After a change that is meant, write them anew and read the diff:

EDGEPRUNE_WRITE_GOLDEN=1 python -m pytest tests/test_report.py && git diff tests/golden
"""

import io
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from edgeprune.artifact import Artifact
from edgeprune.measurement import Measurement
from edgeprune.report import comparison_table, make_report, reasons, report_html, report_markdown
from edgeprune.report.content import Table
from edgeprune.target import Budget, Runtime
from edgeprune.verdict import gate
from tests.goldens import golden

COMMAND = "edgeprune run --model resnet20 --data digits --target local-cpu"
NASTY = 'a|b <script>alert("1")</script> & `c` *d* \\ [e](javascript:f) \x1b[31m\x00 \n g'


def samples(base_s: float, runs: int = 14) -> tuple[tuple[float, ...], ...]:
    """Ten processes whose runs lie up to 6 % above ``base_s``; every 97th run is disturbed."""
    spread = [[(37 * run + 11 * process) % 17 / 17 for run in range(runs)] for process in range(10)]
    disturbed = [[3.0 if (runs * p + r) % 97 == 96 else 1.0 for r in range(runs)] for p in range(10)]
    return tuple(
        tuple(
            base_s * slow * (1 + 0.01 * (process % 3) + 0.04 * noise)
            for slow, noise in zip(*rows, strict=True)
        )
        for process, rows in enumerate(zip(disturbed, spread, strict=True))
    )


def measure(name: str, base_s: float, **facts: object) -> Measurement:
    artifact = Artifact(
        path=Path(f"{name}.onnx"),
        sha256=name[0] * 64,
        size_bytes=1_103_221,
        input_shape=(1, 3, 32, 32),
        macs=40_813_184,
        params=269_722,
        parity_error=3.1e-7,
        accuracy={"val": 0.9791, "test": 0.975},
    )
    environment = {
        "onnxruntime": "1.31.1",
        "cpu": "Some CPU @ 3 GHz",
        "cores": 4,
        "memory_bytes": 24_000_000_000,
        "governor": None,
        "load_average": 0.123456789,
        "providers": ["CPUExecutionProvider", "AzureExecutionProvider"],
    }
    memory = {
        "load_peak_bytes": 5_800_000,
        "loaded_bytes": 2_900_000,
        "run_peak_bytes": 4_100_000,
        "peak_bytes": 5_800_000,
        "method": "high-water mark of the process",
        "why": None,
        "repeats": [5_800_000] * 3,
        "arena": {"peak_bytes": 1_200_000, "held_bytes": 2_000_000, "method": "a profile", "why": None},
        "device": {"peak_bytes": None, "method": None, "why": "there is no GPU"},
    }
    measurement = Measurement(
        target_name="this machine, CPU, 1 thread",
        target_sha256="7" * 64,
        runtime=asdict(Runtime()),
        artifact=artifact,
        environment=environment,
        placement={
            "source": "assignment",
            "nodes": {"CPUExecutionProvider": 61},
            "left_to_cpu": [],
            "inputs": [],
        },
        memory=memory,
        latency_samples_s=samples(base_s),
        load_s=(0.0151, 0.0148) * 5,
        first_inference_s=(0.002,) * 10,
    )
    of_artifact = {key: facts.pop(key) for key in list(facts) if key in Artifact.__dataclass_fields__}
    return replace(measurement, artifact=replace(artifact, **of_artifact), **facts)


DENSE = measure("dense", 2.41e-3)
SLIM_MEMORY = {"load_peak_bytes": 3_900_000, "loaded_bytes": 1_950_000, "run_peak_bytes": 2_700_000}
SLIM = measure(
    "slim",
    1.47e-3,
    size_bytes=671_310,
    macs=23_991_040,
    params=161_202,
    accuracy={"val": 0.9756, "test": 0.9722},
    memory=DENSE.memory | SLIM_MEMORY | {"peak_bytes": 3_900_000},
    notes=("slim: 1.6 % of the runs took over 2 times the median: end other work and measure again.",),
    baseline=DENSE,
)
PASSED = (
    Budget("max_latency_ratio", "latency_ratio", True, 0.95, "0.95"),
    Budget("max_size", "size", True, 2e6, "2 MB"),
    Budget("max_accuracy_drop", "accuracy_drop", True, 0.01, "1 pp"),
    Budget("max_parity_error", "parity_error", True, 1e-4, "0.0001"),
)
UNSURE = Budget("max_latency_p50", "latency_p50", True, 1.5165e-3, "1.5165 ms")
FAILED = Budget("max_latency_p95", "latency_p95", True, 1.2e-3, "1.2 ms")
UNMEASURED = Budget("min_instructions_ratio", "instructions_ratio", False, 0.6, "0.6")
SKIPPED = gate((PASSED[0], replace(UNMEASURED, optional=True)), SLIM)
ALL_STATES = gate((*PASSED, FAILED, UNSURE, UNMEASURED), SLIM)


def report_of(measurement=SLIM, verdicts=ALL_STATES, command=COMMAND, extra=None):
    return make_report(measurement, verdicts, command=command, extra=extra or {"scheme": "proximal-ns"})


def test_the_budgets_of_these_tests_are_in_all_states():
    assert [verdict.state for verdict in ALL_STATES[-3:]] == ["failed", "cannot tell", "unmeasured"]
    assert {verdict.state for verdict in ALL_STATES[:-3]} == {"passed"}


UNTIMED = {
    "latency_samples_s": (),
    "load_s": (),
    "first_inference_s": (),
    "instructions": {"count": 5_000, "method": "counter 1", "why": None, "repeats": [5_000, 4_999, 5_001]},
}


@pytest.mark.usefixtures("no_plots")
def test_a_report_of_what_was_counted_and_not_timed():
    dense = replace(DENSE, **UNTIMED | {"instructions": UNTIMED["instructions"] | {"count": 10_000}})
    slim = replace(SLIM, **UNTIMED, baseline=dense)
    report = report_of(slim, gate([UNMEASURED], slim))
    assert report.headline.startswith(
        "The slim network takes 5,000 instructions for an inference, 0.500 of what the dense one takes, is "
    )
    assert ("instructions", "10,000", "5,000", "0.500") in report.comparison.rows
    assert "Not measured: median latency, latency p95, load time. Nothing was timed." in report.notes
    assert "Instructions: counter 1; the median of processes." in report.method
    assert "Instructions, slim, by process: 5,000, 4,999, 5,001." in report.method
    assert not [line for line in report.method if "timed" in line or "interval" in line]
    for text in (report_markdown(report), report_html(report)):
        assert "5,001" in text
        assert "Every timed inference" not in text
    assert report.samples_s == {}
    alone = replace(slim, baseline=None)
    assert report_of(alone).headline.startswith("The network takes 5,000 instructions for an inference, has ")
    nothing = replace(alone, instructions=SLIM.instructions)
    assert report_of(nothing).headline.startswith("The network has ")


def test_markdown_golden():
    golden("report.md", report_markdown(report_of()))
    alone = replace(SLIM, baseline=None)
    verdicts = gate([Budget("max_size", "size", True, 2e6, "2 MB")], alone)
    golden("report_alone.md", report_markdown(report_of(alone, verdicts)))


def test_a_report_follows_its_figures():
    """The control of the golden files: another figure gives another text."""
    text = report_markdown(report_of())
    for changed in (
        replace(SLIM, artifact=replace(SLIM.artifact, size_bytes=700_000)),
        replace(SLIM, artifact=replace(SLIM.artifact, accuracy={"test": 0.9})),
        replace(SLIM, latency_samples_s=samples(1.9e-3)),
        replace(SLIM, notes=("another",)),
        replace(SLIM, placement=SLIM.placement | {"nodes": {"CPUExecutionProvider": 1}}),
    ):
        assert report_markdown(report_of(changed)) != text
    assert report_markdown(report_of(command="another")) != text
    assert report_markdown(report_of(verdicts=ALL_STATES[:3])) != text


@pytest.mark.parametrize(
    ("verdicts", "outcome"),
    [
        ((), "Nothing was gated: there are no budgets."),
        (ALL_STATES[:1], "Released: 1 of 1 budget passed."),
        (ALL_STATES[:4], "Released: 4 of 4 budgets passed."),
        (ALL_STATES[:5], "Not released: 1 of 5 budgets failed or could not be measured."),
        (ALL_STATES, "Not released: 2 of 7 budgets failed or could not be measured."),
        (SKIPPED, "Released: 1 of 2 budgets passed, 1 optional not measured."),
        ((*ALL_STATES[:4], ALL_STATES[5]), "Not released: 1 of 5 budgets cannot be told yet."),
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_the_outcome(verdicts, outcome):
    report = report_of(verdicts=verdicts)
    assert report.outcome == outcome
    assert outcome in report_markdown(report)
    assert outcome in report_html(report)


@pytest.mark.parametrize(
    ("base_s", "claim"),
    [
        (1.47e-3, "is 1.64 times as fast as the dense one (95 % interval 1.59 to 1.69), "),
        (
            2.40e-3,
            "takes 0.996 times as long as the dense one, which is no difference that can be told (95 % int",
        ),
        (4.82e-3, "is slower than the dense one, taking 2.00 times as long (95 % interval 1.94 to 2.06), "),
    ],
)
def test_the_headline_claims_a_speed_only_where_the_interval_does(base_s, claim):
    assert claim in report_of(replace(SLIM, latency_samples_s=samples(base_s))).headline


@pytest.mark.parametrize(
    ("accuracy", "claim"),
    [
        (
            {"test": 0.9722},
            "and classifies 97.22 % of the test images correctly, 0.28 pp less than the dense one.",
        ),
        (
            {"test": 0.98},
            "and classifies 98.00 % of the test images correctly, 0.50 pp more than the dense one.",
        ),
        ({"test": 0.975}, "and classifies 97.50 % of the test images correctly, as the dense one."),
        (
            {"val": 0.97},
            "and classifies 97.00 % of the validation images correctly, 0.91 pp less than the dense",
        ),
        ({}, "and is 39.1 % smaller (671 kB instead of 1.10 MB)."),
    ],
)
def test_the_headline_names_the_split_of_its_accuracy(accuracy, claim):
    measurement = replace(SLIM, artifact=replace(SLIM.artifact, accuracy=accuracy))
    assert claim in report_of(measurement).headline


def test_a_larger_file_is_called_larger():
    measurement = replace(SLIM, artifact=replace(SLIM.artifact, size_bytes=2_206_442))
    assert "is 100.0 % larger (2.21 MB instead of 1.10 MB)" in report_of(measurement).headline


def test_what_was_not_measured_is_said_and_why():
    few = replace(SLIM, latency_samples_s=tuple(p[:3] for p in SLIM.latency_samples_s), baseline=None)
    text = report_markdown(report_of(few, ()))
    assert "| latency p95 | not measured |" in text
    assert "- Not measured: latency p95. It takes 130 samples, and there are 30." in text
    assert "latency p99" not in text
    unknown = replace(SLIM, artifact=Artifact(Path("slim.onnx"), "s" * 64, 5), baseline=None)
    text = report_markdown(report_of(unknown, ()))
    assert "| test accuracy | not measured |" in text
    assert "No sidecar tells the accuracy of slim.onnx" in text
    assert "Dense against slim" not in text
    no_memory = dict.fromkeys(SLIM.memory) | {"why": "this system does not tell", "repeats": []}
    no_memory |= dict.fromkeys(("arena", "device"), SLIM.memory["device"])
    text = report_markdown(report_of(replace(SLIM, memory=no_memory, baseline=None), ()))
    assert "| peak memory | not measured |" in text
    assert "this system does not tell" in text
    assert "Memory:" not in text


def test_nodes_left_to_the_cpu_are_named():
    left = [{"name": "conv1", "op_type": "Conv"}, {"name": "", "op_type": "Add"}]
    placement = {"source": "profile", "nodes": {"XnnpackExecutionProvider": 9}, "left_to_cpu": left}
    text = report_markdown(report_of(replace(SLIM, placement=placement)))
    assert "- Nodes left to the CPU: conv1 (Conv), ? (Add)." in text
    assert "XnnpackExecutionProvider 9, from a profile" in text


# --- what users wrote cannot break a report ---


def nasty_report():
    measurement = replace(
        SLIM,
        target_name=NASTY,
        notes=(NASTY,),
        environment={NASTY: NASTY, "list": [NASTY]},
        artifact=replace(SLIM.artifact, path=Path(NASTY.replace("/", "")), accuracy={}),
    )
    verdicts = gate([*PASSED, Budget("max_accuracy", "accuracy", True, 0.9, "90 %")], measurement)
    return measurement, verdicts, report_of(measurement, verdicts, NASTY + "\n```\n", {NASTY: NASTY})


def test_markdown_keeps_its_tables_whole():
    _, _, report = nasty_report()
    text = report_markdown(report)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    assert "<script" not in text.replace(NASTY.split("\n")[0].replace("\x1b", " ").replace("\x00", " "), "")
    assert "](javascript" not in text.split("````")[0]
    assert not set(text) & {"\x1b", "\x00"}
    assert text.count("````\n") == 2  # a fence longer than the one inside


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_loads_nothing():
    _, _, report = nasty_report()
    for text in (report_html(report), report_html(report_of())):
        page = Page(text)
        names = {tag for tag, _ in page.tags}
        assert {"html", "table", "svg", "path", "style"} <= names
        assert not names & {"script", "link", "img", "iframe", "object", "a", "image", "foreignObject"}
        attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
        assert not [name for name, _ in attributes if name == "src" or name.startswith("on")]
        assert all(value.startswith("#") for name, value in attributes if name.endswith("href"))
        assert not re.search(r"url\([^#]|@import|https?:", text)
        ids = [value for name, value in attributes if name == "id"]
        assert len(ids) == len(set(ids))
        assert "default-src 'none'" in text
        assert not set(text) & {"\x1b", "\x00"}
    assert '<script>alert("1")' in Page(report_html(report)).text  # shown, not run


def test_the_guard_on_pages_sees_a_fault():
    text = report_html(report_of())
    with pytest.raises(AssertionError):
        Page(text.replace("</figure>", "", 1))


@pytest.mark.usefixtures("no_plots")
def test_the_page_says_the_same_as_the_markdown():
    report = report_of()
    text, shown = report_markdown(report), Page(report_html(report)).text
    for said in (
        report.title,
        report.outcome,
        report.headline,
        *report.notes,
        *report.method,
        *reasons(ALL_STATES),
    ):
        assert said in text
        assert said in shown
    for row in (*report.comparison.rows, *report.environment.rows, *report.run.rows):
        assert f"| {' | '.join(row)} |" in text
        for cell in row:
            assert cell in shown
    assert COMMAND in text
    assert COMMAND in shown


@pytest.mark.parametrize(("first", "gap"), [("first inference", 1), ("first", 2)])
def test_dense_against_slim_fits_80_columns_without_folding(first, gap):
    long = "4.63 ms [1.79, 12.0]"
    header = ("", "dense", "slim", "slim / dense")
    rows = ((first, long, long, "0.784 [0.693, 0.886]"), ("parameters"[: len(first)], "1", "2", "0.500"))
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(replace(report_of(), comparison=Table(header, rows))))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert len(lines) == 4  # header, rule, and a line for each row
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith(f"{first}{' ' * gap}{long}")
