"""The pipeline: files, skipping, and what is left after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import onnx
import pytest
import torch
from safetensors.torch import load_file

from edgeprune.errors import RunError, UsageError
from edgeprune.files import TEMPORARY, write_json
from edgeprune.pipeline import COMMANDS, STAGES, Settings
from edgeprune.pipeline.device import mobile_story, refit_story
from edgeprune.pipeline.folder import RunFolder, is_run_folder, new_run, open_run
from edgeprune.pipeline.host import scheme_of
from edgeprune.pipeline.recipes import batch_size_of, recipe_of
from edgeprune.schemes import ProximalNS
from edgeprune.training import find_preset
from edgeprune.training.recipe import Part
from tests.conftest import RUN, edgeprune, run

HASHED = (
    "dense.safetensors", "scores.npz", "sparse.safetensors", "plan.json", "pruned.safetensors",
    "refitted.safetensors", "slim.safetensors",
    "dense.onnx", "dense.onnx.json", "slim.onnx", "slim.onnx.json",
)  # fmt: skip

ONE_OF_EACH = ("train:epoch", "refit:writing", "bench:record")
MANY = tuple(
    f"{stage.name}:{when}"
    for stage in STAGES
    for when in ("begin", "epoch", "writing", "record")
    if not stage.wanted and (when != "epoch" or stage.name in ("train", "score", "finetune"))
)


def hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in HASHED}


def kill_at(moments: tuple[str, ...], workplace: Path) -> str:
    driver = Path(__file__).with_name("kill_driver.py")
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(workplace)])
    done = subprocess.run(
        [sys.executable, str(driver), "killed", *moments],
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("moments", [ONE_OF_EACH, MANY], ids=["few", "many"])
def test_a_run_that_is_killed_at_every_stage_ends_with_the_same_files(
    workplace: Path, moments: tuple[str, ...]
) -> None:
    whole = edgeprune("run", *RUN, "--out", "whole", cwd=workplace)
    assert whole.returncode == 0, whole.stderr
    out = kill_at(moments, workplace)
    # Each process really died at its moment: a driver that kills nobody would prove nothing.
    assert out.splitlines() == [f"{moment} signal 9" for moment in moments]
    last = edgeprune("run", *RUN, "--out", "killed", cwd=workplace)
    assert last.returncode == 0, last.stderr
    assert hashes(workplace / "killed") == hashes(workplace / "whole")
    left = [path.name for path in (workplace / "killed").iterdir()]
    assert not [name for name in left if name.startswith(TEMPORARY) or name.endswith(".checkpoint")]
    assert sorted(left) == sorted(path.name for path in (workplace / "whole").iterdir())

    # Nothing has changed, except a file that somebody has written over: its stage alone runs again.
    (workplace / "killed" / "verdicts.json").write_text("{}")
    again = edgeprune("run", *RUN, "--out", "killed", cwd=workplace)
    assert "gate      done" in again.stderr
    assert again.stderr.count("skipped") == sum(not stage.wanted for stage in STAGES) - 1


def test_stages_alone_take_their_settings_from_the_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: what differs from a process of its own is the time that the imports take."""
    monkeypatch.setattr("edgeprune.onnx_export._simplified", lambda _: (None, "left out to save time"))
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", [str(workplace), *sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    assert run(capsys, "train", *RUN[:6], "--out", "run")[0] == 0
    code, _, early = run(capsys, "export", "--out", "run")
    assert code == 2
    assert "edgeprune finetune --out run" in early.replace("\n", " ")
    assert not (workplace / "run" / "dense.onnx").exists()  # said before anything is exported
    prune = ["prune", "--scheme", "magnitude", "--max-params-ratio", "0.6", "--target", "test.toml"]
    _, out, _ = run(capsys, *prune, "--out", "run", "--json")
    facts = json.loads(out)["stages"]
    assert facts["plan"]["slim_params"] <= 0.6 * facts["plan"]["dense_params"]
    # For the report: the width of every layer, and what the search for the budget has seen.
    widths = list(facts["plan"]["widths"].values())
    assert [dense for dense, _ in widths] == [16, 24, 10]
    assert sum(slim for _, slim in widths) < 50
    assert facts["plan"]["threshold"] in [probe["threshold"] for probe in facts["plan"]["search"]]
    # What a threshold on magnitudes cuts is made up for in part; both files are there.
    done = facts["refit"]["refit"]
    assert done["kept"] != "nothing"
    assert done["errors"][done["kept"]] < done["errors"]["nothing"]
    before, after = (load_file(workplace / "run" / f"{name}.safetensors") for name in ("pruned", "refitted"))
    assert not all(torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))
    _, out, err = run(capsys, "prune", "--no-refit", "--out", "run", "--json")
    assert json.loads(out)["stages"]["refit"] == {}
    assert err.count("skipped") == 3
    after = load_file(workplace / "run" / "refitted.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))
    assert run(capsys, "finetune", "--epochs", "1", "--out", "run")[0] == 0
    assert run(capsys, "export", "--dynamic-batch", "--out", "run")[0] == 0
    assert json.loads((workplace / "run" / "slim.onnx.json").read_text())["input_shape"][0] == -1
    monkeypatch.delitem(sys.modules, "tiny", raising=False)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ("weights", "new weights (1 of 2 layers); on held-out images the outputs differ"),
        ("norms", "new norms; on"),
        ("nothing", "the weights stay as they were; on held-out"),
    ],
)
def test_the_report_says_what_a_refit_has_done(kept: str, text: str) -> None:
    changed = kept == "weights"
    layers = [{"ridge": 0.1 if changed else None}, {"ridge": None}]
    story = refit_story({"kept": kept, "errors": {"nothing": 0.5, kept: 0.25}, "layers": layers})
    assert story.startswith(text)
    assert "by 25.00 % of their variance (" in story
    assert ("(50.00 % without refit)" in story) is (kept != "nothing")


