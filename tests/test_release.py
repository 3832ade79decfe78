from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.errors import ReleaseError
from edgeprune.release import Entry, Release, entry_of, lines_of, load_release, write_release
from edgeprune.target import Budget
from edgeprune.verdict import gate
from tests.sessions import RUNTIME, SLIM, put, session

BUDGETS = (Budget("max_size", "size", True, 1e6, "1 MB"), Budget("max_macs", "macs", True, 60, "60"))
MEASUREMENT = session(1)
ENTRY = entry_of(MEASUREMENT, gate(BUDGETS, MEASUREMENT))


def renamed(name: str, target: str = "test device") -> Entry:
    assert ENTRY.record.baseline is not None
    dense = replace(ENTRY.record.baseline, target_name=target)
    record = replace(ENTRY.record, target_name=target, baseline=dense)
    return replace(ENTRY, record=replace(record, artifact=replace(record.artifact, path=Path(name))))


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    release = Release((ENTRY, renamed("slim.onnx", "another device")))
    write_release(tmp_path / "release.json", release)
    assert load_release(tmp_path / "release.json") == release
    text = (tmp_path / "release.json").read_text()
    assert len(text) < 20_000
    assert '"input_shape": [1, 3, 8, 8],\n' in text
    assert '"max_size": {"limit": "1 MB", "measured": "100 kB", "state": "passed"},\n' in text


def test_the_same_content_gives_the_same_bytes() -> None:
    assert lines_of(Release((ENTRY,)).to_json()) == lines_of(Release((ENTRY,)).to_json())
    assert json.loads(lines_of(Release((ENTRY,)).to_json())) == json.loads(
        json.dumps(Release((ENTRY,)).to_json())
    )


@pytest.mark.parametrize("value", [{}, [], 3, {"a": {}}, [[1], [2]], {"a": [{"b": 1}, {"b": "ä"}]}, "x"])
def test_lines_are_json(value: Any) -> None:
    assert json.loads(lines_of(value)) == value


def test_a_later_release_takes_the_place_of_the_one_for_its_target() -> None:
    measured_again = replace(ENTRY.record, measurement_sha256="00" * 32)
    later = replace(ENTRY, date="2027-01-01T00:00:00Z", record=measured_again)
    other = renamed("slim.int8.onnx")
    release = Release((ENTRY, other)).with_entries([later])
    assert release.entries == (later, other)
    assert release.with_entries([replace(later, date="2028-01-01T00:00:00Z")]) == release  # nothing new
    assert len(release.with_entries([renamed("slim.onnx", "b")]).entries) == 3


def test_the_record_of_the_same_runtime_is_found() -> None:
    threads = replace(ENTRY.record, runtime={**ENTRY.record.runtime, "threads": 4}, target_name="four")
    release = Release((replace(ENTRY, record=threads), renamed("x.onnx", "b"), ENTRY))
    assert release.record_for(MEASUREMENT) == ENTRY.record
    elsewhere = replace(MEASUREMENT, runtime={**RUNTIME, "python": "/opt/bin/python", "input": (1, 3, 8, 8)})
    assert release.record_for(elsewhere) is None
    four = replace(MEASUREMENT, runtime={**RUNTIME, "threads": 4, "python": None})
    assert release.record_for(four) == threads
    assert Release((renamed("x.onnx", "b"),)).record_for(MEASUREMENT) is not None  # the only one there is


def test_it_says_what_was_released_when_and_of_which_commit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    entry = entry_of(MEASUREMENT, gate(BUDGETS, MEASUREMENT))
    assert entry.git is None
    assert entry.date.endswith("Z")
    assert entry.record.artifact.sha256 == SLIM.sha256
    assert entry.verdicts["max_macs"] == {"limit": "60", "measured": "50", "state": "passed"}
    subprocess.run(["git", "init", "-q"], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    entry = entry_of(MEASUREMENT, ())
    assert entry.git is not None
    assert len(entry.git["commit"]) == 40
    assert entry.git["dirty"] is False


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        ((), [], "not a release file"),
        (("format",), 99, "of format 99, expected format 1 .* Update edgeprune"),
        (("releases",), [], "with missing or unknown keys"),
        (("more",), 1, "with missing or unknown keys"),
        (("releases", 0), 3, "wrong in release 1: expected the keys"),
        (("releases", 0, "date"), 3, "'date' or 'edgeprune' is no text"),
        (("releases", 0, "git"), "abc", "'git' is neither null nor commit and dirty"),
        (("releases", 0, "verdicts"), {"max_size": 3}, "'verdicts' are not limit"),
        (("releases", 0, "record", "values", "size"), "big", "release 1 in .*r.json is wrong in 'values'"),
        (("releases",), "twice", "two releases of one file for one target"),
    ],
)
def test_a_wrong_part_is_named(tmp_path: Path, keys: tuple[Any, ...], value: Any, fault: str) -> None:
    content = json.loads(json.dumps(Release((ENTRY,)).to_json()))
    if value == "twice":
        value = content["releases"] * 2
    content = put(content, keys, value)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ReleaseError, match=fault):
        load_release(tmp_path / "r.json")


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"is not there, expected a file\. `edgeprune release` writes"):
        load_release(tmp_path / "release.json")
    (tmp_path / "release.json").write_text("<<<<<<< HEAD")
    with pytest.raises(ReleaseError, match="not JSON"):
        load_release(tmp_path / "release.json")
