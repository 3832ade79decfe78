"""make_plan(max_latency_ratio=...) with real networks on a device that is made up."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from edgeprune import probe
from edgeprune.benchmark import PROCESSES, bench
from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_macs, count_params
from edgeprune.errors import MeasurementError, PlanError
from edgeprune.groups import find_groups
from edgeprune.models import load_model
from edgeprune.onnx_export import export
from edgeprune.plan import Plan
from edgeprune.probe import LatencyProbe
from edgeprune.runners import RUNNERS
from edgeprune.selection import make_plan
from edgeprune.surgery import slim, slim_structure
from edgeprune.target import Runtime, Target, load_target
from tests.conftest import RUN, run

IMAGE = torch.zeros(1, 3, 32, 32)
TARGET = Target("made up", 2, Runtime(), (), Path("made_up.toml"), "ab" * 32)


class Network(nn.Module):
    """Two groups of some width: enough to choose among."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 24, 3, padding=1)
        self.c = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu()).mean((2, 3))  # type: ignore[no-any-return]


class Device:
    """Takes 1 us for each 1000 MACs and 200 us anyway; in each process ``noise`` more or less."""

    noise = 0.0
    jobs: list[str] = []  # noqa: RUF012
    simulator: str | None = None

    def __init__(self, _: Runtime) -> None: ...

    def notes(self) -> list[str]:
        return []

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        self.jobs.append(job)
        if job == "environment":
            return {"load_average": 0.1, "cores": 4, "governor": None}
        if job == "placement":
            inputs = [{"name": "x", "type": "tensor(float)", "shape": [1, 3, 8, 8]}]
            return {
                "source": "fake",
                "nodes": {"CPUExecutionProvider": 5},
                "left_to_cpu": [],
                "inputs": inputs,
                "functional_only": self.simulator,
            }
        if job == "memory":
            figures = dict.fromkeys(("load_peak_bytes", "loaded_bytes", "run_peak_bytes", "peak_bytes"), 1)
            return {**figures, "method": "fake", "why": None}
        sign = 1 if self.jobs.count("latency") % 2 else -1
        answers = []
        for path in models:
            about = json.loads(onnx.ModelProto.FromString(path.read_bytes()).producer_name)
            ns = 200_000 + about["macs"]
            ns = round(ns * (1 if about["macs"] == DENSE_MACS else 1 + sign * self.noise))
            samples = [ns] * options["runs"]
            answers.append({"samples_ns": samples, "load_ns": ns, "first_ns": ns})
        return {"models": answers}


DENSE_MACS = count_macs(Network(), torch.zeros(1, 3, 16, 16))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Device]:
    """The device, and an export that writes what a network costs instead of the network."""

    def fake(network: nn.Module, example: Tensor, path: Path, *, dynamic_batch: bool) -> None:
        about = {"macs": count_macs(network, example), "params": count_params(network)}
        told = json.dumps(about | {"dynamic_batch": dynamic_batch})
        path.write_bytes(onnx.ModelProto(producer_name=told).SerializeToString())

    def cut(dense: nn.Module, plan: Plan) -> nn.Module:  # without the oracle, which has tests of its own
        slim_structure(small := copy.deepcopy(dense), plan)
        return small

    monkeypatch.setattr(probe, "slim", cut)
    monkeypatch.setattr(probe, "export", fake)
    monkeypatch.setattr(Device, "jobs", [])
    monkeypatch.setitem(RUNNERS, "local", Device)
    return Device


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, tuple[ChannelGroup, ...], dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    model, example = Network().eval(), torch.zeros(1, 3, 16, 16)
    groups = find_groups(model, example)
    scores = {group.name: torch.rand(group.size) for group in groups if group.frozen_because is None}
    return model, groups, scores, example


@pytest.mark.usefixtures("device")
def test_the_network_keeps_to_the_latency(case: Any) -> None:
    (model, _, _, example), limit = case, 0.6
    steps: list[tuple[int, int, str]] = []
    plan = make_plan(
        *case, max_latency_ratio=limit, target=TARGET, on_progress=lambda *step: steps.append(step)
    )
    small = slim(model, plan)
    latency = (200_000 + count_macs(small, example)) / (200_000 + DENSE_MACS)
    assert 0.87 * limit < latency <= limit / 1.03
    found = plan.facts["latency"]
    assert found["latency_ratio"] == pytest.approx(latency, rel=1e-3)
    assert found["high"] <= limit
    assert (found["target"], found["limit"]) == ("made up", limit)
    assert found["trials"][-1]["full"]
    assert found["macs_ratio"] == plan.facts["slim_macs"] / plan.facts["dense_macs"]
    # The target's multiple holds where none is given.
    assert plan.facts["options"]["channel_multiple"] == 2
    assert not any(len(group.keep) % 2 for group in plan.groups)
    assert [done for done, _, _ in steps] == list(range(len(found["trials"])))
    assert f"latency at {found['macs_ratio']:.3f} of the MACs, in full" in {text for _, _, text in steps}
    assert make_plan(*case, max_latency_ratio=limit, target=TARGET) == plan


