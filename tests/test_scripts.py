"""The scripts: those that start things, in a folder with a space and with a Python that only writes down what
it is asked to do; those that measure, on small networks.
"""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent

# What `python -c` and `python -` are asked (versions, stamps) is answered by the real one.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$PWD|$*" >>"$CALLS"
if [[ "$1 $2" == "-m venv" ]]; then
    mkdir -p "${@: -1}/bin"
    cp "$0" "${@: -1}/bin/python"
elif [[ "$1" == "-c" || "$1" == "-" ]]; then
    exec "$REAL_PYTHON" "$@"
elif [[ "$*" == *"$FAIL_ON"* ]]; then
    exit 1
fi
"""


class Sandbox:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "a repository"
        self.root.mkdir()
        for name in ("scripts", ".ci"):
            shutil.copytree(ROOT / name, self.root / name)
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.python = folder / "fake python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.calls = folder / "calls"

        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("bash", "cat", "cp", "dirname", "mkdir", "rm"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def run(
        self, script: str, *arguments: str, fail_on: str = "never", python: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        environment = {
            **os.environ,
            "CALLS": str(self.calls),
            "REAL_PYTHON": sys.executable,
            "FAIL_ON": fail_on,
            "PYTHON": python or str(self.python),
            "PATH": str(self.bin),
        }
        return subprocess.run(
            [self.root / script, *arguments],
            env=environment,
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self) -> list[str]:
        """What Python was asked to run as a module or a file, all of it in the repository's root."""
        calls = [line.partition("|") for line in self.calls.read_text().splitlines()]
        asked = [what for _, _, what in calls if not what.startswith(("-c", "- ", "-V")) and what != "-"]
        assert {where for where, _, what in calls if what in asked} <= {str(self.root)}
        return asked


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


INSTALL = [
    "-m venv --clear .venv",
    "-m pip install --quiet --disable-pip-version-check --upgrade pip>=25.1",
    "-m pip install --quiet --disable-pip-version-check --editable .[train] --group dev",
]


def test_installs_once_for_all_scripts(sandbox: Sandbox) -> None:
    assert sandbox.run("scripts/test").returncode == 0
    assert sandbox.asked() == [*INSTALL, "-m pytest -n auto --dist worksteal"]
    assert sandbox.run("scripts/check").returncode == 0
    assert not set(sandbox.asked()) & set(INSTALL)
    assert sandbox.run("scripts/demo").returncode == 0
    assert not set(sandbox.asked()) & set(INSTALL)


