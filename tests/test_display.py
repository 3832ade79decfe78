"""Progress: bars on a terminal that fit 80 columns, plain lines elsewhere. The tree of channel groups."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.cli import display as display_module
from edgeprune.cli.display import Display
from edgeprune.cli.tree import _percent as display_percent
from edgeprune.cli.tree import folded, group_tree
from edgeprune.groups import find_groups
from edgeprune.shares import Shares
from edgeprune.training import Progress
from tests.networks import Net, conv

PROGRESS = Progress("proximal-ns", 100, 160, 300, 352, 12345.6, 754.0, 0.463, 2.662, 0.7, 0.944)


def shown(terminal: bool, progress: Progress = PROGRESS) -> str:
    display = Display()
    out = io.StringIO()
    display.console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    with display:
        display.stage("train", "skipped")
        display.stage("score", "begin")
        display.training(progress)
        if display.bars is not None:
            display.bars.refresh()
        display.stage("score", "done", "3.0 s")
        display.stage("bench", "begin")
        display.step(3, 17, "memory of dense.onnx, process 2 of 3")
        if display.bars is not None:
            display.bars.refresh()
    return out.getvalue()


def test_a_terminal_shows_rate_objective_sparsity_accuracy_and_time_left_in_80_columns() -> None:
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(terminal=True)).replace("\r", "\n").split("\n")
    bars = [line for line in lines if "proximal-ns 100/160" in line]
    assert bars
    assert all(len(line) <= 80 for line in lines)
    for part in ("12346 img/s", "obj 2.662", "zeros 70 %", "val 94.4 %"):
        assert part in bars[-1]
    assert any("process 2 of 3" in line for line in lines)


def test_elsewhere_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "proximal-ns" not in shown(terminal=False)  # not more often than every PLAIN_EVERY_S
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    text = shown(terminal=False)
    assert "\x1b" not in text
    assert "train     nothing has changed, skipped\n" in text
    assert "  proximal-ns 100/160: 12346 img/s obj 2.662 zeros 70 % val 94.4 %, 754 s left\n" in text
    assert "score     done in 3.0 s\n" in text
    assert "  bench: memory of dense.onnx, process 2 of 3\n" in text


def test_the_macs_that_would_remain_are_shown_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = replace(PROGRESS, macs_ratio=0.431)
    assert "MACs" not in shown(terminal=True, progress=progress)  # 80 columns
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    assert "zeros 70 % MACs 43 % val 94.4 %, 754 s left" in shown(terminal=False, progress=progress)


def test_without_a_penalty_the_loss_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_EVERY_S", 0.0)
    plain = Progress("train", 1, 2, 3, 4, 5.0, 6.0, 0.5, None, None, None)
    assert "train 1/2: 5 img/s loss 0.500, 6 s left" in shown(terminal=False, progress=plain)


# ---- the tree of channel groups


def tree(
    network: nn.Module,
    *,
    shape: tuple[int, ...] = (1, 3, 8, 8),
    groups: tuple[ChannelGroup, ...] | None = None,
    members: bool = False,
    width: int = 80,
    terminal: bool = False,
) -> str:
    example, out = torch.zeros(shape), io.StringIO()
    found = find_groups(network, example) if groups is None else groups
    shares = Shares(network, example)
    console = Console(file=out, width=width, highlight=False, force_terminal=terminal)
    console.print(group_tree("net", network, found, shares, members=members, width=width))
    return out.getvalue()


def chain() -> nn.Module:
    """Weights of 108, 36 and 72 entries, each read at 64 places, and of 1280; 8 + 4 + 5 params besides."""
    return nn.Sequential(
        conv(3, 4, bias=False), nn.BatchNorm2d(4), conv(4, 4, groups=4), nn.ReLU(),
        conv(4, 4, bias=False, groups=2), nn.Flatten(), nn.Linear(256, 5),
    )  # fmt: skip


def test_a_tree_by_hand() -> None:
    assert (
        tree(chain(), members=True)
        == f"""\
