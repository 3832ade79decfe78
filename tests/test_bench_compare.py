"""scripts/bench_compare: its judgements on sessions that are simulated; a short real run is marked slow."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.files import write_json
from tests.sessions import SLIM, session

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_compare"


class Machine:
    """What the script would measure; a test changes what it is to find."""

    def __init__(self) -> None:
        self.saved: list[str] = []
        self.per_block = 0.0125
        self.spread = 0.007
        self.drift = 0.0

    def measured(self, words: list[str]) -> None:
        network, baseline, save = (Path(words[at]) for at in (1, 3, 5))
        blocks = int(network.stem.removeprefix("wider-")) if network.stem.startswith("wider") else 0
        slowdown = (1 + self.per_block * blocks) * (1 + self.drift) ** len(self.saved)
        # Side by side nothing of the hour is left; the simulated dense network takes twice the time of slim.
        side_by_side = baseline.stem == "slim"
        found = session(
            100 + len(self.saved),
            2 * slowdown if side_by_side else slowdown,
            spread=0.0 if side_by_side else self.spread,
        )
        self.saved.append(save.stem)
        write_json(save, replace(found, artifact=replace(SLIM, path=network)).to_json())


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def run(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the script on the machine: exit code and rows."""
    names = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(names["main"].__globals__, "measured", machine.measured)
    monkeypatch.setitem(names["main"].__globals__, "make_networks", lambda _: None)

    def go(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["bench_compare", "--json", "--out", str(tmp_path), *words])
        code = names["main"]()
        return code, json.loads(capsys.readouterr().out)

    return go


def test_all_is_well(run: Run, machine: Machine) -> None:
    code, rows = run("--same", "20", "--planted", "10")
    assert {name: row["passed"] for name, row in rows.items() if row["passed"] is not None} == dict.fromkeys(
        ("same", "planted", "truth", "covers"), True
    )
    assert code == 0
    assert (rows["same"]["of"], rows["planted"]["of"]) == (20, 10)
    assert rows["truth"]["value"] == pytest.approx(1.05, abs=0.01)
    assert 0.005 < rows["latency_p50"]["over_dense"] < 0.012  # what processes add is in it
    assert rows["latency_p50"]["plain"] == pytest.approx(0.05, rel=0.5)
    # Five blocks were too many, and four were right; the slower one is measured in between.
    assert machine.saved[:2] == ["try-5", "try-4"]
    order = [name for name in machine.saved if name.startswith(("same", "planted"))]
    assert 5 <= order.index(next(name for name in order if "planted-02" in name)) <= 12


def test_it_goes_on_where_it_was_interrupted(run: Run, machine: Machine) -> None:
    run("--same", "2", "--planted", "1")
    before = len(machine.saved)
    _, rows = run("--same", "2", "--planted", "1")
    assert len(machine.saved) == before
    assert rows["same"]["of"] == 2


@pytest.mark.parametrize(
    ("row", "change"),
    [
        ("same", {"drift": 0.06}),  # the next session is slower, each time
        ("planted", {"per_block": 0.004}),  # so small a slowdown is none
        ("truth", {"per_block": 0.004}),
        ("covers", {"spread": 0.1}),
    ],
)
def test_each_rule_fails_when_it_is_broken(
    run: Run, machine: Machine, row: str, change: dict[str, float]
) -> None:
    for name, value in change.items():
        setattr(machine, name, value)
    code, rows = run("--same", "6", "--planted", "3")
    assert code == 1
    assert rows[row]["passed"] is False


@pytest.mark.slow
def test_a_short_real_run(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--short", "--json", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["same"]["of"] == 2