def test_installs_again_when_the_requirements_change(sandbox: Sandbox) -> None:
    sandbox.run("scripts/test")
    (sandbox.root / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    sandbox.run("scripts/test")
    assert sandbox.asked()[:3] == INSTALL


def test_installs_again_after_a_failure(sandbox: Sandbox) -> None:
    failed = sandbox.run("scripts/test", fail_on="--editable")
    assert failed.returncode == 2
    assert re.search(r"Could not install edgeprune.* \d+ GB are free here\.\n$", failed.stderr)
    assert not (sandbox.root / ".venv").exists()
    assert "-m pytest -n auto --dist worksteal" not in sandbox.asked()
    assert sandbox.run("scripts/test").returncode == 0
    assert sandbox.asked()[:3] == INSTALL


def test_arguments_reach_pytest(sandbox: Sandbox) -> None:
    sandbox.run("scripts/test", "-k", "one or two", "tests/test_x.py")
    assert sandbox.asked()[-1] == "-m pytest -n auto --dist worksteal -k one or two tests/test_x.py"


@pytest.mark.parametrize(
    ("tools", "marks"),
    [
        ([], "not gpu and not browser and not providers"),
        (["nvidia-smi"], "not browser and not providers"),
        (["chromium"], "not gpu and not providers"),
        (["nvidia-smi", "google-chrome"], "not providers"),
    ],
)
def test_all_adds_what_this_machine_can_run(tools: list[str], marks: str, sandbox: Sandbox) -> None:
    for tool in tools:
        (sandbox.bin / tool).touch(0o755)
    result = sandbox.run("scripts/test", "--all", "-x")
    assert sandbox.asked()[-1] == f"-m pytest -n auto --dist worksteal -m {marks} -x"
    assert ("tests marked gpu are left out" in result.stderr) == ("gpu" in marks)
    assert ("tests marked browser are left out" in result.stderr) == ("browser" in marks)


def test_check_runs_everything_and_fails_if_one_does(sandbox: Sandbox) -> None:
    checks = ["-m ruff format --check --quiet .", "-m ruff check --quiet .", "-m mypy", "scripts/in_step.py"]
    right = sandbox.run("scripts/check")
    assert (right.returncode, right.stdout.splitlines()[-1]) == (0, "All checks passed.")
    assert sandbox.asked()[3:] == checks
    for check in checks:
        assert sandbox.run("scripts/check", fail_on=check).returncode == 1
        assert sandbox.asked() == checks


def test_demo_passes_options_and_exit_code_on(sandbox: Sandbox) -> None:
    assert sandbox.run("scripts/demo", "--epochs", "1", fail_on="edgeprune run").returncode == 1
    assert sandbox.asked()[-1].startswith("-m edgeprune run --model resnet20 --data digits ")
    assert sandbox.asked()[-1].endswith(f" --out {sandbox.root}/runs/demo --epochs 1")
    assert sandbox.run("scripts/demo").returncode == 0


@pytest.mark.parametrize("failing", ["never", "mypy", "pytest"])
def test_ci_runs_checks_and_tests(failing: str, sandbox: Sandbox) -> None:
    (sandbox.root / "scripts" / "test_providers").write_text("#!/usr/bin/env bash\n")
    done = sandbox.run(".ci/run", fail_on=failing)
    assert done.returncode == (failing != "never")
    assert "Tests in a browser are left out" in done.stderr
    assert sandbox.asked()[-1] == "-m pytest -n auto --dist worksteal"


@pytest.mark.parametrize(
    ("code", "built", "ends", "left_out"),
    [
        (0, True, 0, False),
        (1, True, 1, False),
        (3, True, 3, False),
        (3, False, 0, True),
        (2, False, 2, False),
    ],
)
def test_ci_leaves_out_providers_only_where_they_cannot_be_had(
    code: int, built: bool, ends: int, left_out: bool, sandbox: Sandbox
) -> None:
    (sandbox.root / "scripts" / "test_providers").write_text(f"#!/usr/bin/env bash\nexit {code}\n")
    for name in ("xnnpack", "qnn") if built else ("xnnpack",):
        (sandbox.root / ".providers" / name).mkdir(parents=True)
        (sandbox.root / ".providers" / name / "edgeprune-provider").touch()
    done = sandbox.run(".ci/run")
    assert done.returncode == ends
    assert ("Tests on XNNPACK and QNN are left out" in done.stderr) == left_out


def test_ci_runs_the_browser_where_there_is_one(sandbox: Sandbox) -> None:
    (sandbox.root / "scripts" / "test_providers").write_text("#!/usr/bin/env bash\n")
    (sandbox.bin / "chromium").touch(0o755)
    browser = "-m pytest -n auto --dist worksteal -m browser and not slow"
    assert sandbox.run(".ci/run").returncode == 0
    assert browser in sandbox.asked()
    assert sandbox.run(".ci/run", fail_on="browser").returncode == 1


@pytest.mark.parametrize("script", ["scripts/test", "scripts/check", "scripts/demo", ".ci/run"])
def test_an_old_or_absent_python_is_named(script: str, sandbox: Sandbox, tmp_path: Path) -> None:
    absent = sandbox.run(script, python="python2.2")
    assert absent.returncode == 2
    assert "edgeprune needs Python 3.11 or newer, and there is no 'python2.2'." in absent.stderr
    old = tmp_path / "old"
    old.write_text('#!/usr/bin/env bash\nif [[ "$1" == -V ]]; then echo Python 3.10.4; else exit 1; fi\n')
    old.chmod(0o755)
    found = sandbox.run(script, python=str(old))
    assert found.returncode == 2
    assert f"edgeprune needs Python 3.11 or newer, and '{old}' is Python 3.10.4." in found.stderr
    assert sandbox.asked() == []


# Python reads this before anything else: from then on slim networks are not what they should be.
PLANTED = """
import torch
from edgeprune import surgery

right = surgery.slim

def wrong(model, plan, *, example=None):
    slim = right(model, plan, example=example)
    if hasattr(slim, "features"):
        with torch.no_grad():
            slim.features[3].squeeze.weight[0, 0] += 1e-3
    return slim

surgery.slim = wrong
"""


def run_here(script: str, *words: str, patch: pytest.MonkeyPatch) -> int:
    """Run a script of Python in this process."""
    patch.syspath_prepend(ROOT / "scripts")
    patch.setattr(sys, "argv", [str(ROOT / "scripts" / script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    return int(ended.value.code or 0)


COVERAGE = ["squeezenet1_1", "--no-onnx", "--size", "64", "--threads", "1"]


@pytest.mark.slow
def test_coverage_of_a_right_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.md"
    assert run_here("coverage", *COVERAGE, "--json", "--out", str(table), patch=monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["free"], found["frozen"], found["gaps"], found["wrong"]) == (25, 1, [], [])
    assert found["oracle_error"] <= 1e-10 < 1e-3 < found["change"]
    assert 0.99 < found["in_reach"] < 1
    assert found["peak_bytes"] > 4 * found["params"]
    assert "| squeezenet1_1 | 25 / 1 |" in table.read_text()


@pytest.mark.slow
def test_coverage_sees_a_wrong_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}")
    assert run_here("coverage", *COVERAGE, patch=monkeypatch) == 1
    printed = capsys.readouterr().out.splitlines()
    assert re.search(r"\| oracle \d\.\de-0\d$", printed[1])
    assert printed[2].startswith("1 networks, 1 wrong: squeezenet1_1; ")


def test_coverage_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_here("coverage", *COVERAGE, patch=monkeypatch) == 1
    assert "crash: killed by signal 9" in capsys.readouterr().out


def test_coverage_knows_its_networks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("coverage", "resnet19", patch=monkeypatch) == 2
    assert "torchvision has no classification network resnet19" in capsys.readouterr().err


def test_compare_peers_without_the_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run_here("compare_peers", patch=monkeypatch) == 2
    assert capsys.readouterr().err == "Torch-Pruning is not installed: .venv/bin/pip install --group peers\n"


@pytest.mark.parametrize(
    "name",
    [
        "dense_block",
        "grouped",
        "grouped_transposed",
        "depthwise_transposed",
        "tied_weights",
        "flatten_of_concat",
    ],
)
def test_the_oracle_of_compare_peers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads off the pruned network what went, and sees a channel that went from one place too few."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = runpy.run_path(str(ROOT / "scripts" / "compare_peers"))
    assert script["measure_error"]("edgeprune", f"small:{name}", 0)["error"] <= 1e-12

    def shifted(model: nn.Module, inputs: tuple[Tensor, ...], outputs: list[nn.Module]) -> nn.Module:
        pruned: nn.Module = right(model, inputs, outputs)
        consumer = list(pruned.children())[-1]
        with torch.no_grad():
            consumer.weight.copy_(consumer.weight.roll(1, 1))  # columns that other channels have had
        return pruned

    right = script["PRUNE"]["edgeprune"]
    script["PRUNE"]["edgeprune"] = shifted
    assert script["measure_error"]("edgeprune", f"small:{name}", 0)["error"] > 1e-3
