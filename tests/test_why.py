"""`edgeprune gate --why` through the real command line, and what it says of each metric."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeprune.artifact import Artifact
from edgeprune.errors import ArtifactError
from edgeprune.explanation import Known, explain
from edgeprune.measurement import Measurement, load_measurement
from edgeprune.metrics import GATED, METRICS, Estimate
from edgeprune.onnx_nodes import Node
from edgeprune.pipeline.explaining import _told, check_artifacts
from edgeprune.report import why_lines
from edgeprune.target import Budget, load_target
from edgeprune.verdict import Verdict
from tests.conftest import TARGET, TINY, run

MISSED = """
name = "strict"
channel_multiple = 1
[runtime]
provider = "CPUExecutionProvider"
[budgets]
max_size = "10 kB"
max_macs_ratio = 0.2
min_accuracy = "99.9 %"
max_parity_error = 1e-12
max_params = 100000
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny network; nothing is timed."""
    place = tmp_path_factory.mktemp("why")
    (place / "tiny.py").write_text(TINY)
    (place / "test.toml").write_text(TARGET)
    (place / "strict.toml").write_text(MISSED)
    words = [
        "run", "--model", "tiny:net", "--scheme", "magnitude", "--epochs", "0", "--max-macs-ratio", "0.7",
        "--target", "test.toml", "--no-latency", "--no-refit", "--processes", "2", "--out", "run",
    ]  # fmt: skip
    from edgeprune.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", [str(place), *sys.path])
        patch.delitem(sys.modules, "tiny", raising=False)
        patch.setattr("edgeprune.onnx_export._simplified", lambda _: (None, "left out to save time"))
        with pytest.raises(SystemExit) as ending:
            main(words)
    assert ending.value.code == 0
    return place


def gated(
    folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    patch.chdir(folder)
    patch.setenv("COLUMNS", "80")
    patch.setattr(sys, "path", [str(folder), *sys.path])
    code, out, _ = run(capsys, "gate", *words)
    return code, out


def test_a_run_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = gated(folder, monkeypatch, capsys, "run", "--target", "strict.toml", "--why")
    assert code == 1
    lines = out.splitlines()
    commands = [line for line in lines if "Plan again:" in line]
    assert max(len(line) for line in lines if line not in commands) <= 80
    assert "Where it sits: slim.onnx" in out
    assert any(line.startswith("Conv ") and "%" in line and "µs" in line for line in lines)
    assert "by channel group" in out
    assert any("edgeprune run --out run --max-size" in line for line in commands)
    assert any("--max-macs-ratio 0.2" in line for line in commands)
    assert "Nothing is known on where parity error comes from." in out
    assert "The dense network misses it too" in out
    assert "max_params:" not in out  # a budget that is met needs no advice

    code, out = gated(folder, monkeypatch, capsys, "run", "--target", "strict.toml", "--why", "--json")
    why = json.loads(out)["why"]["strict"]
    rows = {row["name"]: row for row in why["groups"]}
    assert set(rows) == {"0", "3", "8"}
    assert all(0 < share <= 1 for row in rows.values() for share in row["shares"])
    assert rows["8"]["frozen_because"]
    macs = next(advice for advice in why["missed"] if advice["key"] == "max_macs_ratio")
    assert macs["saves"] >= macs["needed"] > 0
    assert {change["group"] for change in macs["changes"]} <= {"0", "3"}
    schema = json.loads(files("edgeprune").joinpath("schemas", "verdicts.schema.json").read_text("utf-8"))
    jsonschema.validate(json.loads(out), schema)
    nodes = {row["op_type"]: row for row in why["operators"]}
    assert nodes["Conv"]["nodes"] == 2
    assert nodes["Conv"]["time_s"] > 0


def test_two_targets_are_explained_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--target", "strict.toml", "--target", "test.toml", "--why", "--json"]
    code, out = gated(folder, monkeypatch, capsys, *words)
    assert code == 1
    why = json.loads(out)["why"]
    assert {name: len(one["missed"]) for name, one in why.items()} == {"strict": 4, "test": 0}
    assert why["test"]["operators"]


def test_without_why_nothing_of_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = gated(folder, monkeypatch, capsys, "run", "--target", "strict.toml", "--json")
    assert "why" not in json.loads(out)


def test_what_is_advised_meets_the_budget(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The groups that it names, cut as far as it says, have no more multiply-adds than it says."""
    import torch

    from edgeprune.cost import count_macs
    from edgeprune.groups import find_groups
    from edgeprune.selection import make_plan
    from edgeprune.surgery import load_slim, slim

    _, out = gated(folder, monkeypatch, capsys, "run", "--target", "strict.toml", "--why", "--json")
    found = json.loads(out)["why"]["strict"]
    advice = next(one for one in found["missed"] if one["key"] == "max_macs_ratio")
    net, example = load_slim(folder / "run" / "slim.safetensors"), torch.rand(1, 3, 32, 32)
    groups = find_groups(net, example)
    after = {change["group"]: change["after"] for change in advice["changes"]}
    scores = {
        group.name: torch.arange(group.size) >= group.size - after[group.name]
        for group in groups
        if group.name in after
    }
    plan = make_plan(
        net, groups, {name: one.float() for name, one in scores.items()}, example, channel_multiple=1
    )
    smaller = count_macs(slim(net, plan), example)
    assert count_macs(net, example) - smaller == pytest.approx(advice["saves"], rel=1e-9)


