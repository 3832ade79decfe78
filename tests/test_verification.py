"""`edgeprune verify` on a real run: all is well, and each planted fault is found by the check for it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edgeprune.cli import main
from edgeprune.data import load_data
from edgeprune.errors import ArtifactError
from edgeprune.integrity import Check, check_files, described, exit_code, metadata_of, weights_of
from edgeprune.onnx_files import data_facts
from edgeprune.parity import Parity
from edgeprune.pipeline import host
from edgeprune.pipeline.provenance import provenance_of
from edgeprune.schemes import SCHEMES, make_scheme
from edgeprune.surgery import load_slim
from edgeprune.verification import check_accuracy, check_parity, data_of
from tests.conftest import TARGET, TINY, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run folder up to its ONNX files."""
    place = tmp_path_factory.mktemp("verify")
    (place / "tiny_verified.py").write_text(TINY)
    (place / "test.toml").write_text(TARGET)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.chdir(place)
        patch.setattr("edgeprune.onnx_export._simplified", lambda _: (None, "left out to save time"))
        words = [
            "--model",
            "tiny_verified:net",
            "--data",
            "digits",
            "--epochs",
            "0",
            "--target",
            "./test.toml",
        ]
        words += ["--scheme", "magnitude", "--max-macs-ratio", "0.7", "--out", "run"]
        for command in (["train", *words[:6], *words[-2:]], ["prune", *words[8:], "--target", "./test.toml"]):
            stage(*command)
        stage("finetune", "--epochs", "0", "--out", "run")
        stage("export", "--out", "run")
        yield place / "run"
    sys.modules.pop("tiny_verified", None)


def stage(*words: str) -> None:
    with pytest.raises(SystemExit) as ending:
        main(list(words))
    assert not ending.value.code


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The run's files, to be spoilt."""
    for name in (
        "slim.onnx",
        "slim.onnx.json",
        "slim.safetensors",
        "plan.json",
        "dense.onnx",
        "dense.onnx.json",
    ):
        shutil.copy(made / name, tmp_path)
    return tmp_path


def states(path: Path) -> dict[str, str]:
    artifact = described(path)
    checks = check_files(artifact)
    checks.append(check_parity(artifact, checks))
    return {check.name: check.state for check in checks}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


ALL_IS_WELL = dict.fromkeys(("file", "metadata", "weights", "plan", "parity"), "passed")


def test_all_is_well(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert states(made / "slim.onnx") == ALL_IS_WELL
    dense = dict(ALL_IS_WELL)
    del dense["plan"]
    assert states(made / "dense.onnx") == dense
    code, out, _ = run(capsys, "verify", str(made / "slim.onnx"), "--data", "digits", "--json")
    content = json.loads(out)
    assert (code, content["exit_code"]) == (0, 0)
    assert [(row["name"], row["state"]) for row in content["checks"]] == [
        *ALL_IS_WELL.items(), ("accuracy", "passed"),
    ]  # fmt: skip
    code, out, _ = run(capsys, "verify", str(made / "slim.onnx"))
    assert code == 0
    assert out.endswith("5 passed, 1 not checked\n")


def test_a_flipped_byte_of_the_file_is_found_wherever_it_is(copied: Path) -> None:
    path = copied / "slim.onnx"
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 60).astype(int):
        flip(path, position)
        checks = check_files(described(path))
        assert checks[0].state == "failed", position
        assert exit_code(checks) == 1
        path.write_bytes(whole)
    flip(path, len(whole) // 2)
    found = states(path)
    assert (found["file"], found["parity"]) == ("failed", "not checked")


def test_a_flipped_byte_of_weights_and_plan_is_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "slim.onnx"
    flip(copied / "slim.safetensors", -3)
    assert states(path) == {**ALL_IS_WELL, "weights": "failed", "parity": "not checked"}
    code, out, _ = run(capsys, "verify", str(path))
    assert code == 1
    assert "the check of weights failed" in " ".join(out.split())
    flip(copied / "slim.safetensors", -3)
    flip(copied / "plan.json", 100)
    assert states(path) == {**ALL_IS_WELL, "plan": "failed"}


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("accuracy.test", lambda facts: facts["accuracy"].update(test=0.999)),
        ("provenance.scheme.options.p", lambda facts: facts["provenance"]["scheme"]["options"].update(p=7)),
        ("provenance.seed", lambda facts: facts["provenance"].pop("seed")),
        ("macs", lambda facts: facts.update(macs=1)),
    ],
)
def test_an_edited_sidecar_is_found(copied: Path, key: str, change: Callable[[Any], None]) -> None:
    edit(copied / "slim.onnx.json", change)
    checks = {check.name: check for check in check_files(described(copied / "slim.onnx"))}
    assert checks["metadata"].state == "failed"
    assert checks["metadata"].text == f"file and sidecar differ in {key}"
    assert checks["file"].state == "passed"


