"""A sweep on a fake device, then what a file with a fixed batch says on the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.cli import main
from edgeprune.errors import ArtifactError, UsageError
from edgeprune.runners import RUNNERS
from edgeprune.sweep import measure_sweep, sweep_rows, sweep_to_json
from edgeprune.target import Runtime
from tests.test_measurement import DENSE, SLIM, TARGET, FakeRunner


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> list[Runtime]:
    """Every runtime that a fake device was asked for; it takes any batch."""
    asked: list[Runtime] = []

    class Device(FakeRunner):
        def __init__(self, runtime: Runtime) -> None:
            super().__init__(runtime)
            self.runtime = runtime
            asked.append(runtime)

        def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
            answer = super().run(job, models, **options)
            if job == "placement":
                answer["inputs"][0]["shape"] = list(self.runtime.input or (1, 3, 8, 8))
            for model in answer.get("models", []):
                batch = (self.runtime.input or (1,))[0]
                model["samples_ns"] = [ns * batch // self.runtime.threads for ns in model["samples_ns"]]
            return answer

    monkeypatch.setitem(RUNNERS, "local", Device)
    return asked


def test_every_batch_with_every_number_of_threads(runtimes: list[Runtime]) -> None:
    points = measure_sweep(SLIM, TARGET, baseline=DENSE, batches=(1, 4), threads=(1, 2))
    assert [(point.batch, point.threads) for point in points] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert points[3].measurement.runtime["threads"] == 2
    assert points[3].measurement.runtime["input"] == [4, 3, 8, 8]
    assert Runtime(threads=2, input=(4, 3, 8, 8)) in runtimes
    header, rows = sweep_rows(points)
    assert header[:5] == (
        "batch", "threads", "dense: median latency", "median latency", "latency, slim / dense"
    )  # fmt: skip
    assert [row[:2] for row in rows] == [("1", "1"), ("1", "2"), ("4", "1"), ("4", "2")]
    assert rows[2][2].startswith("8.0")
    assert rows[3][2].startswith("4.0")
    assert rows[0][4].startswith("0.500 [")
    kept = json.loads(json.dumps(sweep_to_json(points)))
    assert kept["rows"] == [list(row) for row in rows]
    assert kept["points"][2]["measurement"] == json.loads(json.dumps(points[2].measurement.to_json()))


@pytest.mark.usefixtures("runtimes")
def test_only_what_is_asked_for_varies() -> None:
    target = replace(TARGET, runtime=Runtime(threads=3, input=(2, 3, 8, 8)))
    points = measure_sweep(SLIM, target, threads=(1, 2))
    assert [(point.batch, point.threads) for point in points] == [(2, 1), (2, 2)]
    points = measure_sweep(SLIM, target, batches=(8,))
    assert [(point.batch, point.threads) for point in points] == [(8, 3)]
    assert "dense" not in " ".join(sweep_rows(points)[0])


@pytest.mark.usefixtures("runtimes")
def test_budget_and_progress_are_of_the_whole_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    import edgeprune.sweep as module

    seconds: list[float] = []
    real = module.bench

    def spy(*args: Any, **options: Any) -> Any:
        seconds.append(options["budget_seconds"])
        return real(*args, **options)

    monkeypatch.setattr(module, "bench", spy)
    steps: list[tuple[int, int, str]] = []
    measure_sweep(
        SLIM, TARGET, threads=(1, 2), budget_seconds=100.0, on_progress=lambda *step: steps.append(step)
    )
    assert seconds == [pytest.approx(50, abs=2), pytest.approx(100, abs=4)]
    assert steps[0] == (0, 70, "batch 1, threads 1: environment")
    assert steps[-1] == (70, 70, "batch 1, threads 2: done")


@pytest.mark.parametrize("values", [{"batches": (0,)}, {"threads": (1, 1)}, {"threads": (-2,)}])
def test_sweeps_of_nothing(values: dict[str, Any]) -> None:
    expected = r"could not plan the sweep: --sweep-(batch|threads) is .*, expected different whole numbers"
    with pytest.raises(UsageError, match=expected):
        measure_sweep(SLIM, TARGET, **values)


def _relu(path: Path, batch: int | str) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_real_file_with_a_fixed_batch(tmp_path: Path) -> None:
    expected = (
        r"could not sweep over the batch size: m.onnx is unable to take a batch of 2: .*1x8.*2x8.*, expected "
        r"a file whose batch size is open\. Export it with --dynamic-batch"
    )
    with pytest.raises(ArtifactError, match=expected):
        measure_sweep(_relu(tmp_path / "m.onnx", 1), TARGET, batches=(1, 2))


def _cli(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ending:
        main(["bench", *words])
    out, err = capsys.readouterr()
    return int(str(ending.value.code)), out, err


@pytest.mark.usefixtures("runtimes")
def test_sweep_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, save = str(_relu(tmp_path / "m.onnx", "N")), tmp_path / "s.json"
    words = [model, "--sweep-threads", "1,2", "--processes", "2", "--save", str(save)]
    code, out, _ = _cli(capsys, *words)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:2] == ["batch", "threads"]
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "1"], ["1", "2"]]
    assert "note: batch 1, threads 2: Only 2 processes were timed" in " ".join(out.split())
    assert lines[-1] == f"sweep: {save}"
    assert len(json.loads(save.read_text())["points"]) == 2


@pytest.mark.slow
def test_real_sweep_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(_relu(tmp_path / "m.onnx", "N"))
    save = tmp_path / "s.json"
    words = [model, "--sweep-batch", "2", "--processes", "2", "--save", str(save)]
    code, out, _ = _cli(capsys, *words)
    assert code == 0
    assert out.splitlines()[0].split()[:2] == ["batch", "threads"]
    assert out.splitlines()[1].split()[:2] == ["2", "1"]
    (point,) = json.loads(save.read_text())["points"]
    assert point["measurement"]["placement"]["inputs"][0]["shape"] == [2, 8]


@pytest.mark.usefixtures("runtimes")
def test_sweep_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(_relu(tmp_path / "m.onnx", "N"))
    code, out, _ = _cli(capsys, model, "--sweep-threads", "1,2", "--json", "--save", str(tmp_path / "s.json"))
    assert code == 0
    found = json.loads(out)
    assert [point["threads"] for point in found["points"]] == [1, 2]
    assert (found["exit_code"], found["saved"]) == (0, str(tmp_path / "s.json"))


def test_sweeps_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _cli(capsys, "m.onnx", "--sweep-batch", "1,x")
    assert code == 2
    assert "--sweep-batch is '1,x', expected whole numbers as 1,2,4" in " ".join(err.split())
    code, _, err = _cli(capsys, str(tmp_path), "--sweep-threads", "1,2")
    assert code == 2
    assert "expected an ONNX file. Name its files:" in " ".join(err.split())
