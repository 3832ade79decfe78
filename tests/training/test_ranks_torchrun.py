"""Several processes as people start them: the real command line under torchrun. Slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.training.rank_start import environment, free_port, run_job

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
RUN = [
    "-m", "edgeprune", "run", "--model", "resnet20", "--data", "digits", "--batch-size", "128",
    "--train-epochs", "1", "--prune-epochs", "1", "--finetune-epochs", "1", "--scheme", "sglp-ib",
    "--max-macs-ratio", "0.6", "--processes", "2", "--budget-seconds", "20",
]  # fmt: skip
TRAIN = ["-m", "edgeprune", "train", "--model", "resnet20", "--data", "digits", "--batch-size", "128"]
TIMEOUT_S = 300


def launch(*words: str, ranks: int = 2) -> subprocess.Popen[str]:
    """A command under torchrun on one machine, in a process group of its own."""
    how = ["--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    return popen(*how, *words)


def popen(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, *words], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def workers_of(agent: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of an agent's ranks, by rank."""
    found = {}
    for child in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        pairs = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        values = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
        if b"RANK" in values:
            found[int(values[b"RANK"])] = int(child)
    return found


def wait_for(path: Path, agent: subprocess.Popen[str]) -> None:
    """Until there is a file."""
    for _ in range(10 * TIMEOUT_S):
        if list(path.parent.glob(path.name)):
            return
        if agent.poll() is not None:
            pytest.fail(f"ended early: {agent.communicate()}")
        time.sleep(0.1)
    pytest.fail(f"no {path} after {TIMEOUT_S} s")


def ours(stderr: str) -> list[str]:
    """What edgeprune says on failing; the rest of stderr is torchrun's."""
    return [line for line in stderr.splitlines() if line.startswith("edgeprune: ")]


def test_20_steps_are_those_of_one_process(tmp_path: Path) -> None:
    """ResNet-20 on digits with augmentation, the same global batch; and the plans of two schemes.

    In float64; in float32 a small network. See the test of chaos below for the reason.
    """
    first, second = run_job("curve", 2, tmp_path / "two")
    (single,) = run_job("curve", 1, tmp_path / "one")
    assert first["losses"] == second["losses"]
    assert len(single["losses"]) == len(first["losses"]) == 20
    assert first["losses"] == pytest.approx(single["losses"], abs=1e-6)
    assert single["losses"][-1] < single["losses"][0] - 0.5
    assert first["small"] == second["small"]
    assert first["small"] == pytest.approx(single["small"], abs=1e-4)
    for name in ("sglp-ib", "proximal-ns"):
        assert first["plans"][name] == second["plans"][name] == single["plans"][name], name
    assert 20 < single["zeros"] < single["scored"] - 20  # of proximal NS: its plan is about something
    for key, value in single["scores"].items():
        assert torch.equal(first["scores"][key], value), key


def test_chaos(tmp_path: Path) -> None:
    """Why ResNet-20 is compared in float64: one process alone does not repeat in float32.

    Weights that differ in their last bit end up further apart in 20 steps than any limit that says something.
    """
    (single,) = run_job("chaos", 1, tmp_path / "one")
    assert single["as it is"][0] == pytest.approx(single["nudged"][0], abs=1e-5)
    assert single["as it is"] != pytest.approx(single["nudged"], abs=1e-3)


def test_without_synchronised_norms_the_curve_is_another(tmp_path: Path) -> None:
    """The negative control of the test above."""
    apart, other = run_job("unsynchronised", 2, tmp_path / "two")
    (single,) = run_job("unsynchronised", 1, tmp_path / "one")
    assert apart["losses"] != pytest.approx(single["losses"], abs=1e-2)
    assert torch.equal(apart["mean"], other["mean"]), "every rank ends with those of the first"


