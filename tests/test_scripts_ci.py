"""The example workflow and the pre-commit hook of scripts/ci, run as shell in a repository of their own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeprune.artifact import load_artifact
from edgeprune.target import load_target
from tests.conftest import edgeprune
from tests.test_cli import network

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "scripts" / "ci"
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
GATE_DEVICE, BENCH, GATE = (
    "Gate what was measured on the device",
    "Measure here what does not jitter",
    "Gate it",
)


def steps() -> dict[str, str]:
    """The shell of the workflow, by the name of its step."""
    workflow = yaml.safe_load((EXAMPLES / "edgeprune.yml").read_text())
    (job,) = workflow["jobs"].values()
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


def with_sidecar(path: Path, macs: int, accuracy: float) -> None:
    """What an export notes beside the file."""
    facts = replace(
        load_artifact(path), macs=macs, params=macs, parity_error=1e-6, accuracy={"test": accuracy}
    )
    facts.write_sidecar()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, the examples' targets and a measurement on the device, in a folder called models."""
    place = tmp_path_factory.mktemp("repository")
    models = place / "models"
    models.mkdir()
    with_sidecar(network(models / "dense.onnx", 256), 256**2, 0.92)
    with_sidecar(network(models / "slim.onnx", 64), 64**2, 0.918)
    for name in ("ci.toml", "device.toml"):
        shutil.copy(EXAMPLES / name, models)
    words = ["slim.onnx", "--baseline", "dense.onnx", "--target", "device.toml", "--processes", "4"]
    done = edgeprune("bench", *words, cwd=models, PYTHONPATH=python_path())
    assert done.returncode == 0, done.stderr
    return place


def python_path() -> str:
    return os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])


