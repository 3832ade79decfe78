"""Hostile files that only onnxruntime can judge: each is one clear error, and harms nothing but a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune.artifact import load_artifact
from edgeprune.benchmark import bench
from edgeprune.errors import ArtifactError
from edgeprune.runners.local import WORKER, LocalRunner
from edgeprune.runners.worker import common
from edgeprune.target import Runtime, load_target
from tests import hostile

TELLING = [
    "cycle", "unknown operator", "vast weight", "vast inside", "vast input", "crash", "string",
    "open dimension",
]  # fmt: skip


@pytest.mark.parametrize("name", TELLING)
def test_hostile_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    content, message = hostile.LOADED[name]
    path = hostile.make(tmp_path, name, content)
    load_artifact(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        LocalRunner(Runtime(), timeout_s=60).run("placement", [path])
    assert str(caught.value).startswith(f"could not run the ONNX file: {path} is ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["text", "folder"])
def test_worker_alone_refuses_what_is_no_model(tmp_path: Path, name: str) -> None:
    path = hostile.make(tmp_path, name, hostile.REFUSED[name][0])
    job = {"job": "placement", "models": [str(path)], "provider": common.CPU, "threads": 1}
    command = [sys.executable, str(WORKER)]
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=60
    )
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert done.returncode == 2
    assert (error["kind"], error["model"]) == ("model", str(path))
    assert "not a model that onnxruntime" in error["message"]


EVERY = hostile.REFUSED | hostile.LOADED


def test_there_are_many_hostile_files() -> None:
    assert len(EVERY) == len(hostile.REFUSED) + len(hostile.LOADED) >= 50
    assert set(TELLING) <= set(hostile.LOADED)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_command_line_ends_with_one_error(tmp_path: Path, name: str) -> None:
    content, message = EVERY[name]
    path = hostile.make(tmp_path, name, content)
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "bench", str(path), "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("  bench:")]
    assert len(told) == 1, done.stderr
    if name == "folder":  # is taken for a run folder
        message = "is not a run folder"
    assert re.fullmatch(rf"edgeprune: could not (open|run) the (ONNX file|run): .*({message}).*", told[0])
    assert json.loads(done.stdout) == {"error": told[0].removeprefix("edgeprune: "), "exit_code": 2}
    assert done.returncode == 2
    assert not (tmp_path / "measurement.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.ENDLESS)
def test_a_file_that_never_ends_is_ended(tmp_path: Path, name: str) -> None:
    path = hostile.make(tmp_path, name, hostile.ENDLESS[name])
    with pytest.raises(ArtifactError, match="still loading, or in its first inference, after 20 s"):
        LocalRunner(Runtime(), timeout_s=20).run("placement", [path])


@pytest.mark.slow
def test_a_file_cut_anywhere_is_one_error(tmp_path: Path) -> None:
    content = hostile.convolution()
    target = load_target("local-cpu")
    cuts = range(1, len(content), 11)
    assert len(cuts) > 40
    for end in cuts:
        path = hostile.make(tmp_path, f"cut at {end}", content[:end])
        with pytest.raises(ArtifactError, match=r"broken at byte|not a model that onnxruntime"):
            bench(path, target, processes=2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_worker_cannot_take_the_machine_down() -> None:
    code = (
        "import os, resource, runpy, sys\n"
        "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit: print(resource.getrlimit(resource.RLIMIT_DATA)[0], "
        "open('/proc/self/oom_score_adj').read())"
    )
    command = [sys.executable, "-c", code, str(WORKER)]
    job = json.dumps({"job": "environment"})
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True, timeout=60)
    limit, first_to_go = map(int, done.stdout.splitlines()[-2].split())
    assert 0 < limit <= common.memory_bytes()
    assert first_to_go == 1000