def test_the_whole_job_on_two_processes(tmp_path: Path) -> None:
    agent = launch(*RUN, "--out", str(tmp_path / "run"), "--json")
    out, err = agent.communicate(timeout=TIMEOUT_S)
    found = json.loads(out)  # one object: only rank 0 prints
    assert found["exit_code"] in (0, 1, 3), err
    lines = [line for line in err.splitlines() if " done in " in line]
    assert len(lines) == len({line.split()[0] for line in lines})
    assert found["stages"]["report"] is not None
    assert not list((tmp_path / "run").glob("*.checkpoint*"))
    again = launch(*RUN, "--out", str(tmp_path / "run"), "--json")
    _, err = again.communicate(timeout=TIMEOUT_S)
    assert err.count("nothing has changed, skipped") == len(lines)


def test_two_machines(tmp_path: Path) -> None:
    """Two agents of one process each that find each other over the network; folders are not shared."""
    port = free_port()
    how = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two",
           "--rdzv-endpoint", f"127.0.0.1:{port}"]  # fmt: skip
    agents = [
        popen(*how, *TRAIN, "--epochs", "1", "--out", str(tmp_path / f"machine{number}"), "--json")
        for number in range(2)
    ]
    said = [agent.communicate(timeout=TIMEOUT_S) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum(bool(out.strip()) for out, _ in said) == 1
    folders = [path for path in tmp_path.iterdir() if (path / "dense.safetensors").is_file()]
    assert len(folders) == 1
    assert not any(list(path.iterdir()) for path in tmp_path.iterdir() if path not in folders)


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = [*TRAIN, "--epochs", "4", "--out", str(tmp_path / "run"), "--json"]
    agent = launch(*words)
    wait_for(tmp_path / "run" / "train*.checkpoint*", agent)
    os.kill(workers_of(agent)[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = agent.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert agent.returncode != 0
    assert len(ours(err)) <= 1, err
    if ours(err):
        assert "Run the same command again" in ours(err)[0]
    assert err.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert list((tmp_path / "run").glob("train*.checkpoint*"))
    alone = subprocess.run(
        [sys.executable, *words], env=environment(), text=True, capture_output=True, timeout=TIMEOUT_S,
        check=True,
    )  # fmt: skip
    history = json.loads(alone.stdout)["stages"]["train"]["history"]
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3, 4]


def test_a_killed_rank_on_another_machine(tmp_path: Path) -> None:
    port = free_port()
    how = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two",
           "--rdzv-endpoint", f"127.0.0.1:{port}"]  # fmt: skip
    agents = [
        popen(*how, *TRAIN, "--epochs", "20", "--out", str(tmp_path / f"machine{number}"), "--json")
        for number in range(2)
    ]
    for _ in range(10 * TIMEOUT_S):
        if list(tmp_path.glob("machine*/train*.checkpoint*")):
            break
        time.sleep(0.1)
    ranks = {rank: (agent, pid) for agent in agents for rank, pid in workers_of(agent).items()}
    os.kill(ranks[1][1], signal.SIGKILL)
    began = time.monotonic()
    said = [agent.communicate(timeout=90)[1] for agent in agents]
    assert time.monotonic() - began < 60
    assert all(agent.returncode for agent in agents)
    assert sum(len(ours(err)) for err in said) == 1, said


def test_an_error_is_told_once(tmp_path: Path) -> None:
    words = ["-m", "edgeprune", "train", "--model", "resnet20", "--data", f"cifar10:{tmp_path}"]
    agent = launch(*words, "--out", str(tmp_path / "run"))
    out, err = agent.communicate(timeout=TIMEOUT_S)
    assert agent.returncode == 1
    assert len(ours(err)) == 1, err
    assert not out.strip()


def test_other_commands_run_once(tmp_path: Path) -> None:
    agent = launch("-m", "edgeprune", "targets", "--json")
    out, err = agent.communicate(timeout=TIMEOUT_S)
    assert agent.returncode == 0, err
    assert json.loads(out)
    assert not list(tmp_path.iterdir())


def test_help_is_printed_once() -> None:
    agent = launch("-m", "edgeprune", "run", "--help")
    out, _ = agent.communicate(timeout=TIMEOUT_S)
    assert out.count("Usage:") == 1