@pytest.fixture
def place(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository, and a folder with `edgeprune`; installers only note that they ran."""
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    programs = {
        "edgeprune": f'exec {shlex.quote(sys.executable)} -m edgeprune "$@"',
        "pip": 'echo "pip $@" >> "$INSTALLED"',
        "sudo": 'echo "$@" >> "$INSTALLED"',
    }
    for name, text in programs.items():
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)
    return tmp_path


def shell(place: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a runner of GitHub has it: bash that ends at the first command that fails."""
    known = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": python_path(), "COLUMNS": "80",
        "OMP_NUM_THREADS": "1", "INSTALLED": str(place / "installed"),
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=place, env={**os.environ, **known, **environment}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def relaxed(place: Path) -> None:
    """Without counting instructions, which takes valgrind and half a minute; the slow test counts them."""
    path = place / "models" / "ci.toml"
    text = re.sub(r"max_instructions_ratio.*\n", "", path.read_text())
    assert text != path.read_text()
    path.write_text(text)


def actions(place: Path) -> dict[str, str]:
    return {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(place / "summary.md")}


def test_the_steps_of_the_workflow_pass(place: Path) -> None:
    relaxed(place)
    found = steps()
    assert list(found) == ["Install", "What this machine is worth", GATE_DEVICE, BENCH, GATE]
    for name, text in found.items():
        if name == "What this machine is worth":
            continue  # five seconds; the slow test has it
        done = shell(place, text, **actions(place))
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert (place / "installed").read_text().startswith("pip install edgeprune\n")
    assert "<testsuite" in (place / "junit.xml").read_text()
    assert "max_size_ratio" in (place / "gate.md").read_text()
    assert "max_size_ratio" in (place / "summary.md").read_text()
    # What the workflow keeps is what its steps have written.
    workflow = yaml.safe_load((EXAMPLES / "edgeprune.yml").read_text())
    kept = workflow["jobs"]["gate"]["steps"][-1]["with"]["path"].split()
    assert all((place / name).is_file() for name in kept)


@pytest.mark.slow
def test_the_whole_workflow_with_instructions(place: Path) -> None:
    for name, text in steps().items():
        done = shell(place, text, **actions(place))
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert "max_instructions_ratio" in (place / "gate.md").read_text()


def test_a_missed_budget_fails_its_step(place: Path) -> None:
    relaxed(place)
    found = steps()
    for name in ("ci.toml", "device.toml"):
        path = place / "models" / name
        path.write_text(path.read_text().replace('max_size = "1.5 MB"', 'max_size = "1 kB"'))
    # The device's target has changed in its budgets alone: what was measured there still holds.
    done = shell(place, found[GATE_DEVICE], **actions(place))
    assert done.returncode == 1
    assert "max_size: " in done.stdout
    assert "Where it sits: slim.onnx" in done.stdout
    assert "::error" in done.stderr
    assert shell(place, found[BENCH]).returncode == 0
    done = shell(place, found[GATE], **actions(place))
    assert done.returncode == 1
    assert "<failure" in (place / "junit.xml").read_text()


def test_a_network_that_was_exported_again_must_be_measured_again(place: Path) -> None:
    (place / "models" / "slim.onnx.json").unlink()
    with_sidecar(network(place / "models" / "slim.onnx", 48), 48**2, 0.918)
    done = shell(place, steps()[GATE_DEVICE])
    assert done.returncode == 2
    assert "of another file" in " ".join(done.stderr.split())


def hook(name: str) -> str:
    return shlex.join([*HOOKS[name]["entry"].split(), *HOOKS[name]["args"]])


def test_the_hook(place: Path) -> None:
    done = shell(place, hook("edgeprune-gate"))
    assert done.returncode == 0, done.stderr
    # The control: a budget that is missed stops the commit.
    path = place / "models" / "device.toml"
    path.write_text(path.read_text().replace('"1.5 MB"', '"1 kB"'))
    assert shell(place, hook("edgeprune-gate")).returncode == 1


def test_the_hook_runs_on_the_files_that_matter() -> None:
    pattern = re.compile(HOOKS["edgeprune-gate"]["files"])
    for name in ("slim.onnx", "slim.onnx.json", "device.toml", "measurement.json", "measurement.pi.json"):
        assert pattern.search(f"models/{name}"), name
    for name in ("train.py", "README.md", "package.json"):
        assert not pattern.search(name), name


def test_the_examples_are_sound() -> None:
    ci, device = (load_target(EXAMPLES / f"{name}.toml") for name in ("ci", "device"))
    assert {budget.metric for budget in ci.budgets if not budget.optional} >= {"size", "instructions_ratio"}
    assert device.budgets
    text = (EXAMPLES / "README.md").read_text()
    named = re.findall(r"\((?:here: )?(\w+\.(?:toml|yml))\)", text)
    assert {*named} == {"ci.toml", "device.toml", "edgeprune.yml"}
    assert all((EXAMPLES / name).is_file() for name in named)
    for name in re.findall(r"id: (edgeprune-\w+)", text):
        assert name in HOOKS
    workflow: dict[Any, Any] = yaml.safe_load((EXAMPLES / "edgeprune.yml").read_text())
    assert workflow[True]["pull_request"]["paths"] == ["models/**"]  # YAML 1.1 reads "on" as true
    assert workflow["permissions"] == {"contents": "read"}


def test_the_readme_shows_the_loop() -> None:
    _, _, lines = (EXAMPLES / "loop.sh").read_text().partition("set -euo pipefail\n")
    assert lines.strip() in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_whole_loop(place: Path) -> None:
    """The README's twenty lines, from training to a commit that is gated: minutes."""
    work = place / "loop"
    work.mkdir()
    (work / "bin").symlink_to(place / "bin")
    identity = {f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    assert shell(work, "git init -q .").returncode == 0
    done = shell(work, (EXAMPLES / "loop.sh").read_text(), **identity)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed: all budgets are met") >= 3
    # The control: with a network that is another, the gate of what is committed refuses.
    shutil.copy(work / "models" / "dense.onnx", work / "models" / "slim.onnx")
    (work / "models" / "slim.onnx.json").unlink()
    again = [line for line in (EXAMPLES / "loop.sh").read_text().splitlines() if "--artifact" in line]
    assert shell(work, again[0]).returncode == 2
