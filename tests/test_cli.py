"""The command line: exit codes, one clear error, JSON, and help that is true."""

from __future__ import annotations

import ast
import json
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cli import cli, main
from edgeprune.cli.options import given
from edgeprune.errors import UsageError
from edgeprune.metrics import METRICS
from edgeprune.pipeline import COMMANDS, Settings
from edgeprune.schemes import SCHEMES
from tests.conftest import run


def network(path: Path, width: int) -> Path:
    """A small convolutional ONNX file."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((width, 3, 3, 3)).astype(np.float32),
        "w2": random.standard_normal((10, width, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks and the measurement of one beside the other."""
    folder = tmp_path_factory.mktemp("bench")
    dense, slim = network(folder / "dense.onnx", 64), network(folder / "slim.onnx", 16)
    with pytest.raises(SystemExit) as ending:
        main(
            [
                "bench",
                str(slim),
                "--baseline",
                str(dense),
                "--processes",
                "3",
                "--save",
                str(folder / "m.json"),
            ]
        )
    assert ending.value.code == 0
    return folder


def target(folder: Path, budgets: str, runtime: str = 'provider = "CPUExecutionProvider"') -> str:
    path = folder / "target.toml"
    path.write_text(f'name = "t"\n[runtime]\n{runtime}\n[budgets]\n{budgets}\n')
    return str(path)


@pytest.mark.parametrize(
    ("budgets", "runtime", "code", "text"),
    [
        ("max_size_ratio = 0.9", 'provider = "CPUExecutionProvider"', 0, "passed"),
        ('max_size = "1 kB"', 'provider = "CPUExecutionProvider"', 1, r"missed by .*kB"),
        ('max_latency_p50 = "1 us"', 'provider = "CPUExecutionProvider"', 1, "missed by"),
        ('max_accuracy_drop = "1 pp"', 'provider = "CPUExecutionProvider"', 1, "unmeasured"),
        ("max_sise_ratio = 0.9", 'provider = "CPUExecutionProvider"', 2, "max_size_ratio"),
        ('max_size = "1 kilo"', 'provider = "CPUExecutionProvider"', 2, "max_size"),
        ("max_size = 3", 'provider = "CPUExecutionProvider"', 2, "unit"),
        ("max_size_ratio = 0.9", 'provider = "CUDAExecutionProvider"', 3, "CUDAExecutionProvider"),
        ("max_size_ratio = 0.9", "threads = 4", 3, "runtime.threads"),
    ],
)
def test_gate_keeps_its_exit_codes_apart(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    budgets: str, runtime: str, code: int, text: str,
) -> None:  # fmt: skip
    file = target(tmp_path, budgets, runtime)
    found, out, err = run(capsys, "gate", str(measured / "m.json"), "--target", file)
    assert found == code, out + err
    assert re.search(text, out + err)
    assert "Traceback" not in err
    found, out, err = run(capsys, "gate", str(measured / "m.json"), "--target", file, "--json")
    assert json.loads(out)["exit_code"] == code == found