def test_a_measurement_beside_its_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("measurement.json", "slim.onnx", "slim.onnx.json"):
        shutil.copy(folder / "run" / name, tmp_path)
    shutil.copy(folder / "strict.toml", tmp_path)
    code, out = gated(tmp_path, monkeypatch, capsys, "measurement.json", "--target", "strict.toml", "--why")
    assert code == 1
    assert "by layer" in out
    assert "only a run folder tells" in out
    # Another file in its place is not taken for it.
    shutil.copy(folder / "run" / "dense.onnx", tmp_path / "slim.onnx")
    (tmp_path / "slim.onnx.json").unlink()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "gate", "--target", "strict.toml", "--why")
    assert code == 1  # the verdicts stand
    flat = " ".join(out.split())
    assert "Where it sits is not known" in flat
    assert "another file than the one that was measured" in flat
    (tmp_path / "slim.onnx").unlink()
    code, out, _ = run(capsys, "gate", "--target", "strict.toml", "--why", "--json")
    assert code == 1
    assert "slim.onnx is not a file" in json.loads(out)["why"]["strict"]["error"]


def test_a_run_without_notes_says_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    about = tmp_path / "copy" / "run" / "run.json"
    content = json.loads(about.read_text())
    del content["stages"]["plan"]["facts"]["groups"]
    about.write_text(json.dumps(content))
    _, out = gated(tmp_path / "copy", monkeypatch, capsys, "run", "--target", "strict.toml", "--why")
    assert "`edgeprune prune --out run` notes them" in out.replace("\n", " ")

    about.write_text((folder / "run" / "run.json").read_text())
    whole = (folder / "run" / "scores.npz").read_bytes()
    for name, content in (
        ("scores.npz", b"nothing"), ("scores.npz", whole[:-40]), ("scores.npz", b""), ("plan.json", b"{}"),
        ("plan.json", b"[]"),
    ):  # fmt: skip
        (tmp_path / "copy" / "run" / name).write_bytes(content)
        code, out, _ = run(capsys, "gate", "run", "--target", "strict.toml", "--why")
        assert code == 1
        assert "could not read the run's plan and scores" in " ".join(out.split())


def test_the_command_to_plan_again_can_be_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "run").rename(tmp_path / "copy" / "a b;c")
    _, out = gated(tmp_path / "copy", monkeypatch, capsys, "a b;c", "--target", "strict.toml", "--why")
    commands = [line for line in out.splitlines() if "Plan again:" in line]
    assert commands
    assert all("edgeprune run --out 'a b;c' --max-" in line for line in commands)


def test_what_cannot_be_explained_is_refused(folder: Path, tmp_path: Path) -> None:
    one = load_measurement(folder / "run" / "measurement.json")
    with pytest.raises(ArtifactError, match=r"could not gate the ONNX file: .* is of another file"):
        check_artifacts([one], [folder / "run" / "dense.onnx"])
    check_artifacts([one], [folder / "run" / "slim.onnx"])  # the control
    check_artifacts([one], [folder / "run" / "dense.onnx", folder / "run" / "slim.onnx"])
    check_artifacts([one], [])
    own = tmp_path / "slim.ort"
    shutil.copy(folder / "run" / "slim.onnx", own)
    told = _told(folder / "run" / "measurement.json", (), own, load_target(folder / "strict.toml"), None)
    assert isinstance(told, str)
    assert told.startswith("could not say where the figures come from")
    assert "in onnxruntime's own format" in told


def test_an_artifact_is_for_measurements_in_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = run(capsys, "gate", "run", "--artifact", "run/slim.onnx")
    assert code == 2
    assert "could not gate: --artifact is run/slim.onnx" in " ".join(err.split())


# --- each metric ------------------------------------------------------------------------------------------


class Fake(Measurement):
    """A measurement in which every metric has a value, made of these."""

    def value(self, metric: str) -> float | Estimate | None:
        return {"throughput": Estimate(100.0, 90.0, 110.0), "latency_p50": Estimate(0.01, 0.009, 0.011)}.get(
            metric, 0.5 if GATED[metric].quantity in ("ratio", "fraction", "drop") else 1000.0
        )


def fake() -> Fake:
    artifact = Artifact(
        Path("slim.onnx"), "", 1000, macs=1000, params=1000, provenance={"macs_by_node": {"c": 1000}}
    )
    return Fake("t", "", {"precision": "fp32"}, artifact, {}, {}, {}, (), (), ())


