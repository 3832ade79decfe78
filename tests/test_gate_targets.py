"""Several targets in one gate: of measurements in files, and of a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import junitparser
import pytest

from edgeprune.artifact import Artifact
from edgeprune.errors import MeasurementError, UsageError
from edgeprune.files import sha256_file, write_json
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.pipeline import Settings
from edgeprune.pipeline.folder import RunFolder, new_run, open_run
from edgeprune.pipeline.gating import gate_files, named_targets
from edgeprune.record import record_of
from edgeprune.release import Entry, Release
from edgeprune.target import Target, load_target
from tests.conftest import run
from tests.gating import BEFORE, SLIM
from tests.test_cli import network

Capsys = pytest.CaptureFixture[str]


def write_target(folder: Path, name: str, threads: int, budgets: str = "max_size_ratio = 0.9") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'name = "the {name}"\n[runtime]\nthreads = {threads}\n[budgets]\n{budgets}\n')
    return path


def on(target: Target, measurement: Measurement = SLIM) -> Measurement:
    """A measurement as a target asks for it."""
    facts = {"target_name": target.name, "target_sha256": target.sha256, "runtime": asdict(target.runtime)}
    dense = replace(measurement.baseline, **facts)  # type: ignore[type-var]
    return replace(measurement, baseline=dense, **facts)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Targets one (1 thread), two (2 threads) and strict (1 thread, missed), and their measurements."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    for name, threads in (("one", 1), ("two", 2)):
        path = write_target(tmp_path, name, threads)
        write_json(tmp_path / f"m{threads}.json", on(load_target(path)).to_json())
    write_target(tmp_path, "strict", 1, 'max_size = "1 kB"')
    return tmp_path


def targets(*names: str) -> list[str]:
    return [word for name in names for word in ("--target", f"{name}.toml")]


# --- files ---


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("files", "names", "codes"),
    [
        (["m1.json"], ["one"], [0]),
        (["m1.json", "m2.json"], ["one", "two"], [0, 0]),
        (["m2.json", "m1.json"], ["one", "two"], [0, 0]),
        (["m1.json"], ["one", "strict"], [0, 1]),  # two targets may run networks in the same way
        (["m1.json", "m2.json"], ["strict", "one", "two"], [1, 0, 0]),
        (["m1.json"], ["one", "two"], [0, 3]),
        (["m1.json"], ["two", "strict"], [3, 1]),
    ],
)
def test_each_target_takes_the_measurement_of_its_runtime(
    capsys: Capsys, files: list[str], names: list[str], codes: list[int]
) -> None:
    code, out, err = run(capsys, "gate", *files, *targets(*names), "--json", "--junit", "j.xml")
    found = json.loads(out)
    assert err == ""
    assert [row["exit_code"] for row in found["targets"]] == codes
    assert [row["target"] for row in found["targets"]] == names
    assert [bool(row["error"]) for row in found["targets"]] == [one == 3 for one in codes]
    assert [row["target"] for row in found["verdicts"]] == [
        n for n, c in zip(names, codes, strict=True) if c != 3
    ]
    assert code == found["exit_code"] == (1 if 1 in codes else max(codes))
    assert [suite.name for suite in junitparser.JUnitXml.fromfile("j.xml")] == [
        f"the {name}" for name in names
    ]
    again, text, _ = run(capsys, "gate", *files, *targets(*names))
    assert again == code
    if len(names) > 1:
        heads = [text.index(f"the {name} ({name})") for name in names]
        assert heads == sorted(heads)
    assert ("runtime.threads is 1, expected 2" in " ".join(text.split())) == (3 in codes)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["m1.json", "m2.json", *targets("one")],
            "could not gate every measurement: the measurement on the two",
        ),
        (
            ["m1.json", "m1.json", *targets("one")],
            "could not choose a measurement: the target one.toml is what 2",
        ),
        (["m1.json", *targets("one", "one")], "could not gate on several targets: --target is one twice"),
        (["m1.json", ".", *targets("one")], "could not gate: MEASUREMENT is the folder ."),
        (["m1.json", "none.json"], "none.json"),
        (["m1.json", *targets("one", "none")], "none.toml is not there"),
        ([".", *targets("one")], "could not open the run"),
    ],
)
def test_what_cannot_be_gated_together(capsys: Capsys, words: list[str], fault: str) -> None:
    code, out, err = run(capsys, "gate", *words)
    assert (code, out) == (2, ""), out
    assert fault in err


def test_one_target_that_none_of_several_files_is_for(place: Path, capsys: Capsys) -> None:
    write_target(place, "four", 4)
    found = [load_measurement(name) for name in ("m1.json", "m2.json")]
    code, out, err = run(capsys, "gate", "m1.json", "m2.json", *targets("four"))
    assert (code, out) == (3, "")
    assert "could not hold a measurement against the target: four.toml is what none of the 2" in err
    outcomes = gate_files(found, [load_target(f"./{name}.toml") for name in ("one", "four")], None)
    assert [outcome.exit_code for outcome in outcomes] == [0, 3]
    one, two, four = (load_target(f"./{name}.toml") for name in ("one", "two", "four"))
    outcomes = gate_files(found, [one, two, four], None)
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 3]
    assert "what none of the 2 measurements was made for" in outcomes[2].error


def test_of_two_of_the_same_runtime_the_target_s_own_is_taken(place: Path) -> None:
    target = load_target("./one.toml")
    other = replace(on(target), target_sha256="0" * 64)
    with pytest.raises(UsageError, match="could not gate every measurement: the measurement on the one"):
        gate_files([other, on(target)], [target], None)
    with pytest.raises(UsageError, match="could not choose a measurement"):
        gate_files([other, other], [target], None)
    assert [outcome.exit_code for outcome in gate_files([on(target)], [target], None)] == [0]
    assert place


def test_short_names(place: Path) -> None:
    write_target(place, "a b.c", 1)
    assert list(named_targets([load_target("./one.toml"), load_target("./a b.c.toml")])) == ["one", "a-b-c"]


# --- a run folder ---


class Bench:
    """A bench that measures nothing, notes for which targets it was asked, and cannot reach one of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: set[str] = set()

    def __call__(self, artifact: Artifact, target: Target, *, baseline: Artifact, **_: Any) -> Measurement:
        self.asked.append(target.name)
        if target.name in self.away:
            raise MeasurementError("could not reach the board", where="host", value="away", expected="here")
        found = on(target)
        assert found.baseline is not None
        dense = replace(found.baseline, artifact=replace(baseline, path=Path("dense.onnx")))
        return replace(found, artifact=replace(artifact, path=Path("slim.onnx")), baseline=dense)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr("edgeprune.pipeline.device.bench", made)
    return made


