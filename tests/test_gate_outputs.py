"""What the gate writes: the table, JUnit XML, JSON by its schema, Markdown and annotations for GitHub.

EDGEPRUNE_WRITE_GOLDEN=1 python -m pytest tests/test_gate_outputs.py renews the golden files.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jsonschema
import junitparser
import pytest
from rich.console import Console

from edgeprune.budget import BUDGET_KEYS, Budget
from edgeprune.files import write_json
from edgeprune.metrics import GATED, Estimate
from edgeprune.outcome import Outcome, outcomes_to_json, worst
from edgeprune.report import (
    github_annotations,
    pull_request_markdown,
    reason_lines,
    reasons,
    verdict_table,
)
from edgeprune.report.content import verdict_rows
from edgeprune.verdict import State, Verdict, format_measured, gate, verdicts_from_json, verdicts_to_json
from tests.conftest import edgeprune, run
from tests.gating import NOTHING, SLIM, golden_lines
from tests.goldens import GOLDEN
from tests.test_layers import loaded_after

NASTY = 'a|b <script>alert("1")</script> & `c` *d* \\ [e](javascript:f) \x1b[31m\x00 \n g'


def budget(key: str, limit: float, text: str, optional: bool = False) -> Budget:
    return Budget(key, key[4:], key.startswith("max"), limit, text, optional)


RATIO = SLIM.value("latency_ratio")
assert isinstance(RATIO, Estimate)
ALL_STATES = (
    *gate(
        [
            budget("max_latency_ratio", 0.95, "0.95"),
            budget("max_size", 2e6, "2 MB"),
            budget("max_latency_p95", 1.2e-3, "1.2 ms"),
            budget("max_latency_p50", 1.236e-3, "1.236 ms"),
            budget("max_size_vs_release", 1.0, "1.0"),
        ],
        SLIM,
    ),
    *gate([budget("max_peak_memory", 8e7, "80 MB", optional=True)], NOTHING),
)
PI = Outcome("pi", "Raspberry Pi 5", ALL_STATES, "slim.onnx")
PHONE = Outcome("phone", "a phone, 4 threads", ALL_STATES[:2], "slim.int8.onnx")
AWAY = Outcome("away", "a board that is off", error="could not reach the board: pi: 100 % lost,\nno answer.")
BARE = Outcome("bare", "no budgets")
ALL = (PI, PHONE, AWAY, BARE)


def test_these_verdicts_are_in_all_states() -> None:
    assert [verdict.state for verdict in ALL_STATES] == [
        "passed", "passed", "failed", "cannot tell", "unmeasured", "skipped"
    ]  # fmt: skip
    assert set(get_args(State)) == {verdict.state for verdict in ALL_STATES}


# --- outcomes ---


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([PHONE], 0),
        ([BARE], 0),
        ([PHONE, AWAY], 3),
        ([AWAY, PI, PHONE], 1),
        ([Outcome("x", "x", ALL_STATES[3:4]), PHONE], 3),
        ([Outcome("x", "x", ALL_STATES[5:])], 0),
    ],
)
def test_the_worst_of_several_targets_decides(outcomes: list[Outcome], code: int) -> None:
    assert worst(outcomes) == code


def test_sentences() -> None:
    assert [outcome.sentence for outcome in ALL] == [
        "failed: 1 of 6 budgets missed, 1 not measured",
        "passed: all budgets are met",
        "not measured: nothing is decided",
        "nothing was gated: the target has no budgets",
    ]
    assert Outcome("x", "x", ALL_STATES[3:4]).sentence == "cannot tell: 1 of 1 budget undecided"
    assert Outcome("x", "x", ALL_STATES[4:5]).sentence == "failed: 1 of 1 budget not measured"
    assert Outcome("x", "x", ALL_STATES[1::4]).sentence == "passed: 1 of 2 budgets met, 1 optional skipped"


# --- the table ---


def show(verdicts: tuple[Verdict, ...], width: int = 80, *, reasons: bool = True) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True)
    console.print(verdict_table(verdicts), *(reason_lines(verdicts) if reasons else ()), sep="\n")
    return out.getvalue().splitlines()


def test_the_table_fits_and_needs_no_colour() -> None:
    lines = show(ALL_STATES)
    assert max(map(len, lines)) <= 80
    for verdict, line in zip(ALL_STATES, lines[2:], strict=False):
        assert line.startswith(verdict.budget.key)
        assert line.rstrip().endswith(verdict.state)
        assert verdict.measured_text in line
        assert verdict.budget.text in line
    text = " ".join(" ".join(lines).split())
    for reason in reasons(ALL_STATES):
        assert reason in text
    assert "passed" not in show(ALL_STATES[2:3])[2]


LONG = {
    "time": (Estimate(0.1234, 0.1134, 0.1334), "0.123456 ms"),
    "rate": (Estimate(98765, 87654, 99999), "98765 /s"),
    "size": (123_456_789.0, "123.456789 MB"), "count": (123_456_789_012.0, "123456789012"),
    "fraction": (1.0, "99.999 %"), "drop": (-1.0, "-99.999 pp"),
    "ratio": (Estimate(12.34, 11.34, 13.34), "12.34567"), "error": (1.2345e-7, "1.234567e-07"),
}  # fmt: skip


@pytest.mark.parametrize("key", BUDGET_KEYS)
def test_every_key_at_its_longest_fits(key: str) -> None:
    found, text = LONG[GATED[key[4:]].quantity]
    value = found.value if isinstance(found, Estimate) else found
    judged = tuple(
        Verdict(budget(key, value / 3, text), measured, state, value / 3 * 2, "why")
        for state, measured in (("cannot tell", found), ("unmeasured", None))
    )  # fmt: skip
    lines = show(judged, reasons=False)
    assert max(map(len, lines)) <= 80, "\n".join(lines)
    edge = lines[0].index("measured")
    assert "".join(line[:edge].strip() for line in lines[2:]) == 2 * key
    rest = "".join("".join(line[edge:].split()) for line in lines[2:])
    for piece in (*text.split(), *format_measured(found, GATED[key[4:]].quantity).split(), "unmeasured"):
        assert piece in rest, "\n".join(lines)


def test_without_the_folding_it_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the test above looks at is too wide as it is."""
    found, text = LONG["time"]
    verdict = Verdict(budget("max_first_inference_vs_release", 0.1, text), found, "cannot tell", 0.1, "why")
    assert len(" ".join(verdict_rows([verdict]).rows[0])) > 80
    monkeypatch.setattr("edgeprune.report.terminal._fitting", lambda _, rows, __: rows)
    row = show((verdict,), width=200)[2]
    assert len(row.rstrip()) > 80