PLACES = [{"tensor": "a.weight", "axis": 0, "role": "out", "length": 10, "width": 1}]
KNOWN = Known(
    groups=[
        {"name": "a", "kept": 10, "size": 20, "frozen_because": None, "macs_share": 1.0, "places": PLACES}
    ],
    scores={"a": [1.0] * 10}, score_totals={"a": 40.0}, folder="run",
)  # fmt: skip
NODES = (Node("c", "Conv", ("x",), ("y",), ("a.weight",), 900),)
PROFILE = {"kernels": [{"name": "c", "op_type": "Conv", "time_s": 0.002, "tensor_bytes": 2000}]}


def missed(metric: str, share: float = 0.25) -> tuple[Verdict, ...]:
    """A verdict on a budget that is missed by a share of what was measured."""
    is_max = not metric.startswith("throughput") and ("accuracy" not in metric or "_drop" in metric)
    value = fake().value(metric)
    worst = value if isinstance(value, float) else value.high if is_max else value.low  # type: ignore
    limit = worst * (1 - share) if is_max else worst / (1 - share)
    key = f"{'max' if is_max else 'min'}_{metric}"
    return (Verdict(Budget(key, metric, is_max, limit, "x"), value, "failed", -1.0, "missed"),)


SPREAD = ("size", "params", "macs", "latency", "throughput", "instructions", "peak_memory", "arena_memory",
          "device_memory")  # fmt: skip


@pytest.mark.parametrize("metric", GATED)
def test_every_metric_has_advice_or_says_that_there_is_none(metric: str) -> None:
    found = explain(fake(), missed(metric), NODES, PROFILE, KNOWN)
    (advice,) = found.missed
    assert advice.key.endswith(metric)
    if metric.startswith(SPREAD):
        assert advice.needed is not None
        assert advice.of is not None
        assert advice.needed == pytest.approx(advice.of * 0.25)
        (change,) = advice.changes
        assert (change.group, change.before) == ("a", 10)
        assert advice.saves >= advice.needed * (1 - 1e-9)
        # No unit more than it takes: one fewer would not do.
        per_unit = advice.saves / (change.before - change.after)
        assert advice.saves - per_unit < advice.needed
    elif "accuracy" in metric:
        assert "a keeps 10 of 20 units, 25% of its score." in advice.lines
        assert advice.needed is None
    else:
        root = metric.removesuffix("_ratio").removesuffix("_vs_release")
        assert advice.lines == (f"Nothing is known on where {METRICS[root].text} comes from.",)
    assert all(len(line) <= 80 or "Plan again" in line for line in why_lines(found))
    json.dumps(found.to_json(), allow_nan=False)


def test_what_passed_or_was_not_measured_gets_no_advice() -> None:
    budget = Budget("max_size", "size", True, 10.0, "10 B")
    verdicts = (
        Verdict(budget, 5.0, "passed", 5.0, ""),
        Verdict(budget, None, "unmeasured", None, "not measured"),
    )
    assert explain(fake(), verdicts, NODES, PROFILE, KNOWN).missed == ()


def test_without_a_profile_it_says_why() -> None:
    why = "could not profile the network: runtime.runner is 'adb'."
    found = explain(fake(), missed("latency_p50"), NODES, why, KNOWN)
    assert found.time_s is None
    assert found.missed[0].lines == ("How it is spread over the network is not known; see the notes.",)
    text = "\n".join(why_lines(found))
    assert "No times: could not profile the network" in text
    # Bytes and multiply-adds are known all the same; instructions then go with these.
    found = explain(fake(), missed("instructions"), NODES, why, KNOWN)
    assert found.missed[0].changes


def test_a_budget_out_of_reach_says_so() -> None:
    known = Known(KNOWN.groups, KNOWN.scores, KNOWN.score_totals, step=8, folder="run")
    (advice,) = explain(fake(), missed("size", 0.9), NODES, PROFILE, known).missed
    assert [change.after for change in advice.changes] == [8]
    assert advice.lines[0].startswith("No more can go at widths of 8: fp16 or int8")


def test_a_file_without_a_sidecar_says_what_is_not_known() -> None:
    bare: Any = fake()
    object.__setattr__(bare, "artifact", Artifact(Path("other.onnx"), "", 1000))
    found = explain(bare, (), NODES, PROFILE, Known(why_not="Alone."))
    text = "\n".join(why_lines(found))
    assert "No multiply-adds by node" in text
    assert "Alone." in text
    assert found.groups[0].shares[1] is None


@pytest.mark.parametrize(("extra_s", "said"), [(0.0002, False), (0.0020, True)])
def test_time_that_belongs_to_no_layer_is_said(extra_s: float, said: bool) -> None:
    extra = {"name": "ReorderOutput", "op_type": "ReorderOutput", "time_s": extra_s, "tensor_bytes": None}
    found = explain(fake(), (), NODES, {"kernels": [*PROFILE["kernels"], extra]}, KNOWN)
    assert (
        any("50% of the time is in kernels that belong to no layer" in note for note in found.notes) is said
    )


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_times_of_a_gpu_are_not_what_they_seem(provider: str) -> None:
    one = fake()
    one.runtime["provider"] = provider
    notes = explain(one, (), NODES, PROFILE, KNOWN).notes
    assert any("handing it its work" in note for note in notes) is provider.startswith("CUDA")
