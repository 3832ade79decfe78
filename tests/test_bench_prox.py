from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_prox"
QUICK = ["--model", "resnet20", "--batch-size", "2", "--rounds", "3", "--warm-up", "1"]


def bench(monkeypatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *QUICK, *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_times_both_steps_in_one_run(monkeypatch, capsys):
    assert bench(monkeypatch, "--json", "--max-ratio", "100") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["norms"], result["gammas"], result["rounds"]) == (19, 688, 3)
    assert 0 < result["ratio_p05"] <= result["ratio_median"] <= result["ratio_p95"]
    assert result["step_median_s"] > result["proximal_median_s"] > 0


def test_a_ratio_above_the_limit_fails(monkeypatch, capsys):
    assert bench(monkeypatch, "--max-ratio", "0") == 1
    assert "limit 0 %: FAILED" in capsys.readouterr().out
