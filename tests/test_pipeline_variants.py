"""A run whose target wants another precision, and `edgeprune convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.artifact import load_artifact
from edgeprune.precision import precision_of
from tests.conftest import RUN, TARGET, edgeprune, run


def wanting(folder: Path, name: str, precision: str, provider: str = "CPUExecutionProvider") -> Path:
    """A target with a precision."""
    content = TARGET.replace(
        'provider = "CPUExecutionProvider"', f'provider = "{provider}"\nprecision = "{precision}"'
    )
    (folder / name).write_text(content)
    return folder / name


def test_a_precision_that_the_provider_has_not_is_refused_before_any_training(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    wanting(workplace, "wrong.toml", "int8", "CoreMLExecutionProvider")
    code, _, err = run(capsys, "run", *RUN, "--target", "wrong.toml", "--out", "r")
    assert code == 2
    assert "provider is CoreMLExecutionProvider, for which there is no recipe" in err
    assert not (workplace / "r" / "dense.safetensors").exists()


def test_convert_without_anything_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "convert", str(tmp_path / "a.onnx"))
    assert code == 2
    assert "--precision is fp32, expected fp16 or int8, or --ort-format" in err
    code, out, _ = run(capsys, "convert", str(tmp_path / "a.onnx"), "--precision", "int8", "--json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)


@pytest.mark.slow
def test_a_run_in_int8_and_then_in_fp16(workplace: Path) -> None:
    wanting(workplace, "int8.toml", "int8")
    wanting(workplace, "fp16.toml", "fp16")
    words = ["run", *RUN, "--target", "int8.toml", "--ort-format", "--out", "r", "--json"]
    first = edgeprune(*words, cwd=workplace)
    assert first.returncode in (0, 1, 3), first.stderr
    folder, told = workplace / "r", json.loads(first.stdout)
    facts = told["stages"]["convert"]
    for name in ("dense", "slim"):
        made, source = load_artifact(folder / f"{name}.int8.onnx"), load_artifact(folder / f"{name}.onnx")
        assert precision_of(made) == "int8"
        assert facts[name]["sha256"] == made.sha256
        assert made.provenance["precision"]["source"]["accuracy"] == source.accuracy
        assert made.accuracy.keys() == source.accuracy.keys()
        assert load_artifact(folder / f"{name}.int8.ort").accuracy
    measured = json.loads((folder / "measurement.json").read_text())
    assert [measured["artifact"]["path"], measured["baseline"]["artifact"]["path"]] == [
        "slim.int8.onnx", "dense.int8.onnx"
    ]  # fmt: skip
    report = (folder / "report.md").read_text()
    assert "slim in fp32 (onnxruntime)" in report
    assert "slim in int8 (onnxruntime)" in report

    again = edgeprune(*words, cwd=workplace)
    assert again.stderr.count("skipped") == 12
    other = edgeprune(
        "export",
        "--target",
        "fp16.toml",
        "--no-ort-format",
        "--out",
        "r",
        cwd=workplace,
    )
    assert other.returncode == 0, other.stderr
    assert "slim.fp16.onnx" in other.stdout
    assert precision_of(load_artifact(folder / "slim.fp16.onnx")) == "fp16"

    model = ["r/slim.onnx", "--precision", "int8", "--data", "digits", "--json"]
    alone = edgeprune("convert", *model, "--save", "x.onnx", cwd=workplace)
    assert alone.returncode == 0, alone.stderr
    assert json.loads(alone.stdout)["accuracy"] == facts["slim"]["accuracy"]
    bench = ["x.onnx", "--baseline", "r/dense.int8.onnx", "--target", "int8.toml", "--processes", "2"]
    assert edgeprune("bench", *bench, cwd=workplace).returncode == 0
    wrong = edgeprune("bench", "r/slim.onnx", *bench[3:], cwd=workplace)
    assert wrong.returncode == 2
    assert "is fp32, expected int8" in wrong.stderr
    stored = edgeprune("convert", "r/slim.onnx", "--ort-format", cwd=workplace)
    assert "r/slim.ort: " in stored.stdout
