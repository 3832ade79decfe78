"""scripts/bench_widths and scripts/bench_latency_budget: what they count and when they pass."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.metrics import Estimate

SCRIPTS = Path(__file__).parent.parent / "scripts"
EXAMPLE = torch.zeros(1, 3, 8, 8)


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / name))


def test_padded_macs() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, groups=20), nn.Conv2d(20, 40, 1)
    )
    # 20 -> 32 and 40 -> 48; the image's 3 channels are read as they are.
    expected = 32 * 3 * 9 * 64 + 32 * 9 * 36 + 48 * 32 * 36
    assert script("bench_widths")["padded_macs"](network, EXAMPLE, 16) == expected
    assert script("bench_widths")["padded_macs"](network, EXAMPLE, 1) == ep.count_macs(network, EXAMPLE)


def event(name: str, operator: str, *shapes: list[int]) -> dict[str, Any]:
    return {"name": name, "args": {"op_name": operator, "input_type_shape": [{"float": s} for s in shapes]}}


def test_kinds_of_nodes() -> None:
    kind = script("bench_widths")["kind"]
    image = [1, 32, 8, 8]
    assert kind(event("a_nchwc_kernel_time", "Conv", image, [32, 1, 3, 3])) == "depthwise Conv 3x3 (blocked)"
    assert kind(event("a_kernel_time", "FusedConv", image, [8, 32, 1, 1])) == "FusedConv 1x1"
    assert kind(event("a_kernel_time", "Relu", image)) == "Relu"


class Stand:
    """In place of edgeprune: nothing is pruned, and the measurement says what the test wants."""

    def __init__(self, ratio: Estimate) -> None:
        self.ratio = ratio
        self.schemes = SimpleNamespace(Magnitude=self.scheme, Random=self.scheme)

    def scheme(self, **_: Any) -> Any:
        return SimpleNamespace(fit=lambda *_: {})

    def load_model(self, *_: Any, **__: Any) -> nn.Module:
        return nn.Conv2d(3, 16, 1)

    def load_target(self, _: str) -> Any:
        return SimpleNamespace(channel_multiple=8)

    def find_groups(self, *_: Any) -> tuple[()]:
        return ()

    def make_plan(self, *_: Any, **__: Any) -> Any:
        latency = {"trials": [], "macs_ratio": 0.4, "latency_ratio": 0.57, "low": 0.55, "high": 0.59}
        return SimpleNamespace(facts={"latency": latency})

    def slim(self, dense: nn.Module, _: Any) -> nn.Module:
        return dense

    def export(self, _: nn.Module, __: Any, path: Path) -> Any:
        return SimpleNamespace(path=path, macs=100 if path.stem == "dense" else 50)

    def bench(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(latency_ratio=self.ratio, notes=())


def code_of(name: str, ratio: Estimate, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    main = script(name)["main"]
    monkeypatch.setitem(main.__globals__, "ep", Stand(ratio))
    monkeypatch.setattr(sys, "argv", [name, "--input", "1,3,8,8", *words])
    return int(main())


@pytest.mark.parametrize(
    ("ratio", "code"),
    [
        (Estimate(0.55, 0.53, 0.57), 0),
        (Estimate(0.57, 0.53, 0.61), 3),
        (Estimate(0.62, 0.60, 0.64), 1),
    ],
)
def test_bench_widths_has_three_outcomes(
    ratio: Estimate, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("bench_widths", ratio, monkeypatch) == code
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out[:3]] == [f"multiples of {m:>2}" for m in (8, 1, 16)]
    assert out[3].startswith("with the target's multiple, 8: ")


@pytest.mark.parametrize(("value", "code"), [(0.55, 0), (0.61, 1), (0.49, 1)])
def test_bench_latency_budget_wants_it_between(
    value: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratio = Estimate(value, value - 0.02, value + 0.02)
    assert code_of("bench_latency_budget", ratio, monkeypatch, "--repeats", "2") == code
    assert f"afterwards {value:.3f}" in capsys.readouterr().out