net
{"":20}   units    params      MACs
├── 0                      2   {100 * 228 / 1513:.2f} %   {100 * 13824 / 15104:.2f} %
│   ├── makes   0  weight (x2)
│   ├── carries 1  weight, bias, running_mean, running_var (x2)
│   ├── carries 2  weight, bias (x2)
│   └── ->      4  weight
├── 4                      2   {100 * 1352 / 1513:.2f} %   {100 * 5888 / 15104:.2f} %
│   ├── makes   4  weight (x2)
│   └── ->      6  weight (x128)
└── frozen                 5   {100 * 1285 / 1513:.2f} %    {100 * 1280 / 15104:.2f} %
    └── reaches the output
        └── 6              5   {100 * 1285 / 1513:.2f} %    {100 * 1280 / 15104:.2f} %
            └── makes   6  weight, bias

can be cut  2 groups  4 units
frozen      1 group   5 units  reaches the output
in reach    {100 * 1508 / 1513:.2f} % of the params, 100.00 % of the MACs
"""
    )


def test_frozen_groups_with_one_reason_are_one_line_unless_members_are_shown() -> None:
    short = tree(chain())
    assert "    └── reaches the output: 6\n" in short
    assert "makes" not in short
    assert len(short.splitlines()) == 10


def test_reasons_that_differ_in_the_module_alone_are_one() -> None:
    def layer() -> nn.Module:
        return nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), conv(4, 3))

    net = Net(lambda m, x: m.out(m.b(m.a(x))), a=layer(), b=layer(), out=conv(3, 2))
    text = tree(net)
    assert "    ├── group_norm in ... computes statistics over channels: a.0, b.0\n" in text
    assert (
        "frozen      2 groups  8 units  group_norm in ... computes statistics over\n            channels\n"
        in text
    )
    full = tree(net, members=True)
    assert "├── group_norm in a.1 computes statistics over channels\n" in full
    assert "├── group_norm in b.1 computes statistics over channels\n" in full


def test_long_names_and_reasons_fit_and_nothing_is_left_out() -> None:
    net = nn.Sequential(conv(3, 4), conv(4, 2))
    name, reason = "encoder." * 9 + "conv", "because " * 20 + "it is (so)"
    found = find_groups(net, torch.zeros(1, 3, 8, 8))
    groups = (
        ChannelGroup(name, found[0].size, found[0].members),
        ChannelGroup("b" * 60, found[1].size, found[1].members, reason),
    )
    for members in (False, True):
        lines = tree(net, groups=groups, members=members).splitlines()
        assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
        assert lines[2] == f"├── {name}"
        assert re.fullmatch(r"│ +4 +98\.92 % +100\.00 %", lines[3])
        assert "b" * 60 in " ".join(lines)
        assert re.sub(r"[\W│]+", " ", " ".join(lines)).count("because " * 20 + "it is") == 2


def test_a_terminal_has_colours_and_the_same_text() -> None:
    coloured = tree(chain(), members=True, terminal=True)
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert plain == tree(chain(), members=True)


def test_only_some_of_the_units_and_products_without_a_weight() -> None:
    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return m.b(y[:, :2]) + m.c(y) + (x.flatten(2) @ x.flatten(2).transpose(1, 2)).mean()

    text = tree(Net(forward, a=conv(3, 6), b=conv(2, 2), c=conv(6, 2)), members=True)
    assert "in no share " in text
    assert text.rstrip().endswith("% of the MACs: products that read no stored weight")


def test_a_network_without_layers() -> None:
    assert tree(nn.ReLU()).splitlines()[2:] == [
        "", "can be cut  0 groups  0 units", "in reach    0.00 % of the params, 0.00 % of the MACs"
    ]  # fmt: skip


def test_almost_all_is_not_all_and_almost_nothing_is_not_nothing() -> None:
    shown = [display_percent(share) for share in (0.0, 1e-9, 0.00004, 0.00005, 0.5, 0.99996, 1.0)]
    assert shown == ["0.00 %", "< 0.01 %", "< 0.01 %", "0.01 %", "50.00 %", "99.99 %", "100.00 %"]


def test_reasons_of_channel_selects_are_one() -> None:
    network = nn.ModuleDict({"a": nn.Identity(), "b": nn.Identity()})
    reasons = ["is read by the channel select of a", "is read by the channel select of b", "view in a cuts"]
    frozen = {reason: [ChannelGroup(reason[-1], 1, (), reason)] for reason in reasons}
    found = {reason: [group.name for group in groups] for reason, groups in folded(frozen, network).items()}
    assert found == {"is read by the channel select of ...": ["a", "b"], "view in a cuts": ["s"]}