@pytest.fixture
def folder(place: Path) -> RunFolder:
    """A run that has come as far as its ONNX files."""
    made = new_run(place / "run", Settings("tiny:net", target="one.toml"))
    made.path.mkdir()
    for name, width in (("dense", 64), ("slim", 16)):
        path = network(made.file(f"{name}.onnx"), width)
        Artifact(path, sha256_file(path), path.stat().st_size).write_sidecar()
    made.save()
    return made


def names_in(folder: RunFolder, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.path.glob(pattern))


def test_a_run_is_measured_for_each_target_once(folder: RunFolder, bench: Bench, capsys: Capsys) -> None:
    words = ["gate", "run", *targets("one", "two")]
    code, out, _ = run(capsys, *words, "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 0
    assert bench.asked == ["the one", "the two"]
    assert names_in(folder, "measurement*") == ["measurement.json", "measurement.two.json"]
    assert names_in(folder, "verdicts*") == ["verdicts.json", "verdicts.two.json"]
    assert names_in(folder, "junit*") == ["junit.two.xml", "junit.xml"]
    schema = json.loads(run(capsys, "gate", "--json-schema")[1])
    for content in (found, *(json.loads(path.read_text()) for path in folder.path.glob("verdicts*"))):
        jsonschema.Draft202012Validator(schema).validate(content)
    assert json.loads(folder.file("verdicts.two.json").read_text())["targets"][0]["name"] == "the two"
    assert load_measurement(folder.file("measurement.two.json")).runtime["threads"] == 2
    assert open_run(folder.path).settings.target == "one.toml"
    assert folder.file("report.html").is_file()
    assert run(capsys, *words)[0] == 0
    assert bench.asked == ["the one", "the two"]  # nothing was stale

    # What has changed is measured again, and that alone.
    folder.file("measurement.two.json").unlink()
    assert run(capsys, *words)[0] == 0
    assert bench.asked[2:] == ["the two"]
    write_target(folder.path.parent, "one", 3)
    assert run(capsys, *words)[0] == 0
    assert bench.asked[3:] == ["the one"]
    # Another budget is no reason to measure.
    write_target(folder.path.parent, "two", 2, 'max_size = "10 B"')
    code, out, _ = run(capsys, *words)
    assert code == 1
    assert "missed by" in out
    assert len(bench.asked) == 4


@pytest.mark.usefixtures("bench")
def test_the_report_tells_the_verdicts_of_every_target(folder: RunFolder, capsys: Capsys) -> None:
    def told() -> str:
        return folder.file("report.md").read_text()

    assert run(capsys, "gate", "run", *targets("one", "strict"))[0] == 1
    assert "### the one\n" in told()
    assert "### the strict\n" in told()
    assert "Not released: 1 of 2 budgets" in told()
    assert "the strict" in folder.file("report.html").read_text()
    # A later gate on one target, and the report alone, leave what is still true of the same file.
    assert run(capsys, "gate", "run", *targets("one"))[0] == 0
    assert run(capsys, "report", "run")[0] == 0
    assert "### the strict\n" in told()
    # Of another network it says nothing.
    slim = network(folder.file("slim.onnx"), 8)
    Artifact(slim, sha256_file(slim), slim.stat().st_size).write_sidecar()
    assert run(capsys, "gate", "run", *targets("one"))[0] == 0
    assert "the strict" not in told()


@pytest.mark.usefixtures("bench")
def test_a_report_tells_no_verdicts_of_another_measurement(folder: RunFolder, capsys: Capsys) -> None:
    assert run(capsys, "gate", "run", *targets("strict"))[0] == 1
    assert run(capsys, "report", "run")[0] == 0
    measured = folder.file("measurement.json")
    for change in (
        lambda: write_target(folder.path.parent, "strict", 1, 'max_size = "1 GB"'),
        lambda: measured.write_text(measured.read_text().replace('"size_bytes": ', '"size_bytes": 1')),
    ):
        change()
        told = folder.file("report.md").read_text()
        code, _, err = run(capsys, "report", "run")
        assert code == 2
        assert "could not report the verdicts: " in err
        assert "of another measurement than measurement.json, or of another target than the strict" in err
        assert "Run `edgeprune gate run`." in err
        assert folder.file("report.md").read_text() == told
        assert run(capsys, "gate", "run")[0] == 0
        assert run(capsys, "report", "run")[0] == 0


@pytest.mark.parametrize(("away", "codes"), [("the one", [3, 1]), ("the strict", [0, 3]), ("both", [3, 3])])
def test_a_target_out_of_reach_hides_none_of_the_others(
    folder: RunFolder, bench: Bench, capsys: Capsys, away: str, codes: list[int]
) -> None:
    bench.away = {"the one", "the strict"} if away == "both" else {away}
    words = ["gate", "run", *targets("one", "strict"), "--json", "--markdown", "p.md"]
    code, out, _ = run(capsys, *words)
    rows = json.loads(out)["targets"]
    assert [row["exit_code"] for row in rows] == codes
    assert code == (1 if 1 in codes else 3)
    for row, one in zip(rows, codes, strict=True):
        assert ("could not reach the board: host is away" in (row["error"] or "")) == (one == 3)
    assert Path("p.md").read_text().count("could not reach the board") == codes.count(3)
    assert folder.path.is_dir()


def test_a_single_target_fails_as_ever(
    folder: RunFolder, bench: Bench, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.away = {"the one"}
    code, out, err = run(capsys, "gate", "run", "--junit", "j.xml", "--markdown", "p.md")
    assert (code, out) == (3, "")
    assert "edgeprune: could not reach the board: host is away, expected here." in err
    assert junitparser.JUnitXml.fromfile("j.xml").errors == 1  # CI sees it where it looks for verdicts
    assert "could not reach the board" in Path("p.md").read_text()
    with monkeypatch.context() as patched:
        patched.setenv("GITHUB_ACTIONS", "true")
        code, out, err = run(capsys, "gate", "run", "--json")
    assert (code, json.loads(out)["exit_code"]) == (3, 3)
    assert "::error title=edgeprune%3A the one::could not reach the board" in err
    folder.file("slim.onnx").unlink()
    for words in (targets("one"), targets("one", "two")):  # a mistake that hits all is told as such
        code, out, err = run(capsys, "gate", "run", *words)
        assert (code, out) == (2, "")
        assert "slim.onnx is not there, expected the result of `edgeprune export`" in " ".join(err.split())


def test_a_precision_that_was_never_exported_is_that_target_s_fault_alone(
    folder: RunFolder, bench: Bench, capsys: Capsys
) -> None:
    Path("half.toml").write_text('name = "half"\n[runtime]\nprecision = "fp16"\n')
    code, out, _ = run(capsys, "gate", str(folder.path), *targets("one", "half"), "--json")
    rows = json.loads(out)["targets"]
    assert code == 3
    assert [row["exit_code"] for row in rows] == [0, 3]
    assert "--target half.toml` first" in rows[1]["error"]
    assert bench.asked == ["the one"]


@pytest.mark.usefixtures("bench")
def test_a_run_against_a_release(folder: RunFolder, capsys: Capsys) -> None:
    write_target(folder.path.parent, "one", 1, "max_latency_p50_vs_release = 1.0")
    before = on(load_target("./one.toml"), BEFORE)

    def release(measurement: Measurement) -> None:
        entry = Entry("2026-11-21T16:40:00Z", "0.1.0", None, {}, record_of(measurement))
        write_json(Path("release.json"), Release((entry,)).to_json())

    states: Callable[..., list[str]] = lambda *words: [  # noqa: E731
        row["state"] for row in json.loads(run(capsys, "gate", "run", *words, "--json")[1])["verdicts"]
    ]
    assert states() == ["unmeasured"]
    release(before)
    assert states("--against", "release.json") == ["passed"]
    assert open_run(folder.path).settings.against == "release.json"
    assert "--against release.json" in open_run(folder.path).settings.command("run")
    faster = replace(
        before, latency_samples_s=tuple(tuple(t / 2 for t in one) for one in before.latency_samples_s)
    )
    release(faster)  # the gate is stale, the measurement is not
    assert states() == ["failed"]