def test_settings_make_the_command_that_makes_them() -> None:
    settings = Settings(
        "resnet20", data="cifar10:some where", keep=("layer1.*",), scheme_options={"l1": 0.1}, distill=False,
        max_size_bytes=300_000, dynamic_batch=True, min_share=0.25, instructions=True, latency=False,
        recipe="quick", ema=0.99, warmup_epochs=0.5, compile=False, patience=3, checkpoint_steps=50,
    )  # fmt: skip
    command = settings.command("runs/x")
    for part in (
        "--data 'cifar10:some where'",
        "--keep 'layer1.*'",
        "--scheme-option l1=0.1",
        "--no-distill",
        "--max-size '300000 B'",
        "--dynamic-batch",
        "--min-share 0.25",
        "--instructions --no-latency",
        "--recipe quick --warmup-epochs 0.5 --ema 0.99 --patience 3 --no-compile --checkpoint-steps 50",
        "--out runs/x",
    ):
        assert part in command
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises(UsageError, match="settings: a key is speed, expected the keys against, batch_size"):
        Settings.from_json({"model": "resnet20", "speed": 1})
    with pytest.raises(UsageError, match="model is missing"):
        Settings.from_json({})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "the value is null, expected a table of settings"),
        ([], "the value is [], expected a table of settings"),
        ({"model": 3}, "model is 3, expected str"),
        ({"model": "m", "epochs": "two"}, 'epochs is "two", expected int | None'),
        ({"model": "m", "epochs": True}, "epochs is true, expected int | None"),
        ({"model": "m", "keep": None}, "keep is null"),
        ({"model": "m", "keep": [1]}, "keep is"),
        ({"model": "m", "latency": 1}, "latency is 1"),
        ({"model": "m", "scheme_options": []}, "scheme_options is"),
    ],
)
def test_settings_of_another_kind_are_refused(content: Any, text: str) -> None:
    assert Settings.from_json({"model": "m", "max_macs_ratio": 1, "epochs": None}).max_macs_ratio == 1
    with pytest.raises(UsageError, match=f"could not read the run's settings: {re.escape(text)}"):
        Settings.from_json(content)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        (Settings("m"), (30, 30, 10)),
        (Settings("m", epochs=2), (2, 2, 2)),
        (Settings("m", epochs=2, weights="w"), (0, 2, 2)),
        (Settings("m", epochs=2, weights="w", train_epochs=1, prune_epochs=0, finetune_epochs=3), (1, 0, 3)),
        (Settings("m", recipe="proximal-ns-cifar"), (160, 160, 160)),
        (Settings("m", recipe="apib-cifar", weights="w", finetune_epochs=2), (0, 150, 2)),
    ],
)
def test_epochs(settings: Settings, epochs: tuple[int, int, int]) -> None:
    assert tuple(recipe_of(settings, part).epochs for part in get_args(Part)) == epochs


def test_a_setting_beats_the_recipe_and_only_then() -> None:
    plain = Settings("m", recipe="quick")
    preset = find_preset("quick")
    assert [recipe_of(plain, part) for part in get_args(Part)] == [preset.part(p) for p in get_args(Part)]
    own = Settings("m", recipe="quick", label_smoothing=0.0, ema=0.9, compile=True, train_lr=0.3)
    changed = recipe_of(own, "dense")
    assert changed == preset.dense.changed(label_smoothing=0.0, ema=0.9, compile=True, lr=0.3)
    assert recipe_of(own, "finetune").lr == preset.finetune.lr
    assert (batch_size_of(plain), batch_size_of(Settings("m", batch_size=7))) == (128, 7)
    with pytest.raises(UsageError, match="find the recipe: its name is 'papers', expected one of default"):
        recipe_of(Settings("m", recipe="papers"), "dense")
    with pytest.raises(UsageError, match="mixup is -1"):
        recipe_of(Settings("m", mixup=-1), "dense")


