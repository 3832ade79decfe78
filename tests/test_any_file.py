"""Files that edgeprune did not make: opset 9, open sizes, several inputs, external data, no sidecar."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.artifact import Artifact, load_artifact
from edgeprune.cli.bench import tell_measurement
from edgeprune.cli.options import with_sizes
from edgeprune.errors import MeasurementError, UsageError
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.measurement_format import MEMORY_FIGURES
from edgeprune.pipeline.device import gate_on
from edgeprune.report import make_report, report_html, report_markdown
from edgeprune.runners import runner_for
from edgeprune.target import Runtime, load_target
from edgeprune.verdict import gate
from tests import hostile
from tests.conftest import edgeprune, run

TARGET = load_target("local-cpu")
DETECTORS = "EDGEPRUNE_DETECTORS"
BUDGETS = """
max_latency_p50 = "10 s"
max_latency_p99 = "10 s"
max_size = "2 MB"
max_accuracy_drop = "0.5 pp"
min_accuracy = "90 %"
max_macs = 1
max_macs_ratio = 1
max_params = 5
max_params_ratio = 0.5
max_parity_error = 1e-4
max_cpu_nodes = 0
"""
LACKING = ("accuracy_drop", "accuracy", "macs", "macs_ratio", "params", "params_ratio", "parity_error")


def foreign(folder: Path, name: str, width: int) -> Path:
    """Opset 9 with its initializers among the inputs, an image with open sizes, indices, external data."""
    random = np.random.default_rng(width)
    weights = {
        "kernel": random.standard_normal((width, 3, 3, 3)).astype(np.float32),
        "table": random.standard_normal((10, width)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gather", ["table", "ids"], ["d"]),
        helper.make_node("ReduceMean", ["d"], ["e"], axes=[1], keepdims=0),
        helper.make_node("Add", ["c", "e"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(weight, key) for key, weight in weights.items()]
    inputs = [
        hostile.value("image", ["batch", 3, "height", "width"]),
        hostile.value("ids", ["batch", None], TensorProto.INT64),
        *(hostile.value(key, list(weight.shape)) for key, weight in weights.items()),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [hostile.value("y", ["batch", width])], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    path = folder / f"{name}.onnx"
    onnx.save(made, path, save_as_external_data=True, location=f"{name}.bin", size_threshold=0)
    return path


SIZES = ("--dim", "height=16", "--dim", "width=24", "--input", "ids=2,5")


# --- the command line's sizes -------------------------------------------------------------------------------


def test_sizes_of_the_command_line_lie_over_the_targets() -> None:
    target = with_sizes(TARGET, ["1,3,8,8", "a=b=1x7"], ["height=224", "a=1=5"])
    assert target.runtime == Runtime(
        input=(1, 3, 8, 8), inputs={"a=b": (1, 7)}, dims={"height": 224, "a=1": 5}
    )
    again = with_sizes(target, ["mask=2"], ["height=8"]).runtime
    assert again.input == (1, 3, 8, 8)
    assert again.inputs == {"a=b": (1, 7), "mask": (2,)}
    assert again.dims == {"height": 8, "a=1": 5}
    assert with_sizes(TARGET, (), ()) == TARGET


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--dim", "224", "--dim is '=224', expected NAME=SIZE"),
        ("--dim", "height", "--dim is 'height', expected NAME=SIZE"),
        ("--dim", "height=", "--dim is 'height=', expected NAME=SIZE"),
        ("--dim", "height=0", "--dim is 'height=0', expected NAME=SIZE with a size of at least 1"),
        ("--dim", "height=-1", "--dim is 'height=-1'"),
        ("--dim", "height=1.5", "--dim is 'height=1.5'"),
        ("--dim", "height=1,2", "--dim is 'height=1,2'"),
        ("--dim", "height=9999999999", "--dim is 'height=9999999999'"),
        ("--dim", "height=٣", "--dim is 'height=٣'"),
        ("--dim", "=5", "--dim is '=5'"),
        ("--input", "", "--input is '', expected sizes of at least 1 as 1,3,224,224 or NAME=1,3,224,224"),
        ("--input", "1,,3", "--input is '1,,3'"),
        ("--input", "=1,3", "--input is '=1,3'"),
        ("--input", "image=1,3,H,W", "--input is 'image=1,3,H,W'"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "gate"])
def test_sizes_that_are_none(
    command: str, option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, command, "nowhere", option, text)
    assert code == 2
    assert f"could not read an option: {message}" in err


def test_sizes_are_given_once() -> None:
    with pytest.raises(UsageError, match="--dim is 'h=2', expected 'h' once"):
        with_sizes(TARGET, (), ["h=1", "h=2"])
    with pytest.raises(UsageError, match="--input is '3', expected the first input once"):
        with_sizes(TARGET, ["1", "3"], ())


@pytest.mark.parametrize("command", ["bench", "gate"])
def test_sizes_are_not_for_run_folders(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, command, str(tmp_path), "--dim", "batch=2")
    assert code == 2
    assert "--input or --dim is batch=2, expected an .onnx file" in err


# --- foreign files ------------------------------------------------------------------------------------------


def test_foreign_file_runs_at_the_sizes_asked_for(tmp_path: Path) -> None:
    path = foreign(tmp_path, "a", 8)
    target = with_sizes(TARGET, ["ids=2,5"], ["height=16", "width=24"])
    answer = runner_for(target.runtime).run("placement", [path])
    assert answer["inputs"] == [
        {"name": "image", "type": "tensor(float)", "shape": [2, 3, 16, 24]},
        {"name": "ids", "type": "tensor(int64)", "shape": [2, 5]},
    ]
    artifact = load_artifact(path)
    assert artifact.size_bytes == path.stat().st_size + (tmp_path / "a.bin").stat().st_size


def measurement(name: str, **facts: Any) -> Measurement:
    """One of a file without a sidecar."""
    untold = {"peak_bytes": None, "method": None, "why": "none"}
    return Measurement(
        target_name="t",
        target_sha256="0",
        runtime=asdict(TARGET.runtime),
        artifact=Artifact(Path(name), "0", 5),
        environment={},
        placement={"nodes": {}, "left_to_cpu": []},
        memory=dict.fromkeys((*MEMORY_FIGURES, "method"))
        | {"why": "none", "repeats": [], "arena": untold, "device": untold},
        latency_samples_s=((1.0, 1.0), (1.0, 1.0)),
        load_s=(1.0, 1.0),
        first_inference_s=(1.0, 1.0),
        **facts,
    )


def test_gate_takes_the_sizes_that_bench_took() -> None:
    asked = with_sizes(TARGET, (), ["height=224"])
    with pytest.raises(
        MeasurementError, match=r"runtime.dims is \{\}.* Give gate the --input and --dim that"
    ):
        gate_on(asked, measurement("a.onnx"))
    with pytest.raises(MeasurementError, match=r"runtime.threads is 1.* Measure with it: `edgeprune bench"):
        gate_on(replace(TARGET, runtime=replace(TARGET.runtime, threads=2)), measurement("a.onnx"))
    taken = replace(measurement("a.onnx"), runtime=asdict(asked.runtime))
    assert len(gate_on(asked, taken)) == len(TARGET.budgets)


def test_names_with_brackets_and_codes_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tell_measurement(measurement("m[red]x.onnx", notes=("a node is [/bold] and \x1b[2J",)))
    out = capsys.readouterr().out
    assert "note: a node is [/bold] and  [2J" in out
    assert "m[red]x.onnx" in out


@pytest.mark.slow
def test_foreign_files_are_measured_gated_and_reported(tmp_path: Path) -> None:
    slim, dense = foreign(tmp_path, "slim", 8), foreign(tmp_path, "dense", 64)
    (tmp_path / "t.toml").write_text(f'name = "t"\n[budgets]\n{BUDGETS}')
    common = ("--target", "./t.toml")
    found = edgeprune(
        "bench", slim.name, "--baseline", dense.name, *common, *SIZES, "--processes", "2", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    _judge(tmp_path, (*common, *SIZES))
    refused = edgeprune("gate", *common, cwd=tmp_path)
    assert refused.returncode == 3
    assert "Give gate the --input and --dim that bench was given, or measure again." in refused.stderr
    open_sizes = edgeprune("bench", slim.name, *common, "--dim", "height=16", "--json", cwd=tmp_path)
    assert open_sizes.returncode == 2
    assert "open in dimension 'width' (axis 3) of its input 'image'" in json.loads(open_sizes.stdout)["error"]
    misspelt = edgeprune("bench", slim.name, *common, *SIZES, "--dim", "hight=16", cwd=tmp_path)
    assert misspelt.returncode == 2
    assert "without an open dimension 'hight' (it has: 'batch', 'height', 'width')" in misspelt.stderr


def _judge(folder: Path, options: tuple[str, ...]) -> None:
    """Gate a measurement of files without sidecars: what lacks facts is unmeasured, and says why."""
    done = edgeprune("gate", *options, "--json", cwd=folder)
    assert done.returncode == 1, done.stderr
    verdicts = {row["budget"]["metric"]: row for row in json.loads(done.stdout)["verdicts"]}
    for metric, row in verdicts.items():
        if metric in LACKING:
            basis = metric.removesuffix("_ratio").removesuffix("_drop").replace("_", " ")
            assert row["text"].startswith(f"not measured: No sidecar tells the {basis} of "), row
            assert row["text"].endswith("`edgeprune export` writes one"), row
        elif metric == "latency_p99":
            assert "It takes 662 samples" in row["text"]
        else:
            assert row["state"] == "passed", row
    measured = load_measurement(folder / "measurement.json")
    budgets = load_target(folder / "t.toml").budgets
    report = make_report(measured, gate(budgets, measured), command="")
    for text in (report_markdown(report), report_html(report)):
        assert text.count("No sidecar tells") >= len(LACKING)
        assert ("Inputs, of the sizes asked for: image of 2x3x16x24, ids of 2x5." in text) == (
            SIZES[0] in options
        )


@pytest.mark.slow
@pytest.mark.skipif(
    DETECTORS not in os.environ, reason=f"{DETECTORS} names no folder with the face detectors"
)
def test_face_detector_and_its_twin(tmp_path: Path) -> None:
    folder = Path(os.environ[DETECTORS])
    dense = folder / "linzaer_version-RFB-320.onnx"
    slim = folder / "linzaer_version-RFB-320_simplified.onnx"
    (tmp_path / "t.toml").write_text(f'name = "t"\n[budgets]\nmax_size_ratio = 0.9{BUDGETS}')
    words = ("--target", "./t.toml", "--processes", "2")
    for model, baseline in ((slim, dense), (dense, slim)):
        done = edgeprune("bench", str(model), "--baseline", str(baseline), *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        measured = load_measurement(tmp_path / "measurement.json")
        names = [value["name"] for value in measured.placement["inputs"]]
        assert names == ["input"], "initializers are no inputs"
        if model == slim:
            _judge(tmp_path, ("--target", "./t.toml"))
        assert set(measured.placement["nodes"]) == {"CPUExecutionProvider"}
