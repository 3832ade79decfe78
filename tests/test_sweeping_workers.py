"""Who works for a sweep: what a worker refuses, and how its errors come back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.errors import EdgepruneError, Interrupted, RunError, UsageError
from edgeprune.pipeline.folder import Silent
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.sweeping import tasks as tasks_module
from edgeprune.pipeline.sweeping.folder import SweepFolder
from edgeprune.pipeline.sweeping.points import SweepPlan
from edgeprune.pipeline.sweeping.tasks import (
    Leash,
    Place,
    Task,
    at_place,
    check_place,
    do,
    do_there,
    place_here,
    stoppable,
)
from edgeprune.pipeline.sweeping.workers import Dask, Here, Processes, divided, gone, open_workers

TASK = Task("p", "s/points/p", Settings("m").to_json(), ("prune",), None, (), False)
"""Fails at once: there is no dense network."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A sweep at work in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(Path("s"), SweepPlan(Settings("m"), ("magnitude",), (0.5,)))
    with folder.at_work() as token:
        yield place_here(folder.path, token, threads=1)


def test_a_worker_that_does_not_see_the_folder_says_so(place: Place, tmp_path: Path) -> None:
    check_place(place)
    with pytest.raises(
        RunError, match=r"could not use a worker: /none/s on .* is not there, expected the sweep"
    ):
        check_place(replace(place, directory="/none"))
    (tmp_path / "s" / "sweep.json").write_text("{}")
    with pytest.raises(
        RunError, match=r"is another folder, expected the sweep folder\. Workers need a file sys"
    ):
        check_place(replace(place, token="other"))
    with pytest.raises(RunError, match=r"edgeprune on .* is 0\.1\.0.*, expected 99, as where the sweep"):
        check_place(replace(place, version="99"))


def test_work_goes_on_at_the_place_and_leaves_no_trace(place: Place, tmp_path: Path) -> None:
    os.chdir("/")
    before = torch.get_num_threads(), list(sys.path)
    with at_place(replace(place, threads=before[0] + 1)):
        assert Path.cwd() == tmp_path
        assert torch.get_num_threads() == before[0] + 1
    assert (torch.get_num_threads(), Path.cwd()) == (before[0], Path("/"))
    assert divided(place, 4) is place
    assert divided(replace(place, threads=None), 10_000).threads == 1


def test_an_error_of_a_point_is_an_outcome_and_survives_the_way_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = do(TASK, Silent())
    assert isinstance(here.error, EdgepruneError)
    with Processes(1, place) as processes:
        (there,) = processes.outcomes([TASK])
    assert str(there.error) == str(here.error)
    assert (type(there.error), there.error.exit_code) == (type(here.error), 2)  # type: ignore[union-attr]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x.npz")

    monkeypatch.setattr(tasks_module, "run_stages", full)
    assert str(do(TASK, Silent()).error) == "could not read or write: x.npz is No space left on device."

    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(10)

    monkeypatch.setattr(tasks_module, "run_stages", stop)
    outcome = do_there(TASK, place)
    assert outcome.interrupted
    assert outcome.seconds < 9


def test_a_worker_that_sees_nothing_or_dies_ends_the_sweep(place: Place) -> None:
    wrong = replace(place, token="other")
    with pytest.raises(RunError, match="could not use a worker"), Processes(1, wrong) as processes:
        list(processes.outcomes([TASK]))
    with Processes(1, place) as processes:
        processes.pool.submit(os.getpid).result()
        (number,) = processes.pool._processes
        os.kill(number, signal.SIGKILL)
        with pytest.raises(RunError, match="a process of this machine is gone without a word") as caught:
            list(processes.outcomes([TASK]))
    assert "fewer --jobs" in str(caught.value)
    assert str(gone("it")).startswith("could not finish the sweep: it is gone")


def test_what_the_sweep_no_longer_wants_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    leash = Leash(place)
    leash.stage("train", "begin")
    leash.training(None)
    (Path(place.directory) / place.sweep / ".token").write_text("another sweep's")
    leash.training(None)  # it does not look at each step
    monkeypatch.setattr(tasks_module, "LOOK_EVERY_S", 0.0)
    with pytest.raises(Interrupted, match="the sweep that sent this work is over"):
        leash.training(None)


def test_a_thread_keeps_its_hands_off_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def work() -> None:
        with stoppable():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_engines_that_are_absent_or_do_not_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workers(Silent(), place) as workers:
        assert isinstance(workers, Here)
    from edgeprune.pipeline.sweeping import workers as module

    monkeypatch.setattr(module, "SCHEDULER_WAIT_S", 0.5)
    with (
        pytest.raises(RunError, match=r"could not reach the cluster: --scheduler is tcp://127.0.0.1:9 \("),
        open_workers(Silent(), place, engine="dask", scheduler="tcp://127.0.0.1:9"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UsageError, match=r"the package distributed is not installed, .*edgeprune\[dask\]"),
        open_workers(Silent(), place, engine="dask"),
    ):
        pass


def test_a_worker_of_several_threads_is_refused(place: Place) -> None:
    class Client:
        def run(self, *_: object, **__: object) -> dict[str, None]:
            return {"tcp://a:1": None}

        def nthreads(self) -> dict[str, int]:
            return {"tcp://a:1": 1, "tcp://b:1": 4}

    with pytest.raises(RunError, match="tcp://b:1 is of several threads, expected one thread in each"):
        Dask(Client(), place, None)


@pytest.mark.parametrize("kind", [RunError, ModuleNotFoundError, ZeroDivisionError])
def test_what_is_wrong_with_a_worker_is_raised_here(place: Place, kind: type[Exception]) -> None:
    class Client:
        def run(self, *_: object, **__: object) -> dict[str, Exception]:
            fault = (
                ModuleNotFoundError("no", name="torch") if kind is ModuleNotFoundError else kind("it is odd")
            )
            return {"tcp://a:1": fault}

    wanted = RunError if kind is ModuleNotFoundError else kind
    with pytest.raises(wanted, match=r"its package torch is missing, expected|it is odd"):
        Dask(Client(), place, None)


@pytest.mark.slow
def test_a_cluster_says_what_is_wrong(place: Place) -> None:
    with open_workers(Silent(), place, engine="dask", jobs=2) as workers:
        (outcome,) = workers.outcomes([TASK])
        assert str(outcome.error) == str(do(TASK, Silent()).error)
    with (
        pytest.raises(RunError, match=r"could not use a worker: .* is not there, expected the sweep folder"),
        open_workers(Silent(), replace(place, sweep="other"), engine="dask", jobs=1),
    ):
        pass