def test_sizes_and_classes_in_the_sidecar_are_checked_too(copied: Path) -> None:
    path, data = copied / "slim.onnx", load_data("digits")
    edit(path.with_name("slim.onnx.json"), lambda facts: facts.update(size_bytes=1))
    assert states(path)["file"] == "failed"
    edit(path.with_name("slim.onnx.json"), lambda facts: facts.update(size_bytes=path.stat().st_size))
    edit(
        path.with_name("slim.onnx.json"), lambda facts: facts["accuracy_by_class"]["test"].update({"3": 0.99})
    )
    artifact = described(path)
    assert check_accuracy(artifact, check_files(artifact), data).text.endswith("different: accuracy by class")


def test_weights_of_another_network_fail_the_parity(copied: Path) -> None:
    from edgeprune.files import sha256_file
    from edgeprune.plan import Plan
    from edgeprune.surgery import save_slim

    path = copied / "slim.onnx"
    network = load_slim(copied / "slim.safetensors")
    next(network.parameters()).data.mul_(1.5)
    save_slim(network, Plan.from_json((copied / "plan.json").read_text()), copied / "slim.safetensors")
    artifact = described(path)
    # Whoever exchanges the weights may well exchange their hash in both places.
    hashed = {**artifact.provenance, "weights_sha256": sha256_file(copied / "slim.safetensors")}
    found = check_parity(replace(artifact, provenance=hashed), [])
    assert found.state == "failed"
    assert "expected at most 0.0001" in found.text


def test_what_is_not_there_is_not_checked_and_said(copied: Path) -> None:
    path = copied / "slim.onnx"
    for name in ("slim.safetensors", "plan.json"):
        (copied / name).unlink()
    assert states(path) == {
        "file": "passed", "metadata": "passed", "weights": "not checked", "plan": "not checked",
        "parity": "not checked",
    }  # fmt: skip
    artifact = described(path)
    assert check_parity(artifact, []).text == "slim.safetensors does not lie beside the file"
    stranger = replace(artifact, provenance={}, accuracy={})
    assert check_parity(stranger, []).text == "the sidecar does not tell what the file was exported from"
    assert check_accuracy(stranger, [], load_data("digits")).text == "the sidecar tells none"
    assert exit_code([Check("a", "not checked", ""), Check("b", "passed", "")]) == 0


def test_other_data_are_no_check_of_the_accuracy(made: Path) -> None:
    artifact = described(made / "slim.onnx")
    found = check_accuracy(artifact, [], load_data("digits", seed=3))
    assert found.state == "failed"
    assert "the data are others than the sidecar's" in found.text
    assert check_accuracy(artifact, [], data_of(artifact, "digits")).state == "passed"


@pytest.mark.parametrize(
    "told",
    [
        3, {}, {"meen": [0.5]}, {"mean": [], "std": []}, {"mean": [0.5], "std": [0]},
        {"mean": ["x"], "std": [1]}, {"mean": [0.5], "std": [0.5, 0.5]},
    ],
)  # fmt: skip
def test_a_normalization_that_is_none(copied: Path, capsys: pytest.CaptureFixture[str], told: Any) -> None:
    sidecar = copied / "slim.onnx.json"
    facts = json.loads(sidecar.read_text())
    facts["provenance"]["normalization"] = told
    sidecar.write_text(json.dumps(facts))
    code, _, err = run(capsys, "verify", str(copied / "slim.onnx"), "--data", "digits")
    assert code == 2
    assert "could not normalise the images: normalization in" in " ".join(err.split())
    with pytest.raises(ArtifactError, match="expected mean and std"):
        data_of(described(copied / "slim.onnx"), "digits")


def test_bad_input(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match=r"could not verify the file: .* is not a file"):
        described(copied / "nothing.onnx")
    (copied / "slim.onnx.json").unlink()
    with pytest.raises(ArtifactError, match="nothing to hold the file against"):
        described(copied / "slim.onnx")
    assert run(capsys, "verify", str(copied / "slim.onnx"))[0] == 2
    (copied / "slim.onnx.json").write_text("{}")
    with pytest.raises(ArtifactError, match="of another format"):
        described(copied / "slim.onnx")