def test_the_table_obeys_nobody() -> None:
    text = "\n".join(show(gate([budget("max_accuracy", 0.9, "[red]90 %[/red]")], SLIM)))
    assert "[red]90 %[/red]" in text
    assert "\x1b" not in text


# --- JSON ---

SCHEMA = json.loads(files("edgeprune").joinpath("schemas", "verdicts.schema.json").read_text("utf-8"))


def valid(value: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(value, allow_nan=False)))


def test_the_schema_is_one_and_knows_what_the_code_knows() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    parts = SCHEMA["$defs"]
    assert parts["metric"]["enum"] == list(GATED)
    assert set(parts["verdict"]["properties"]["state"]["enum"]) == set(get_args(State))
    assert set(parts["verdict"]["properties"]) == {"target", *Verdict.__dataclass_fields__}
    assert set(parts["budget"]["required"]) == set(Budget.__dataclass_fields__)
    assert set(parts["estimate"]["required"]) == set(Estimate.__dataclass_fields__)


def test_json_validates() -> None:
    for outcomes in (ALL, (PI,), (BARE,), (AWAY,), ()):
        valid(outcomes_to_json(outcomes))
    valid(verdicts_to_json(ALL_STATES))
    open_end = replace(ALL_STATES[0], measured=replace(RATIO, high=float("inf")), state="cannot tell")
    valid(verdicts_to_json((open_end,)))
    valid({"error": "could not measure.", "exit_code": 3})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.pop("format"),
        lambda value: value.update(format=1),
        lambda value: value.update(exit_code=2),
        lambda value: value.update(error="and yet"),
        lambda value: value["verdicts"][0].update(state="fine"),
        lambda value: value["verdicts"][0].update(measured="0.5"),
        lambda value: value["verdicts"][0]["measured"].pop("low"),
        lambda value: value["verdicts"][0]["budget"].update(metric="beauty"),
        lambda value: value["verdicts"][0]["budget"].pop("optional"),
        lambda value: value["verdicts"][0]["budget"].update(key="latency"),
        lambda value: value["targets"][0].pop("error"),
    ],
)
def test_json_of_something_else_does_not_validate(spoil: Callable[[Any], object]) -> None:
    value = copy.deepcopy(outcomes_to_json(ALL))
    valid(value)
    spoil(value)
    with pytest.raises(jsonschema.ValidationError):
        valid(value)


