"""`edgeprune release` and `edgeprune compare`, by the real command line on simulated measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.files import sha256_file, write_json
from edgeprune.measurement import Measurement
from edgeprune.pipeline import RunFolder, Settings, device
from edgeprune.record import record_of
from edgeprune.release import load_release, write_release
from tests.conftest import run
from tests.sessions import RUNTIME, SLIM, session

TARGET = """
name = "test device"
[runtime]
python = "python3"
[budgets]
max_size = "{size}"
max_latency_ratio = {ratio}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder, with a target, a measurement and a slower one."""
    monkeypatch.chdir(tmp_path)
    target()
    save("measurement.json", session(1))
    save("same.json", session(2))
    save("slower.json", session(3, 1.2))


def save(name: str, measurement: Measurement) -> None:
    write_json(Path(name), measurement.to_json())


def target(size: str = "1 MB", ratio: float = 0.6, name: str = "t.toml") -> None:
    Path(name).write_text(TARGET.format(size=size, ratio=ratio))


def release(capsys: Any, *words: str) -> tuple[int, str, str]:
    return run(capsys, "release", *words, "--target", "./t.toml")


def test_a_passing_run_is_released_and_compared(capsys: Any) -> None:
    code, out, _ = release(capsys)
    assert code == 0
    assert out.endswith("released: release.json\n")
    (entry,) = load_release("release.json").entries
    assert entry.verdicts["max_size"]["state"] == "passed"
    assert entry.record.target_name == "test device"

    code, out, _ = run(capsys, "compare", "release.json", "same.json", "--fail-on", "worse")
    assert (code, out.splitlines()[-1]) == (0, "no change beyond noise, of what can be told")
    _, out, _ = run(capsys, "compare", "release.json", "same.json", "--metric", "size")
    assert out.splitlines()[-1] == "no change beyond noise"
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run(capsys, "compare", "release.json", "slower.json", "--fail-on", "worse")
    assert code == 1
    assert " ".join(out.split()).rpartition("worse: ")[2].startswith("median latency, latency p90")
    assert run(capsys, "compare", "release.json", "slower.json")[0] == 0
    assert run(capsys, "compare", "slower.json", "release.json", "--fail-on", "worse")[0] == 0
    assert run(capsys, "compare", "slower.json", "release.json", "--fail-on", "change")[0] == 1
    words = ("compare", "release.json", "slower.json", "--fail-on", "worse", "--metric", "size")
    assert run(capsys, *words)[0] == 0


def test_a_later_release_takes_its_place(capsys: Any) -> None:
    release(capsys)
    before = load_release("release.json")
    assert release(capsys, "same.json")[0] == 0
    after = load_release("release.json")
    assert len(after.entries) == 1
    assert after.entries[0].record.measurement_sha256 != before.entries[0].record.measurement_sha256


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        ({"size": "50 kB"}, 1, "not released: failed; release.json is as it was"),
        ({"ratio": 0.5}, 3, "not released: cannot tell yet; release.json is as it was"),
    ],
)
def test_what_does_not_pass_is_not_released(
    capsys: Any, limits: dict[str, Any], code: int, words: str
) -> None:
    target(**limits)
    found, out, _ = release(capsys)
    assert found == code
    assert out.endswith(f"{words}\n")
    assert not Path("release.json").exists()
    target()
    release(capsys)
    held = sha256_file(Path("release.json"))
    target(**limits)
    found, out, _ = release(capsys, "slower.json", "--json")
    content = json.loads(out)
    assert (found, content["exit_code"], content["released"]) == (content["exit_code"], found, None)
    assert found != 0
    assert sha256_file(Path("release.json")) == held


def test_budgets_against_the_release_in_the_file(capsys: Any) -> None:
    """The first release has nothing before it; a later one is held against what the file holds."""
    with Path("t.toml").open("a") as file:
        file.write("max_latency_p50_vs_release = 1.05\nmax_size_vs_release = 1.0\n")
    code, out, _ = release(capsys)
    assert code == 0
    first = "first release, so max_latency_p50_vs_release, max_size_vs_release cannot be held against one"
    assert first in out
    code, out, _ = release(capsys, "same.json")
    assert (code, "first release" in out) == (0, False)
    (entry,) = load_release("release.json").entries
    assert entry.verdicts["max_latency_p50_vs_release"]["state"] == "passed"
    held = sha256_file(Path("release.json"))
    code, out, _ = release(capsys, "slower.json")
    assert code == 1
    assert "max_latency_p50_vs_release" in out
    assert sha256_file(Path("release.json")) == held


def test_several_measurements_are_released_together_or_not_at_all(capsys: Any) -> None:
    four = session(5)
    runtime = {**RUNTIME, "threads": 4}
    assert four.baseline is not None
    save("four.json", replace(four, runtime=runtime, target_name="four threads"))
    text = TARGET.format(size="1 MB", ratio=0.6).replace("[budgets]", "threads = 4\n[budgets]")
    Path("four.toml").write_text(text.replace("test device", "four threads"))
    places = ["release", "measurement.json", "four.json", "--target", "./t.toml", "--target"]
    code, out, _ = run(capsys, *places, "./four.toml", "--json")
    assert (code, json.loads(out)["released"]) == (0, "release.json")
    assert [entry.place[1] for entry in load_release("release.json").entries] == [
        "test device", "four threads",
    ]  # fmt: skip
    code, out, _ = run(capsys, "compare", "release.json", "four.json", "--json")
    (part,) = json.loads(out)["comparisons"]
    assert part["before"]["target"] == "four threads"
    code, out, _ = run(capsys, "compare", "release.json", "release.json")
    assert out.count("median latency") == 2

    Path("four.toml").write_text(text.replace("test device", "four threads").replace("1 MB", "1 kB"))
    held = sha256_file(Path("release.json"))
    code, out, _ = run(capsys, *places, "./four.toml")
    assert code == 1
    assert "not released: 1 of 2 gates failed" in out
    assert sha256_file(Path("release.json")) == held
    code, _, err = run(capsys, "release", "measurement.json", "same.json", "--target", "./t.toml")
    assert (code, "--target is given 1 times, expected 2" in err) == (2, True)
    twice = ("release", "measurement.json", "same.json", "--target", "./t.toml", "--target", "./t.toml")
    code, _, err = run(capsys, *twice)
    assert (code, "slim.onnx on test device is given twice" in err) == (2, True)


def test_bad_input_is_one_error(capsys: Any) -> None:
    Path("release.json").write_text('{"format": 1}')
    code, _, err = release(capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "could not read the release file: release.json is not a release file" in err
    assert run(capsys, "release", "nowhere.json")[0] == 2
    assert run(capsys, "compare", "nowhere.json", "same.json")[0] == 2
    code, out, err = run(capsys, "compare", "same.json", "release.json", "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    code, _, err = run(capsys, "compare", "same.json", "slower.json", "--metric", "latency_ratio")
    assert (code, "--metric is latency_ratio, expected one of latency_p50" in err) == (2, True)


def test_releases_without_a_partner_are_an_error(capsys: Any) -> None:
    save("four.json", replace(session(5), runtime={**RUNTIME, "threads": 4}, target_name="four"))
    save("two.json", replace(session(6), runtime={**RUNTIME, "threads": 2}, target_name="two"))
    for name, threads in (("four", 4), ("two", 2)):
        text = TARGET.format(size="1 MB", ratio=0.6).replace("[budgets]", f"threads = {threads}\n[budgets]")
        Path(f"{name}.toml").write_text(text.replace("test device", name))
    words = ["--target", "./four.toml", "--target", "./two.toml"]
    assert run(capsys, "release", "four.json", "two.json", *words)[0] == 0
    code, _, err = run(capsys, "compare", "release.json", "same.json")
    assert code == 2
    assert "release.json is for four, two, expected a measurement run as in same.json" in err


def test_another_processor_is_said_and_fails_the_gate_of_ci(capsys: Any) -> None:
    other = session(2)
    save("other.json", replace(other, environment={**other.environment, "cpu": "another one"}))
    code, out, _ = run(capsys, "compare", "measurement.json", "other.json", "--fail-on", "worse")
    assert code == 3
    assert "Another processor: a processor before, another one now." in " ".join(out.split())
    words = ("compare", "measurement.json", "other.json", "--fail-on", "worse", "--metric", "size")
    assert run(capsys, *words)[0] == 0
    code, out, _ = run(capsys, *words[:-1], "device_memory")
    assert code == 3  # what was asked for and is not there does not pass


def test_a_release_for_another_target_meanwhile_stays(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target(name="other.toml")
    Path("other.toml").write_text(Path("t.toml").read_text().replace("test device", "other device"))

    genuine = device.gate_on

    def meanwhile(*arguments: Any) -> Any:
        """Another process releases while this one gates."""
        monkeypatch.setattr(device, "gate_on", genuine)
        save("other.json", replace(session(1), target_name="other device"))
        assert run(capsys, "release", "other.json", "--target", "./other.toml", "--out", "r.json")[0] == 0
        return genuine(*arguments)

    monkeypatch.setattr(device, "gate_on", meanwhile)
    assert release(capsys, "measurement.json", "--out", "r.json")[0] == 0
    assert len(load_release("r.json").entries) == 2


def test_what_a_file_calls_itself_moves_no_cursor(capsys: Any) -> None:
    save("evil.json", replace(session(1), target_name="a \x1b[31mb\nc"))
    _, out, _ = run(capsys, "compare", "evil.json", "evil.json")
    assert "\x1b" not in out
    assert " on a  [31mb c\n" in out


def test_one_without_a_partner_is_told(capsys: Any) -> None:
    assert release(capsys)[0] == 0
    alone = replace(session(1), target_name="phone", runtime={**RUNTIME, "threads": 8})
    release_of = load_release("release.json")
    (entry,) = release_of.entries
    write_release("two.json", release_of.with_entries([replace(entry, record=record_of(alone))]))
    code, out, _ = run(capsys, "compare", "release.json", "two.json", "--json")
    found = json.loads(out)
    assert code == 0
    assert len(found["comparisons"]) == 1
    assert [one["target"] for one in found["without_partner"]] == ["phone"]
    assert "1 of 2 in two.json have no partner" in run(capsys, "compare", "release.json", "two.json")[1]


def test_the_json_of_a_comparison(capsys: Any) -> None:
    code, out, _ = run(capsys, "compare", "measurement.json", "slower.json", "--json", "--fail-on", "worse")
    content = json.loads(out)
    assert (code, content["exit_code"]) == (1, 1)
    (part,) = content["comparisons"]
    assert part["common_dense"] is True
    row = next(row for row in part["changes"] if row["metric"] == "latency_p50")
    assert row["state"] == "worse"
    assert row["change"]["low"] < 1.2 < row["change"]["high"]
    assert "latency_p50" in content["summary"]["worse"]


def test_a_run_folder_is_released_if_its_file_was_measured(capsys: Any) -> None:
    made = session(1)
    folder = RunFolder(Path("run"), Settings(model="resnet20", target="./t.toml"))
    folder.save()
    folder.file("slim.onnx").write_bytes(b"\x08\x08")
    file = folder.file("slim.onnx")
    facts = replace(SLIM, path=file, sha256=sha256_file(file), size_bytes=2)
    facts.write_sidecar()
    write_json(folder.file("measurement.json"), replace(made, artifact=facts).to_json())
    code, out, err = run(capsys, "release", "run", "--out", "folder.json")
    assert (code, err) == (0, "")
    assert out.endswith("released: folder.json\n")  # the target is the run's own
    assert run(capsys, "compare", "folder.json", "run")[0] == 0
    edited = replace(made, artifact=replace(facts, macs=1))
    write_json(folder.file("measurement.json"), edited.to_json())
    code, _, err = run(capsys, "release", "run")
    assert code == 2
    assert "run/measurement.json is with other facts of the file than its sidecar" in " ".join(err.split())
    file.write_bytes(b"\x08\x09")
    replace(facts, sha256=sha256_file(file)).write_sidecar()
    code, _, err = run(capsys, "release", "run")
    assert code == 2
    assert "could not release the run: run/slim.onnx is sha256" in err
    assert not Path("release.json").exists()


def test_release_and_compare_need_no_torch() -> None:
    code = """
import sys
from edgeprune.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
"""
    for words in (["release", "--target", "./t.toml"], ["compare", "release.json", "same.json"]):
        subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=60, capture_output=True)
