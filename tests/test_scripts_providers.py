"""scripts/providers and scripts/test_providers, with a Python that only writes down what it is asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_scripts import FAKE_PYTHON, INSTALL, ROOT, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the environments are for Linux")


class Workshop:
    """A fake Python and a folder with a space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "the place"
        self.calls = folder / "calls"
        self.python = folder / "fake python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def build(self, *arguments: str, fail_on: str = "never") -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        variables = {"CALLS": str(self.calls), "FAIL_ON": fail_on, "PYTHON": str(self.python)}
        return subprocess.run(
            [ROOT / "scripts" / "providers", *arguments],
            env={**os.environ, **variables, "REAL_PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_builds_once_and_prints_the_line_for_the_target(workshop: Workshop) -> None:
    built = workshop.build("qnn", str(workshop.folder))
    assert (built.returncode, built.stdout) == (0, f'python = "{workshop.folder}/bin/python"\n')
    assert "onnxruntime-qnn==" in workshop.calls.read_text()
    again = workshop.build("qnn", str(workshop.folder))
    assert (again.returncode, again.stdout) == (0, built.stdout)
    assert not workshop.calls.read_text()


def test_a_failed_build_leaves_nothing(workshop: Workshop) -> None:
    failed = workshop.build("qnn", str(workshop.folder), fail_on="onnxruntime-qnn")
    assert failed.returncode == 3
    assert "pip has no onnxruntime-qnn==" in failed.stderr
    assert not failed.stdout
    assert not workshop.folder.exists()


def test_what_others_keep_in_the_folder_stays(workshop: Workshop) -> None:
    workshop.build("qnn", str(workshop.folder))
    other = workshop.build("openvino", str(workshop.folder))
    assert other.returncode == 3
    assert "holds something else (qnn" in other.stderr
    (workshop.folder / "edgeprune-provider").unlink()
    full = workshop.build("qnn", str(workshop.folder))
    assert full.returncode == 3
    assert "is not empty" in full.stderr
    assert (workshop.folder / "bin" / "python").is_file()


@pytest.mark.parametrize("words", [[], ["qnn"], ["cuda", "folder"], ["qnn", "folder", "more"]])
def test_usage(workshop: Workshop, words: list[str]) -> None:
    failed = workshop.build(*words)
    assert failed.returncode == 2
    assert failed.stderr == "scripts/providers NAME FOLDER        NAME: qnn, openvino, webgpu or xnnpack\n"


@pytest.mark.parametrize(
    ("words", "names", "marks"),
    [
        (["-x"], ["xnnpack", "qnn"], "providers and not slow -x"),
        (["--all", "-x"], ["xnnpack", "qnn", "openvino", "webgpu"], "providers -x"),
    ],
)
def test_tests_run_in_built_environments(
    tmp_path: Path, words: list[str], names: list[str], marks: str
) -> None:
    sandbox = Sandbox(tmp_path)
    (sandbox.bin / "realpath").symlink_to(str(shutil.which("realpath")))
    stub = sandbox.root / "scripts" / "providers"
    stub.write_text('#!/usr/bin/env bash\necho "python = \\"$1 in $2\\""\n')
    assert sandbox.run("scripts/test_providers", *words).returncode == 0
    assert sandbox.asked() == [*INSTALL, f"-m pytest tests/test_real_providers.py -m {marks}"]
    built = sorted(path.stem for path in (sandbox.root / ".providers").glob("*.toml"))
    assert built == sorted(names)
    line = (sandbox.root / ".providers" / "qnn.toml").read_text()
    assert line == f'python = "qnn in {sandbox.root}/.providers/qnn"\n'


def test_an_environment_that_cannot_be_built_ends_the_tests(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    (sandbox.bin / "realpath").symlink_to(str(shutil.which("realpath")))
    (sandbox.root / "scripts" / "providers").write_text("#!/usr/bin/env bash\nexit 3\n")
    assert sandbox.run("scripts/test_providers").returncode == 3
    assert sandbox.asked() == INSTALL