@pytest.mark.usefixtures("device")
def test_all_budgets_hold(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = {"max_latency_ratio": 0.8, "target": TARGET, "channel_multiple": 1}
    alone = make_plan(*case, **latency)
    both = make_plan(*case, **latency, max_macs_ratio=0.3)
    assert both.facts["slim_macs"] <= 0.3 * DENSE_MACS < alone.facts["slim_macs"]
    assert both.facts["threshold"] == make_plan(*case, max_macs_ratio=0.3).facts["threshold"]

    def sized(network: nn.Module, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(size_bytes=4 * count_params(network))

    monkeypatch.setattr("edgeprune.selection.export", sized)
    small = make_plan(*case, **latency, max_size_bytes=4000)
    assert small.facts["slim_params"] <= 1000 < alone.facts["slim_params"]
    assert small.facts["size_bytes"] <= 4000
    assert small.facts["latency"]["high"] <= 0.8


def test_a_wide_interval_is_narrowed_with_more_processes(
    case: Any, device: type[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "noise", 0.06)
    plan = make_plan(*case, max_latency_ratio=0.6, target=TARGET)
    full = [trial for trial in plan.facts["latency"]["trials"] if trial["full"]]
    quick = [trial for trial in plan.facts["latency"]["trials"] if not trial["full"]]
    assert device.jobs.count("latency") == 4 * len(quick) + PROCESSES * len(full)
    assert plan.facts["latency"]["high"] <= 0.6


def test_a_quiet_device_is_measured_once(case: Any, device: type[Device]) -> None:
    plan = make_plan(*case, max_latency_ratio=0.6, target=TARGET)
    trials = [trial["full"] for trial in plan.facts["latency"]["trials"]]
    assert device.jobs.count("latency") == 4 * trials.count(False) + 20 * trials.count(True)


def test_a_simulator_is_no_device_for_a_latency_budget(
    case: Any, device: type[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "simulator", "a simulator runs it")
    with pytest.raises(MeasurementError, match=r"latency on made up is not measured \(a simulator runs it"):
        make_plan(*case, max_latency_ratio=0.6, target=TARGET)


@pytest.mark.usefixtures("device")
def test_out_of_reach(case: Any) -> None:
    with pytest.raises(
        PlanError, match=r"max_latency_ratio is 0\.01, expected at least 0\.\d+: the smallest"
    ):
        make_plan(*case, max_latency_ratio=0.01, target=TARGET)


@pytest.mark.parametrize("limit", [0, 1, 1.5, True, "0.6", float("nan")])
def test_wrong_limits(case: Any, limit: Any) -> None:
    with pytest.raises(PlanError, match=r"max_latency_ratio is .*, expected a number above 0 and below 1"):
        make_plan(*case, max_latency_ratio=limit, target=TARGET)


def test_a_latency_needs_a_target(case: Any) -> None:
    with pytest.raises(PlanError, match="target is missing, expected a Target"):
        make_plan(*case, max_latency_ratio=0.5)


def test_another_precision_is_refused(case: Any) -> None:
    target = replace(TARGET, runtime=Runtime(precision="int8"))
    with pytest.raises(MeasurementError, match=r"runtime\.precision is 'int8', expected 'fp32'"):
        make_plan(*case, max_latency_ratio=0.5, target=target)


@pytest.mark.parametrize(
    ("shape", "dynamic"), [(None, False), ((1, 3, 16, 16), False), ((4, 3, 16, 16), True)]
)
def test_files_take_the_targets_batch(case: Any, shape: tuple[int, ...] | None, dynamic: bool) -> None:
    target = replace(TARGET, runtime=Runtime(input=shape))
    assert LatencyProbe(case[0], case[3], target, lambda _: Plan((), (), {})).dynamic_batch == dynamic


@pytest.mark.slow
def test_from_the_command_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: type[Device]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [str(workplace), *sys.path])
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    assert run(capsys, "train", *RUN[:6], "--out", "run")[0] == 0
    prune = ["prune", "--scheme", "magnitude", "--no-refit", "--target", "test.toml", "--out", "run"]
    code, out, err = run(capsys, *prune, "--max-latency-ratio", "0.8")
    assert code == 0, err
    assert "latency 0." in out
    assert "of dense" in out
    facts = json.loads((workplace / "run" / "run.json").read_text())["stages"]["plan"]["facts"]
    assert facts["latency"]["high"] <= 0.8
    # Nothing has changed: nothing is measured again.
    before = list(device.jobs)
    assert "plan      nothing has changed" in run(capsys, *prune)[2]
    assert device.jobs == before
    # Measured in another way it may be another network.
    target = workplace / "test.toml"
    target.write_text(target.read_text().replace("[budgets]", "threads = 2\n[budgets]"))
    assert "plan      done" in run(capsys, *prune)[2]


@pytest.mark.slow
def test_on_this_machine(tmp_path: Path) -> None:
    """The real thing: what was chosen for its latency has it, or a little less, when it is measured again."""
    torch.manual_seed(0)
    model, target, example = load_model("resnet20", num_classes=10).eval(), load_target("local-cpu"), IMAGE
    groups = find_groups(model, example)
    generator = torch.Generator().manual_seed(0)
    free = [group for group in groups if group.frozen_because is None]
    scores = {group.name: torch.rand(group.size, generator=generator) for group in free}
    plan = make_plan(model, groups, scores, example, max_latency_ratio=0.6, target=target)
    assert plan.facts["latency"]["high"] <= 0.6
    files = [
        export(network, example, tmp_path / f"{name}.onnx")
        for name, network in (("slim", slim(model, plan)), ("dense", model))
    ]
    ratio = bench(files[0], target, baseline=files[1]).latency_ratio
    assert ratio is not None
    assert ratio.low <= 0.6
    assert ratio.high >= 0.5
