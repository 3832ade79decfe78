"""scripts/quality: a table that is measured row by row, each of them once."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def quality(patch: pytest.MonkeyPatch, out: Path, *words: str) -> int:
    """Run the script in this process; its exit code."""
    patch.setattr(sys, "argv", [str(SCRIPTS / "quality"), "--out", str(out), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "quality"), run_name="__main__")
    return int(ended.value.code or 0)


class Rows:
    """Stands for the processes that measure a row each."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.checkpoints: list[Path] = []
        self.crash = ""
        patch.syspath_prepend(SCRIPTS)
        patch.setattr("fresh.fresh", self.measure)

    def measure(self, _: str, *words: str, **__: Any) -> dict[str, Any]:
        scheme, _ratio, seed = row = list(words[-3:])
        self.asked.append(row)
        checkpoint = next(Path(word[6:]) for word in words if word.startswith("--out="))
        assert not list(checkpoint.parent.iterdir())  # none of another training
        checkpoint.touch()
        checkpoint.with_name("train.1.checkpoint").touch()
        self.checkpoints.append(checkpoint)
        if scheme == self.crash:
            return {"crash": "no memory"}
        return {
            "dense": 0.9,
            "params_ratio": 0.5,
            "slim": 0.1,
            "refitted": 0.7,
            "finetuned": 0.8 + int(seed) / 50,
        }


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    return Rows(monkeypatch)


def test_each_row_once_and_a_table(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.jsonl"
    words = ["--ratios", "0.5", "--seeds", "2", "--schemes", "random"]
    assert quality(monkeypatch, out, *words) == 0
    assert rows.asked == [["random", "0.5", "0"], ["random", "0.5", "1"]]
    spreads = "10.00 % [10.00, 10.00] | 70.00 % [70.00, 70.00] | 81.00 % [80.00, 82.00]"
    line = f"| 0.5 | random | 2 | 0.50 | {spreads} |"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]

    assert quality(monkeypatch, out, *words, "magnitude") == 0
    assert rows.asked[2:] == [["magnitude", "0.5", "0"], ["magnitude", "0.5", "1"]]
    assert line in capsys.readouterr().out
    assert quality(monkeypatch, out, *words, "--lr", "0.1") == 0  # another recipe: other rows
    assert len(rows.asked) == 6 == len(out.read_text().splitlines())


def test_a_row_that_crashed_is_measured_again(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.jsonl"
    words = ["--ratios", "0.5", "--seeds", "1", "--schemes", "random", "magnitude"]
    rows.crash = "random"
    assert quality(monkeypatch, out, *words) == 1
    assert "random at 0.5, seed 0: {'crash': 'no memory'}" in capsys.readouterr().err
    assert [json.loads(row)["scheme"] for row in out.read_text().splitlines()] == ["magnitude"]
    kept = rows.checkpoints[0]
    assert kept.is_file()  # it goes on from there
    assert not rows.checkpoints[1].parent.exists()

    rows.crash = ""
    monkeypatch.setattr(Path, "iterdir", lambda _: [])
    assert quality(monkeypatch, out, *words) == 0
    assert rows.asked[2:] == [["random", "0.5", "0"]]
    assert rows.checkpoints[2] == kept
    assert not kept.parent.parent.exists()


@pytest.mark.slow
def test_two_trainings_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoints of the first, of which there are several, are no business of the second."""
    monkeypatch.syspath_prepend(SCRIPTS)
    words = ["--model", "resnet20", "--schemes", "magnitude", "random", "--ratios", "0.5", "--seeds", "1"]
    assert quality(monkeypatch, tmp_path / "q.jsonl", *words, "--epochs", "2", "--threads", "2") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split(" |")[1] for line in printed.out.splitlines()[-2:]] == [" magnitude", " random"]
    for line in (tmp_path / "q.jsonl").read_text().splitlines():
        assert 0.3 < json.loads(line)["macs_ratio"] <= 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]
