"""scripts/bench_stability: its judgements on figures that are planted; a real run is marked slow."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_stability"
WEIGHTS = {"dense": 46_700_000, "half": 12_200_000}


class Device:
    """What the script would measure; a test changes what it is to find."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.values: dict[str, Callable[[int], float]] = {
            "half": lambda n: 0.25 * (1 + 0.002 * n),
            "copy": lambda n: 1 + 0.001 * n,
            "planted": lambda _: 1.05,
        }
        self.width = 0.03
        self.peaks: dict[str, int] = {"dense": 120_000_000, "half": 31_000_000}
        self.peak_step = 10_000

    def measured(self, _: Any, slim: str, __: str) -> dict[str, Any]:
        value = self.values[slim](self.calls.count(slim))
        self.calls.append(slim)
        pairs = [[value] * 3] * 10
        ends = {"low": value / (1 + self.width), "high": value * (1 + self.width)}
        return {"value": value, **ends, "processes": 10, "pair_ratios": pairs, "environment": {}, "notes": []}

    def naive(self, _: Path) -> dict[str, Any]:
        self.calls.append("naive")
        return {"value": 0.25 + 0.05 * self.calls.count("naive")}

    def memory(self, _: Path, name: str) -> dict[str, Any]:
        peak = self.peaks[name] + self.peak_step * self.calls.count(name)
        self.calls.append(name)
        figures = {"run_peak_bytes": peak // 2, "loaded_bytes": WEIGHTS[name], "peak_bytes": peak}
        return {**figures, "why": None}


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def run(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the script on the device: exit code and rows."""
    names = runpy.run_path(str(SCRIPT))
    for name in ("measured", "naive", "memory"):
        monkeypatch.setitem(names["main"].__globals__, name, getattr(device, name))
    monkeypatch.setitem(names["main"].__globals__, "make_networks", lambda _: None)
    for name, size in WEIGHTS.items():
        with (tmp_path / f"{name}.onnx").open("wb") as file:
            file.truncate(size)

    def go(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--json", "--out", str(tmp_path), *words])
        code = names["main"]()
        return code, json.loads(capsys.readouterr().out)

    return go


def test_all_is_well(run: Run, device: Device) -> None:
    code, rows = run("--repeats", "3")
    assert code == 0
    assert set(rows) == {"spread", "same", "planted", "covers", "time", "memory"}
    assert all(row["passed"] for row in rows.values())
    assert rows["spread"]["ours"] == pytest.approx(0.004, rel=0.01)
    assert rows["spread"]["naive"] == pytest.approx(0.1 / 0.35)
    assert "found in 6 of 6; long-run ratio 1.0500" in rows["planted"]["text"]
    assert [device.calls.count(name) for name in ("half", "copy", "planted", "naive")] == [8, 6, 6, 3]


@pytest.mark.parametrize(
    ("fault", "row"),
    [
        (lambda d: d.values.update(half=lambda n: 0.25 * (1 + 0.03 * n)), "spread"),
        (lambda d: d.values.update(copy=lambda n: 1 + 0.004 * n), "same"),
        (lambda d: setattr(d, "width", 0.06), "planted"),
        (lambda d: setattr(d, "width", 0.0005), "covers"),
        (lambda d: setattr(d, "peak_step", 600_000), "memory"),
        (lambda d: d.peaks.update(half=60_000_000), "memory"),
    ],
)
def test_each_rule_fails_when_it_is_broken(
    run: Run, device: Device, fault: Callable[[Device], None], row: str
) -> None:
    fault(device)
    code, rows = run("--repeats", "2")
    assert code == 1
    assert rows[row]["passed"] is False


def test_a_busy_machine_may_spread_more(run: Run, device: Device) -> None:
    device.values["half"] = lambda n: 0.25 * (1 + 0.03 * n)
    assert run("--repeats", "2", "--launches", "0")[1]["spread"]["passed"] is False
    device.calls.clear()
    # The figures of a quiet machine are not taken for those of a busy one.
    assert run("--repeats", "2", "--launches", "0", "--busy", "1")[1]["spread"]["passed"] is True
    assert device.calls.count("half") == 2


def test_it_goes_on_where_it_was_interrupted(run: Run, device: Device, tmp_path: Path) -> None:
    run("--repeats", "2", "--launches", "1")
    kept = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(kept + '{"key": ["ratio", 0, 2], "val')
    device.calls.clear()
    run("--repeats", "3", "--launches", "1")
    assert sorted(device.calls) == ["copy", "copy", "half", "naive", "planted", "planted"]
    device.calls.clear()
    run("--repeats", "3", "--launches", "1")
    assert device.calls == []


@pytest.mark.slow
def test_real_run_on_resnet18(tmp_path: Path) -> None:
    words = ["--repeats", "1", "--same", "0", "--planted", "1", "--budget-seconds", "20", "--launches", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(tmp_path), "--json"],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(done.stdout)
    assert rows["memory"]["passed"], rows
    assert 1.0 < rows["planted"]["long_run"] < 1.15
