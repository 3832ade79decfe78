"""scripts/bench_precision on digits, with weights that nobody has trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_precision"


@pytest.mark.slow
def test_every_file_is_told_and_an_absent_interpreter_is_named(tmp_path: Path) -> None:
    words = ["--data", "digits", "--processes", "2", "--xnnpack", str(tmp_path / "absent")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--out", str(tmp_path / "files")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "absent" in done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["file", "bytes", "ratio"]
    ratios = {row[:14].strip(): float(row[14:].split()[1]) for row in rows}
    assert list(ratios) == ["fp32", "fp16", "int8", "int8 XNNPACK", "int8 QNN"]
    assert ratios["fp32"] == 1
    assert 0.5 < ratios["fp16"] < 0.53
    assert all(0.25 < ratios[name] < 0.35 for name in ratios if name.startswith("int8"))
    assert {path.name for path in (tmp_path / "files").glob("*.onnx")} == {
        "slim.onnx", "slim.fp16.onnx", "slim.int8.onnx", "slim.int8.XNNPACK.onnx", "slim.int8.QNN.onnx"
    }  # fmt: skip
