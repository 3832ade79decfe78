"""Channels that only an inexact cut can remove: frozen, unless they are asked for."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.channels import ChannelGroup
from edgeprune.errors import InexactWarning, SlimError
from edgeprune.groups import find_groups
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from edgeprune.surgery import slim
from tests.conftest import run
from tests.networks import IMAGE, Net, cbr, conv, free_groups, half_scores, pooled


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def stack(norm: nn.Module) -> nn.Module:
    return nn.Sequential(cbr(3, 8), conv(8, 12), norm, nn.ReLU(), conv(12, 4), nn.BatchNorm2d(4), conv(4, 2))


def gated(function: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return pooled(m.b(function(x)))

    return Net(forward, a=cbr(3, 8), b=conv(8, 2))


NORMS = {
    "group norm": (lambda: nn.GroupNorm(3, 12), 4),
    "one group": (lambda: nn.GroupNorm(1, 12), 12),
    "layer norm over channels": (lambda: LayerNorm2d(12), 12),
}


def half(net: nn.Module, groups: tuple[ChannelGroup, ...]) -> Plan:
    return make_plan(net, groups, half_scores(groups), torch.zeros(IMAGE), constants="off")


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_channels(name: str) -> None:
    build, size = NORMS[name]
    net = stack(build()).eval()
    frozen = {group.name: group.frozen_because for group in find_groups(net, torch.zeros(IMAGE))}
    assert "computes statistics over channels" in str(frozen["1"])
    groups = {group.name: group for group in find_groups(net, torch.zeros(IMAGE), exact=False)}
    assert {name: group.size for name, group in groups.items() if group.frozen_because is None} == {
        "0.0": 8,
        "1": size,
        "4": 4,
    }
    assert {name for name, group in groups.items() if group.inexact_because} == {"1"}
    assert "computes statistics over channels" in str(groups["1"].inexact_because)
    assert {"1.weight", "1.bias", "2.weight", "2.bias", "4.weight"} == {m.tensor for m in groups["1"].members}
    plan = half(net, tuple(groups.values()))
    with pytest.warns(
        InexactWarning, match=r"outputs are off by \d\.\de-0[0-3] relative .*because of 1 \(.*norm"
    ):
        small = slim(net, plan)
    assert small[1].out_channels == 6
    assert "6" in repr(small[2])
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 2, 8, 8)
    with pytest.warns(InexactWarning):
        again = slim(net, Plan.from_json(plan.to_json()))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.mean(1, keepdim=True).sigmoid(),
        lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-3),
        lambda x: x.softmax(1),
        lambda x: x - x.amax(1, keepdim=True),
    ],
)
def test_reductions_over_channels(function: Any) -> None:
    net = gated(function).eval()
    assert free_groups(find_groups(net, torch.zeros(IMAGE))) == []
    groups = find_groups(net, torch.zeros(IMAGE), exact=False)
    assert [(g.name, g.size) for g in free_groups(groups)] == [("a.0", 8)]
    assert "reduces over channels" in str(groups[0].inexact_because)
    with pytest.warns(InexactWarning, match=r"because of a.0 \(.* reduces over channels\)"):
        assert slim(net, half(net, groups)).a[0].out_channels == 4


def test_what_depends_on_positions_stays_frozen() -> None:
    for function in (lambda x: x * x.argmax(1, keepdim=True), lambda x: x.cumsum(1)):
        groups = find_groups(gated(function), torch.zeros(IMAGE), exact=False)
        assert free_groups(groups) == []


def test_nothing_is_offered_that_does_not_run() -> None:
    """A layer norm without parameters keeps its hard-coded width; one over space too is of another kind."""
    for norm in (LayerNorm2d(12, elementwise_affine=False), nn.LayerNorm((12, 8, 8))):
        groups = {group.name: group for group in find_groups(stack(norm), torch.zeros(IMAGE), exact=False)}
        assert groups["1"].frozen_because is not None
        assert groups["1"].inexact_because is None
        assert groups["0.0"].frozen_because is None


def test_networks_without_such_layers_are_the_same_either_way() -> None:
    net = stack(nn.BatchNorm2d(12)).eval()
    groups = find_groups(net, torch.zeros(IMAGE), exact=False)
    assert groups == find_groups(net, torch.zeros(IMAGE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim(net, half(net, groups))


def test_the_exact_part_of_a_plan_is_held_to_the_oracle() -> None:
    net = stack(nn.GroupNorm(3, 12)).eval()
    plan = half(net, find_groups(net, torch.zeros(IMAGE), exact=False))
    first = plan.groups[0]
    assert first.inexact_because is None
    wrong = tuple(
        dataclasses.replace(member, indices=member.indices[1:] + member.indices[:1])
        if member.role == "in"
        else member
        for member in first.members
    )
    broken = dataclasses.replace(plan, groups=(dataclasses.replace(first, members=wrong), *plan.groups[1:]))
    with pytest.raises(SlimError, match="the largest relative change of its outputs"):
        slim(net, broken)


def test_outputs_that_are_not_numbers_are_refused() -> None:
    net = stack(nn.GroupNorm(3, 12)).eval()
    plan = half(net, find_groups(net, torch.zeros(IMAGE), exact=False))
    only = dataclasses.replace(plan, groups=tuple(g for g in plan.groups if g.inexact_because))
    with torch.no_grad():
        net[-1].bias[0] = float("nan")
    with pytest.raises(SlimError, match="the largest relative change of its outputs is inf"):
        slim(net, only)


def test_plans_from_before_there_were_inexact_groups() -> None:
    net = stack(nn.BatchNorm2d(12)).eval()
    plan = half(net, find_groups(net, torch.zeros(IMAGE)))
    assert Plan.from_json(plan.to_json().replace('"inexact_because": null, ', "")) == plan


def test_the_command_line_offers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups marked in the tree; a run says by how much the function changed, and goes on."""
    (tmp_path / "user_with_group_norm.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=4), nn.GroupNorm(2, 16), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    model = ("--model", "user_with_group_norm:net")
    tree = run(capsys, "groups", *model, "--inexact")[1]
    assert "── 0 ~" in tree
    assert "inexactly ~ 1 group" in tree
    assert run(capsys, "train", *model, "--data", "digits", "--train-epochs", "0", "--out", "run")[0] == 0
    budget = ("--max-params-ratio", "0.8", "--target", "local-cpu", "--out", "run")
    code, _, err = run(capsys, "prune", "--scheme", "magnitude", *budget, "--inexact")
    assert code == 0, err
    facts = (tmp_path / "run" / "run.json").read_text()
    assert "slimming changed the function: its outputs are off by" in facts
    code, _, err = run(capsys, "prune", "--exact", "--out", "run")
    assert code == 2
    assert "could not reach the budget" in err