def test_a_scheme_that_trains_takes_from_the_recipe_what_its_options_do_not_say() -> None:
    def scheme(**settings: Any) -> Any:
        return scheme_of(SimpleNamespace(run=SimpleNamespace(settings=Settings("m", **settings))))

    plain = ProximalNS()
    assert scheme() == dataclasses.replace(plain, epochs=30)
    assert scheme(recipe="proximal-ns-cifar") == plain  # the papers' values are its own, too
    quick = find_preset("quick").sparse
    found = scheme(recipe="quick", scheme_options={"lr": "0.02"}, seed=3)
    assert (found.epochs, found.lr, found.schedule, found.seed) == (quick.epochs, 0.02, quick.schedule, 3)
    assert scheme(scheme="magnitude", recipe="quick").name == "magnitude"


def test_every_stage_reads_what_an_earlier_one_writes() -> None:
    written: set[str] = set()
    names = set(Settings("m").to_json())
    for stage in STAGES:
        assert set(stage.reads) <= written
        assert set(stage.settings) <= names
        written |= set(stage.writes)
    assert COMMANDS == ("train", "prune", "finetune", "export", "bench", "gate", "report")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="a folder with other files"):
        new_run(tmp_path, Settings("resnet20"))
    with pytest.raises(RunError, match="not a run folder"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="is a file, expected a folder"):
        new_run(tmp_path / "thesis.txt", Settings("resnet20"))


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", Settings("resnet20"))
    run.save()
    assert is_run_folder(run.path)
    assert open_run(run.path).settings == run.settings
    (run.path / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="of another format, expected format 1"):
        open_run(run.path)
    for stages in ([], {"train": None}, {"train": {}}, {"train": {"inputs": "", "outputs": [], "facts": {}}}):
        write_json(run.path / "run.json", {"format": 1, "settings": {"model": "m"}, "stages": stages})
        with pytest.raises(RunError, match="of another format, expected format 1"):
            open_run(run.path)
    (run.path / "run.json").write_text('{"format": 1, "stages": {}}')
    with pytest.raises(RunError, match="of another format, expected format 1"):
        open_run(run.path)
    (run.path / "run.json").write_text('{"format": 1, "stages": {}, "settings": 3}')
    with pytest.raises(UsageError, match="the value is 3, expected a table of settings"):
        open_run(run.path)
    (run.path / "run.json").write_text('{"format": ')
    with pytest.raises(RunError, match="not JSON"):
        open_run(run.path)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Settings("resnet20"))
    with run.locked(), pytest.raises(RunError, match="in use by another edgeprune process"), run.locked():
        pass
    with replace(run).locked():  # the lock is gone with its holder
        assert (tmp_path / ".lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", [9_000, 10_000, 11_000, 12_000, 13_000])
def test_a_size_holds_for_the_final_file_with_all_its_facts(workplace: Path, size: int) -> None:
    words = [
        "--model",
        "tiny:net",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--scheme",
        "magnitude",
        "--target",
        "test.toml",
    ]
    done = edgeprune("train", *words[:4], "--epochs", "1", "--out", "run", cwd=workplace)
    assert done.returncode == 0, done.stderr
    for command in (
        ["prune", "--max-size", f"{size} B", *words[6:]],
        ["finetune", "--epochs", "0"],
        ["export"],
    ):
        done = edgeprune(*command, "--out", "run", cwd=workplace)
        assert done.returncode == 0, done.stderr
    found = (workplace / "run" / "slim.onnx").stat().st_size
    assert 0.75 * size < found <= size


def test_the_report_estimates_what_phones_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(run=SimpleNamespace(file=lambda name: tmp_path / name))
    (tmp_path / "slim.onnx").write_bytes(b"no model")
    key = "NNAPI and CoreML, estimated from operator tables"
    assert "slim.onnx is unreadable" in str(mobile_story(context)[key])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnx", None)
        assert str(mobile_story(context)[key]).startswith("not estimated: import of onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "slim.onnx")
    assert mobile_story(context) == {
        f"{name}, estimated from operator tables": "1 of 1 nodes in 1 partition"
        for name in ("NNAPI (legacy)", "CoreML NeuralNetwork", "CoreML MLProgram")
    }