def test_json_of_one_target_is_read_back() -> None:
    assert verdicts_from_json(json.loads(json.dumps(outcomes_to_json([PI])))) == ALL_STATES
    skipped = outcomes_to_json([PI])["verdicts"][5]
    assert skipped["state"] == "skipped"
    skipped["budget"]["optional"] = False
    with pytest.raises(Exception, match="does not follow from its figures"):
        verdicts_from_json({"format": 2, "exit_code": 0, "verdicts": [skipped]})


# --- GitHub ---


def test_markdown_golden() -> None:
    golden_lines("pull_request.md", pull_request_markdown(ALL).splitlines())


def test_markdown_obeys_nobody() -> None:
    text = pull_request_markdown([Outcome("x", NASTY, (replace(ALL_STATES[2], text=NASTY),), NASTY)])
    assert "<script>" not in text
    assert "](javascript" not in text
    assert "\x1b" not in text


def test_annotations() -> None:
    lines = github_annotations(ALL)
    assert [line.split(" ")[0] for line in lines] == [
        "::error",
        "::warning",
        "::error",
        "::notice",
        "::error",
    ]
    assert lines[0].startswith(
        "::error title=edgeprune%3A Raspberry Pi 5%3A max_latency_p95::failed: missed by "
    )
    assert lines[-1] == (
        "::error title=edgeprune%3A a board that is off::"
        "could not reach the board: pi: 100 %25 lost, no answer."
    )
    assert github_annotations([PHONE]) == ()
    (line,) = github_annotations([Outcome("x", "a,b:c\r\n::error::d", (ALL_STATES[2],))])
    assert line.startswith("::error title=edgeprune%3A a%2Cb%3Ac  %3A%3Aerror%3A%3Ad%3A max_latency_p95::")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    write_json(tmp_path / "m.json", SLIM.to_json())
    (tmp_path / "t.toml").write_text('name = "t"\n[budgets]\nmax_size = "1 kB"\nmax_macs_ratio = 0.9\n')
    return tmp_path


def words(place: Path) -> list[str]:
    return ["gate", str(place / "m.json"), "--target", str(place / "t.toml")]