def test_bench_without_latency_saves_no_times(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = str(tmp_path / "m.json")
    code, out, _ = run(capsys, "bench", str(measured / "slim.onnx"), "--no-latency", "--save", save)
    assert code == 0
    assert "The network has " in out
    assert "Not measured: median latency, latency p95, load time. Nothing was timed." in " ".join(out.split())
    assert json.loads(Path(save).read_text())["latency_samples_s"] == []


@pytest.mark.parametrize("words", [("--instructions",), ()])
def test_bench_without_what_counts_instructions_ends_with_3(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    file = target(tmp_path, "" if words else "max_instructions = 5")
    code, _, err = run(capsys, "bench", str(measured / "slim.onnx"), "--target", file, *words)
    assert code == 3
    assert "could not count instructions: " in err
    if platform.machine() == "x86_64":
        assert "The package valgrind brings it: apt install valgrind." in err
    code, _, err = run(
        capsys, "bench", str(measured / "slim.onnx"), "--target", target(tmp_path, "", "threads = 2"),
        "--instructions",
    )  # fmt: skip
    assert code == 2
    assert "runtime.threads is 2, expected 1" in err


def test_bench_prints_what_it_saves(measured: Path) -> None:
    saved = json.loads((measured / "m.json").read_text())
    assert len(saved["latency_samples_s"]) == 3
    assert saved["baseline"]["artifact"]["path"] == "dense.onnx"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "--model is missing"),
        (["prune", "--model", "resnet20"], "Did you mean '--help'? Try"),
        (["run", "--model", "resnet2O"], "Did you mean resnet"),
        (["run", "--model", "resnet20", "--data", "cifar10:/nowhere"], "cifar"),
        (["run", "--model", "resnet20", "--scheme", "magic"], "proximal-ns"),
        (["run", "--model", "resnet20", "--scheme-option", "l1"], "KEY=VALUE"),
        (["run", "--model", "resnet20", "--max-size", "12"], "--max-size"),
        (["run", "--model", "resnet20", "--device", "tpu"], "auto, cpu or cuda"),
        (["run", "--model", "resnet20", "--target", "my-phone"], "local-cpu"),
        (
            ["run", "--model", "resnet20", "--against", "none.json"],
            "could not read the release file: none.json",
        ),
        (["run", "--model", "resnet20", "--num-classes", "3"], "at least 10"),
        (["train", "--weights", "w.pt", "--model", "resnet20"], "w.pt"),
        (["prune"], "not a run folder"),
        (["report", "nowhere"], "not a run folder"),
        (["bench"], "MODEL is missing"),
        (["bench", "nowhere.onnx"], "nowhere.onnx is not a file"),
        (["gate", "nowhere.json"], "nowhere.json"),
        (["groups"], "--model is missing"),
        (["groups", "--model", "resnet20", "--input", "1,x"], "sizes as 1,3,224,224"),
        (["frobnicate"], "No such command"),
        (["run", "--epochs", "-1"], "--epochs"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    words: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("edgeprune: ")
    assert text in err
    assert "Traceback" not in err
    code, out, _ = run(capsys, *words, "--json")
    assert code == json.loads(out)["exit_code"] == 2
    assert text in json.loads(out)["error"]
    # Nothing half-made is left that the corrected command would trip over.
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path.name not in ("run.json", ".lock", "events.jsonl")
    ]


def test_an_unwritable_place_is_the_users_to_mend(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    words = ["bench", str(measured / "slim.onnx"), "--processes", "2", "--save", str(file / "m.json")]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "could not read or write" in err


def test_groups_targets_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "groups", "--model", "resnet20")
    assert code == 0
    assert "layer3.2.conv1" in out
    assert "269,722 params, 40,551,040 MACs" in out
    code, out, _ = run(capsys, "targets", "--json")
    assert json.loads(out)["targets"]["local-cpu"]["provider"] == "CPUExecutionProvider"
    code, out, _ = run(capsys, "targets")
    assert "raspberry-pi-5" in out
    code, out, _ = run(capsys, "doctor", "--no-noise", "--json")
    found = json.loads(out)
    assert found["targets"]["local-cpu"] is True
    assert found["targets"]["raspberry-pi-5"] is False
    code, out, _ = run(capsys, "doctor", "--no-noise")
    assert "onnxruntime" in out


def test_groups_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "groups", "--model", "resnet20", "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 0
    first = found["groups"][0]
    assert first["members"][0] == {
        "tensor": "conv1.weight", "axis": 0, "role": "out", "indices": [[unit] for unit in range(16)]
    }  # fmt: skip
    assert (first["name"], first["size"], first["frozen_because"]) == ("conv1", 16, None)
    assert first["params_share"] == first["params"] / 269_722
    assert first["macs_share"] == first["macs"] / 40_551_040
    totals = found["totals"]
    assert (totals["params"], totals["macs"], totals["macs_without_weight"]) == (269_722, 40_551_040, 0)
    free = [group for group in found["groups"] if group["frozen_because"] is None]
    assert (totals["free_groups"], totals["free_units"]) == (len(free), sum(g["size"] for g in free))
    frozen = [group for group in found["groups"] if group["frozen_because"] is not None]
    assert (totals["frozen_groups"], totals["frozen_units"]) == (len(frozen), sum(g["size"] for g in frozen))
    for reason, kind in totals["frozen_because"].items():
        these = [group for group in frozen if group["frozen_because"] == reason]
        assert kind == {"groups": [g["name"] for g in these], "units": sum(g["size"] for g in these)}
    reach = totals["in_reach"]
    assert reach["params_share"] == reach["params"] / 269_722 < 1
    assert reach["macs_share"] == reach["macs"] / 40_551_040 < 1


def test_every_option_is_a_setting_and_every_default_in_help_is_true() -> None:
    defaults: dict[str, Any] = Settings("m").to_json()
    run_command = cli.commands["run"]
    checked = 0
    for option in run_command.params:
        if option.name in ("out", "as_json", "download"):
            continue
        assert option.name in defaults, option.name
        match = re.search(r"\[default: ([\w.-]+)\]", option.help or "")  # type: ignore[attr-defined]
        own = defaults[str(option.name)]
        if match and own is not None and not isinstance(own, (bool, dict, list)):
            stated: Any = match.group(1)
            assert (float(stated) if isinstance(own, float) else type(own)(stated)) == own, option.name
            checked += 1
    assert checked >= 10
    assert set(COMMANDS) | {
        "run",
        "sweep",
        "release",
        "compare",
        "verify",
        "convert",
        "widths",
        "groups",
        "targets",
        "doctor",
    } == set(cli.commands)
    scheme = next(option for option in run_command.params if option.name == "scheme")
    assert all(name in str(scheme.help) for name in SCHEMES)  # type: ignore[attr-defined]


def test_omega_is_another_name_of_min_share() -> None:
    prune = cli.commands["prune"]
    for name in ("--omega", "--min-share"):
        assert prune.make_context("prune", ["--out", "x", name, "0.25"]).params["min_share"] == 0.25


def test_given_converts_and_refuses() -> None:
    options = {
        "max_size_bytes": "300 kB",
        "scheme_options": ("l1=0.1", "beta=2"),
        "keep": ("a",),
        "model": None,
    }
    assert given(options) == {
        "max_size_bytes": 300_000,
        "scheme_options": {"l1": "0.1", "beta": "2"},
        "keep": ("a",),
    }
    with pytest.raises(UsageError, match="--scheme-option is '=1', expected KEY=VALUE"):
        given({"scheme_options": ("=1",)})


def test_every_metric_can_be_gated_from_a_file(
    tmp_path: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = {
        "time": '"1 ms"', "rate": '"30 /s"', "size": '"1 MB"', "count": "5", "fraction": '"90 %"',
        "drop": '"1 pp"', "ratio": "0.5", "error": "1e-4",
    }  # fmt: skip
    budgets = "\n".join(f"max_{metric.name} = {examples[metric.quantity]}" for metric in METRICS.values())
    code, out, _ = run(
        capsys, "gate", str(measured / "m.json"), "--target", target(tmp_path, budgets), "--json"
    )
    rows = json.loads(out)["verdicts"]
    assert code == 1
    assert len(rows) == len(METRICS)


def test_only_the_command_line_prints() -> None:
    package = Path(__file__).parents[1] / "edgeprune"
    for path in package.rglob("*.py"):
        if {"cli", "worker"} & set(path.parts):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not printing, path


def test_a_missing_host_package_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("edgeprune.cli.stages.go", missing)
    code, _, err = run(capsys, "train", "--model", "resnet20")
    assert code == 2
    assert 'no torch. Install what is missing with `pip install "edgeprune[train]"`' in err

    def ours(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'edgeprune.tpyo'", name="edgeprune.tpyo")

    monkeypatch.setattr("edgeprune.cli.stages.go", ours)
    with pytest.raises(ModuleNotFoundError, match="tpyo"):  # a bug of ours is not dressed up
        main(["train", "--model", "resnet20"])