def test_without_torch_hashes_are_checked_all_the_same(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "edgeprune.verification", None
    )  # its import fails as if torch were absent
    code, out, _ = run(capsys, "verify", str(made / "slim.onnx"), "--data", "digits", "--json")
    found = {row["name"]: row for row in json.loads(out)["checks"]}
    assert code == 0
    assert [found[name]["state"] for name in ("file", "metadata", "weights", "plan")] == ["passed"] * 4
    for name in ("parity", "accuracy"):
        assert found[name]["state"] == "not checked"
        assert "torch is not here" in found[name]["text"]


def test_metadata_as_onnx_reads_them(made: Path, tmp_path: Path) -> None:
    path = made / "slim.onnx"
    assert metadata_of(path) == {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    (tmp_path / "x.onnx").write_bytes(b"\x77\xff\xff")
    with pytest.raises(ValueError, match="message"):
        metadata_of(tmp_path / "x.onnx")


def test_a_variant_names_its_source(copied: Path) -> None:
    import edgeprune as ep

    made = ep.convert(copied / "slim.onnx", copied / "slim.fp16.onnx", precision="fp16")
    assert weights_of(made).name == "slim.safetensors"
    assert states(made.path) == {**ALL_IS_WELL, "source": "passed"}
    flip(copied / "slim.onnx", 200)
    assert states(made.path) == {**ALL_IS_WELL, "source": "failed"}


@pytest.mark.parametrize(("error", "state"), [(0.02, "passed"), (0.0209, "passed"), (0.0211, "failed")])
def test_a_variant_may_be_off_by_what_its_source_is_off_too(
    copied: Path, monkeypatch: pytest.MonkeyPatch, error: float, state: str
) -> None:
    artifact = described(copied / "slim.onnx")
    precision = {"name": "fp16", "source": {"parity_error": 0.001}}
    facts = {**artifact.provenance, "precision": precision, "parity": {"tolerance": 0.02}}
    monkeypatch.setattr("edgeprune.verification.compare", lambda *_: Parity(error, "an input", 0, None))
    assert check_parity(replace(artifact, provenance=facts), []).state == state


def test_the_provenance_is_whole_and_names_no_place(made: Path) -> None:
    facts = json.loads(metadata_of(made / "slim.onnx")["provenance"])
    wanted = {
        "role",
        "source",
        "weights_sha256",
        "plan_sha256",
        "seed",
        "training",
        "scheme",
        "refit",
        "finetuning",
    }
    assert wanted | {"data", "versions", "code_sha256", "normalization"} <= set(facts)
    assert facts["data"]["images"] == {"val": 359, "test": 359}
    assert facts["data"]["classes"] == 10
    assert str(made.parent) not in (made / "slim.onnx.json").read_text()
    assert str(made.parent).encode() not in (made / "slim.onnx").read_bytes()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_budget_on_size_leaves_room_for_what_the_metadata_add(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all optional facts there are, and each scheme's options."""
    for name in ("slim.safetensors", "plan.json", "weights.pth"):
        (tmp_path / name).write_bytes(b"")
    recipe = {"epochs": 160, "optimizer": "adamw", "lr": 0.0012345, "weight_decay": 0.00012345}
    facts = {
        "train": {
            "source": {"name": "torchvision:some_long_name_of_a_network", "num_classes": 1000},
            "recipe": recipe,
        },
        "finetune": {"recipe": recipe},
        "score": {"scheme": scheme, "options": dict(vars(make_scheme(scheme)))},
    }
    run_ = SimpleNamespace(
        facts=lambda stage: facts.get(stage, {}),
        file=lambda name: tmp_path / name,
        settings=SimpleNamespace(
            seed=123456, weights=str(tmp_path / "weights.pth"), model="json:dumps", refit=True,
            refit_images=300, distill=True, recipe="proximal-ns-cifar",
        ),
    )  # fmt: skip
    commit = {"commit": "a" * 40, "dirty": False}
    monkeypatch.setattr("edgeprune.pipeline.provenance.commit_of", lambda: commit)
    found = provenance_of(SimpleNamespace(run=run_), "slim")  # type: ignore[arg-type]
    assert found["git"] == commit
    assert len(found["initial_weights_sha256"]) == len(found["code_sha256"]) == 64
    accuracy = {"val": 0.123456789012345678, "test": 0.123456789012345678}
    added = {**found, **data_facts(load_data("digits"))}
    assert len(json.dumps(added)) + len(json.dumps(accuracy)) + 60 < host.FACTS_BYTES