def test_github_is_told_and_stdout_stays_json(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = place / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert run(capsys, *words(place))[2] == ""
    assert not summary.exists()  # elsewhere the variable means nothing
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for _ in range(2):
        code, out, err = run(capsys, *words(place), "--json")
        assert code == json.loads(out)["exit_code"] == 1
        assert err.startswith("::error title=edgeprune%3A t%3A max_size::failed: missed by 551 kB")
        assert len(err.splitlines()) == 1
    assert summary.read_text().count("## edgeprune gate: failed") == 2
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert "::error" in run(capsys, *words(place))[2]


def test_files_for_ci(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run(
        capsys, *words(place), "--junit", str(place / "j.xml"), "--markdown", str(place / "p.md")
    )
    assert code == 1
    assert junitparser.JUnitXml.fromfile(str(place / "j.xml")).failures == 1
    assert "| max_size | 552 kB |" in (place / "p.md").read_text()


def test_a_narrow_terminal_tears_no_figure_apart(place: Path) -> None:
    out = edgeprune(*words(place), cwd=place, COLUMNS="20").stdout
    row = next(line.split() for line in out.splitlines() if line.startswith("max_size"))
    assert row == ["max_size", "552", "kB", "≤", "1", "kB", "-551", "kB", "failed"]
    (place / "t.toml").write_text('name = "t"\n[budgets]\nmax_size = "1 GB"\n')
    assert edgeprune(*words(place), cwd=place).stdout.splitlines()[-2:] == ["", "passed: all budgets are met"]


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_file_that_cannot_be_written_hides_no_verdict(
    option: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "m.json" / "j.xml"
    code, out, err = run(capsys, *words(place), option, str(path))
    assert code == 2
    assert "failed: 1 of 2 budgets missed" in out
    assert f"could not write the verdicts: {option} is {path} (" in err
    code, out, _ = run(capsys, *words(place), option, str(place), "--json")
    assert json.loads(out)["exit_code"] == code == 2
    assert f"{option} is {place} (Is a directory), expected a file" in json.loads(out)["error"]


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "nowhere" / "x"))
    code, out, err = run(capsys, *words(place), "--json")
    assert code == json.loads(out)["exit_code"] == 1
    assert f"could not write the summary of the step: GITHUB_STEP_SUMMARY is {place}/nowhere/x (No" in err


@pytest.mark.parametrize("option", ["m.json", "--against"])
def test_json_that_is_nested_too_deeply_is_bad_input(
    option: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "deep.json").write_text("[" * 100_000)
    given = [word if word != str(place / option) else str(place / "deep.json") for word in words(place)]
    given += ["--against", str(place / "deep.json")] if option.startswith("--") else []
    code, out, _ = run(capsys, *given, "--json")
    assert json.loads(out)["exit_code"] == code == 2
    assert "deep.json is not JSON (nested too deeply)" in json.loads(out)["error"]


def test_the_schema_is_printed_and_fits_what_is_printed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "gate", "--json-schema")
    assert code == 0
    assert json.loads(out) == SCHEMA
    for more in ([], ["--against", "nowhere.json"]):
        _, out, _ = run(capsys, *words(place), *more, "--json")
        valid(json.loads(out))
    assert set(json.loads(out)) == {"error", "exit_code"}


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}, {"GITHUB_ACTIONS": "true"}])
def test_a_real_process_on_a_pipe_is_readable_and_keeps_the_codes_apart(
    place: Path, environment: dict[str, str]
) -> None:
    done = edgeprune(*words(place), cwd=place, **environment)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "missed by 551 kB" in done.stdout
    assert ("::error" in done.stderr) == bool(environment.get("GITHUB_ACTIONS"))
    if not environment:
        (place / "t.toml").write_text('name = "t"\n[budgets]\nmax_size = "1 GB"\n')
        assert edgeprune(*words(place), cwd=place).returncode == 0
        (place / "t.toml").write_text('name = "t"\n[runtime]\nthreads = 2\n')
        assert edgeprune(*words(place), cwd=place).returncode == 3
        (place / "t.toml").write_text("name = 1")
        assert edgeprune(*words(place), cwd=place).returncode == 2


def test_the_golden_files_are_all_looked_at() -> None:
    assert {path.name for path in GOLDEN.glob("gate_*")} == {
        "gate_passed.txt", "gate_failed.txt", "gate_unmeasured.txt", "gate_wrong_unit.txt", "gate_unknown.txt"
    }  # fmt: skip


def test_the_gate_needs_nothing_of_the_host_side(place: Path) -> None:
    (place / "u.toml").write_text('name = "u"\n[budgets]\nmax_size = "1 GB"\n')
    given = [*words(place), "--target", str(place / "u.toml"), "--markdown", str(place / "p.md")]
    code, out, heavy = loaded_after(f"from edgeprune.cli import main; main({given!r})")
    assert (code, heavy) == (1, set())
    assert "passed: all budgets are met" in out
