"""When a measurement ends, on a fake device with a fake clock; the values are in test_measurement.py."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune import benchmark
from edgeprune.benchmark import bench
from edgeprune.errors import UsageError
from edgeprune.runners import RUNNERS
from tests.test_measurement import DENSE, SLIM, TARGET, FakeRunner


class Machine:
    """A device on which each job takes ``job_s``, and the ratio of each process is what ``ratio`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.job_s = 100.0, 1.0
        self.ratio: Any = lambda _: 0.5
        self.machine: Any = lambda _: {}
        self.options: list[dict[str, Any]] = []
        self.jobs: list[str] = []
        machine = self

        class Device(FakeRunner):
            def run(self, job: str, models: Any = (), **options: Any) -> dict[str, Any]:
                answer = super().run(job, models, **options)
                machine.now += machine.job_s
                machine.jobs.append(job)
                if job != "latency":
                    return answer
                process = machine.jobs.count("latency") - 1
                machine.options.append(options)
                for path, model in zip(models, answer["models"], strict=True):
                    if path.stem == "slim":
                        factor = 2 * machine.ratio(process)
                        model["samples_ns"] = [round(factor * ns) for ns in model["samples_ns"]]
                return {**answer, "machine": machine.machine(process)}

        monkeypatch.setitem(RUNNERS, "local", Device)
        monkeypatch.setattr(benchmark, "time", SimpleNamespace(monotonic=lambda: self.now))

    @property
    def processes(self) -> int:
        return self.jobs.count("latency")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def _noisy(process: int) -> float:
    return 0.5 * math.exp(0.1 * math.sin(9.7 * process))


def test_a_quiet_machine_takes_the_least_number_of_processes(machine: Machine) -> None:
    measured = bench(SLIM, TARGET, baseline=DENSE)
    assert machine.processes == len(measured.load_s) == 20
    assert measured.notes == ()


def test_a_noisy_machine_takes_more_until_it_is_narrow(machine: Machine) -> None:
    # Noisy processes, then as many quiet ones as it takes to outvote them.
    machine.ratio = lambda process: _noisy(process) if process < 20 else 0.5
    found = bench(SLIM, TARGET, baseline=DENSE, processes=99).latency_ratio
    assert 20 < machine.processes < 99
    assert found is not None
    assert found.more_runs is None


def test_processes_are_the_most_there_are(machine: Machine) -> None:
    machine.ratio = _noisy
    for most in (2, 12):
        machine.jobs.clear()
        measured = bench(SLIM, TARGET, baseline=DENSE, processes=most)
        assert machine.processes == most
        (note,) = (note for note in measured.notes if "processes were timed" in note)
        assert "no more were asked for" in note


def test_one_network_ends_when_its_median_is_narrow(machine: Machine) -> None:
    bench(SLIM, TARGET)
    assert machine.processes == 20
    machine.jobs.clear()
    machine.ratio = _noisy
    bench(SLIM, TARGET, processes=24)
    assert machine.processes == 24


def test_too_few_runs_for_a_median_never_end_it_early(machine: Machine) -> None:
    measured = bench(SLIM, TARGET, processes=10, runs=1)
    assert machine.processes == 10
    assert measured.value("latency_p50") is None


@pytest.mark.parametrize(("budget_s", "processes"), [(24.0, 15), (14.5, 5), (3.0, 2)])
def test_the_budget_is_kept_but_for_the_first_two(machine: Machine, budget_s: float, processes: int) -> None:
    # One job of environment, two of placement and six of memory come before.
    machine.ratio = _noisy
    measured = bench(SLIM, TARGET, baseline=DENSE, budget_seconds=budget_s)
    assert machine.processes == processes
    assert processes == 2 or machine.now - 100.0 <= budget_s
    (note,) = (note for note in measured.notes if "processes were timed" in note)
    assert f"the {budget_s:g} s were spent" in note


def test_a_budget_that_is_not_needed_is_not_spent(machine: Machine) -> None:
    assert bench(SLIM, TARGET, baseline=DENSE, budget_seconds=1000.0).notes == ()
    assert machine.processes == 20


def test_a_small_budget_shortens_each_process(machine: Machine) -> None:
    bench(SLIM, TARGET, baseline=DENSE)
    assert machine.options[0]["seconds"] == benchmark.SECONDS_PER_PROCESS
    machine.options.clear()
    bench(SLIM, TARGET, baseline=DENSE, budget_seconds=29.0)
    assert machine.options[0]["seconds"] == pytest.approx(2 / 3)  # a third of a tenth of the 20 s left


def test_what_came_between_is_kept_and_told(machine: Machine) -> None:
    machine.machine = lambda process: {
        "steal_share": 0.1 if process else None, "others_cpus": 0.5, "thermal_events": 1,
    }  # fmt: skip
    measured = bench(SLIM, TARGET, baseline=DENSE)
    told = {name: measured.environment[name] for name in ("steal_share", "others_cpus", "thermal_events")}
    assert told == {"steal_share": 0.1, "others_cpus": 0.5, "thermal_events": 20}
    assert measured.environment["throttled_share"] is None
    assert [note.split(":")[0] for note in measured.notes] == [
        "The hypervisor gave 10.0% of the processor's time to other machines",
        "The processor slowed itself down for heat 20 times during the timed runs",
    ]


def test_a_runner_that_tells_less_says_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeRunner.run

    def short(self: FakeRunner, job: str, models: Any = (), **options: Any) -> dict[str, Any]:
        answer = whole(self, job, models, **options)
        return {key: value for key, value in answer.items() if key not in ("arena", "device", "machine")}

    monkeypatch.setattr(FakeRunner, "run", short)
    measured = bench(SLIM, TARGET, baseline=DENSE)
    assert machine.processes == 20
    assert measured.why_unmeasured("arena_memory") == "this runner does not tell it."
    assert type(measured).from_json(measured.to_json()) == measured


def test_progress_ends_at_its_end(machine: Machine) -> None:
    steps: list[tuple[int, int, str]] = []
    bench(SLIM, TARGET, baseline=DENSE, on_progress=lambda *step: steps.append(step))
    assert steps[-1] == (39, 39, "done")
    assert len(steps) == 1 + 2 + 6 + 20 + 1
    assert machine.jobs[0] == "environment"


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing(seconds: float) -> None:
    with pytest.raises(
        UsageError, match=r"could not plan the measurement: budget_seconds is .*, expected > 0"
    ):
        bench(Path("none.onnx"), TARGET, budget_seconds=seconds)
