"""Channel selects: norms on a shared stream have units of their own, exactly, and the stream stays."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune as ep
from edgeprune import surgery
from edgeprune.channel_select import SELECT, ChannelSelect, add_selects, can_select
from edgeprune.channels import ChannelGroup
from edgeprune.cli import main
from edgeprune.cost import count_params
from edgeprune.errors import PlanError, SlimError
from edgeprune.groups import find_groups
from edgeprune.models import load_model
from edgeprune.pipeline import STAGES, Settings
from edgeprune.plan import Plan
from edgeprune.schemes import SCHEMES, Magnitude, ProximalNS, make_scheme
from edgeprune.selection import make_plan
from edgeprune.surgery import TOLERANCE, load_slim, save_slim, slim
from tests.networks import (
    NETWORKS,
    Net,
    built,
    conv,
    free_groups,
    gap,
    half_scores,
    pooled,
    randomise,
    zeroed_consumers,
)
from tests.schemes.test_contract import QUICK
from tests.training.fakes import make_data

slow = pytest.mark.slow


@functools.cache
def select_groups(name: str) -> tuple[ChannelGroup, ...]:
    return find_groups(*built(name), channel_select=True)


def selected(groups: tuple[ChannelGroup, ...]) -> list[str]:
    """The norms that would get a select."""
    firsts = [group.members[0].tensor for group in groups if group.members]
    return [key.removesuffix(f".{SELECT}") for key in firsts if key.endswith(f".{SELECT}")]


@functools.cache
def half(name: str) -> Plan:
    model, inputs = built(name)
    groups = select_groups(name)
    return make_plan(model, groups, half_scores(groups), inputs, constants="off")


def closing_scores(model: nn.Module, groups: tuple[ChannelGroup, ...]) -> dict[str, Tensor]:
    """As a scheme that trains norm weights to 0 gives them."""
    state = model.state_dict()
    return {
        group.name: torch.tensor([max(abs(float(state[key][i])) for key, i in when) for when in conditions])
        for group in free_groups(groups)
        if None not in (conditions := group.constant_when)
    }


def close(model: nn.Module, share: float = 0.6) -> None:
    """Set many norm weights to 0, and let closed channels say something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            with torch.no_grad():
                module.weight[torch.rand(module.num_features) < share] = 0


# ---- units


def test_units_of_a_preactivation_network() -> None:
    groups = {group.name: group for group in select_groups("preactivation")}
    sizes = {name: (group.size, group.frozen_because) for name, group in groups.items()}
    assert sizes == {
        "stem": (8, "is read by the channel select of a.0"),
        "a.0": (8, None),
        "a.2": (5, None),
        "b.0": (8, None),
        "b.2": (5, None),
        "norm": (8, None),
        "head": (5, "reaches the output"),
    }
    vectors = [(f"b.0.{kind}", 0, "out") for kind in ("weight", "bias", "running_mean", "running_var")]
    places = [(member.tensor, member.axis, member.role) for member in groups["b.0"].members]
    assert places == [("b.0.channel_select", 0, "out"), *vectors, ("b.2.weight", 1, "in")]
    assert all(member.indices == tuple((i,) for i in range(8)) for member in groups["b.0"].members)
    assert groups["b.0"].constant_when == tuple((("b.0.weight", i),) for i in range(8))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("preactivation", ["a.0", "b.0", "norm"]),
        ("dense_block", ["a.0", "b.0", "c.0", "norm"]),
        ("residual", []),
        ("projection_shortcut", []),
        ("depthwise", []),
        ("instance_norm", []),
        ("squeeze_excite", []),
        ("shuffle_units", []),
    ],
)
def test_only_norms_on_a_shared_stream_get_a_select(name: str, norms: list[str]) -> None:
    assert selected(select_groups(name)) == norms
    if not norms:
        assert select_groups(name) == find_groups(*built(name))
    assert selected(find_groups(*built(name))) == []  # off by default


def stream_net(norm: nn.Module, function: Callable[[Any, Tensor], Tensor] | None = None) -> nn.Module:
    """A stream of 8 channels that a norm and a shortcut read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(pooled(x + m.a(F.relu(m.norm(x)))))

    net = Net(function or forward, stem=conv(3, 8), norm=norm, a=conv(8, 8), head=nn.Linear(8, 5)).eval()
    randomise(net)
    return net


class Added(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Doubled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var)


@pytest.mark.parametrize(
    ("norm", "norms"),
    [
        (nn.BatchNorm2d(8), ["norm"]),
        (nn.BatchNorm2d(8, affine=False), ["norm"]),
        (nn.InstanceNorm2d(8, affine=True), ["norm"]),
        (nn.InstanceNorm2d(8), ["norm"]),
        (Added(8), ["norm"]),
        (Doubled(8), []),  # not the module's input is normalised
        (nn.InstanceNorm2d(9), []),  # torch does not look at the width of a norm without vectors
        (Functional(), []),
        (nn.GroupNorm(2, 8), []),
        (nn.Identity(), []),
    ],
)
@pytest.mark.filterwarnings("ignore:input's size at dim")
def test_kinds_of_norms(norm: nn.Module, norms: list[str]) -> None:
    net, example = stream_net(norm), torch.randn(1, 3, 8, 8)
    groups = find_groups(net, example, channel_select=True)
    assert selected(groups) == norms
    if norms:
        plan = make_plan(net, groups, half_scores(groups), example, constants="off")
        small = slim(copy.deepcopy(net).double(), plan, example=example)
        assert gap(small, zeroed_consumers(net, groups, plan), (example,)) <= TOLERANCE
        assert small.norm.num_features == 4
        assert small.a.in_channels == 4


@pytest.mark.parametrize(("dimensions", "norm"), [(1, nn.BatchNorm1d), (3, nn.BatchNorm3d)])
def test_one_and_three_dimensions(dimensions: int, norm: type[nn.Module]) -> None:
    kind = getattr(nn, f"Conv{dimensions}d")

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head((x + m.a(F.relu(m.norm(x)))).flatten(2).mean(2))

    net = Net(forward, stem=kind(3, 8, 3), norm=norm(8), a=kind(8, 8, 1), head=nn.Linear(8, 5)).eval()
    randomise(net)
    example = torch.randn(1, 3, *[6] * dimensions)
    groups = find_groups(net, example, channel_select=True)
    assert selected(groups) == ["norm"]
    plan = make_plan(net, groups, half_scores(groups), example, constants="off")
    small = slim(copy.deepcopy(net).double(), plan, example=example)
    assert type(small.norm).__name__ == f"Select{norm.__name__}"
    assert gap(small, zeroed_consumers(net, groups, plan), (example,)) <= TOLERANCE


def test_a_norm_that_is_used_twice_and_has_two_names() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.a(F.relu(m.norm(x)))
        return m.head(pooled(x + m.a(F.relu(m.again(x)))))

    net = stream_net(nn.BatchNorm2d(8), forward)
    net.again = net.norm
    example = torch.randn(1, 3, 8, 8)
    groups = find_groups(net, example, channel_select=True)
    assert selected(groups) == ["norm"]
    plan = make_plan(net, groups, half_scores(groups), example, constants="off")
    small = slim(copy.deepcopy(net).double(), plan, example=example)
    assert small.norm is small.again
    assert small.norm.num_features == 4
    assert gap(small, zeroed_consumers(net, groups, plan), (example,)) <= TOLERANCE


# ---- exact


FAST = {"preactivation", "dense_block", "residual", "grouped", "chunk_of_concat", "instance_norm"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else slow) for name, row in NETWORKS.items() if row.free],
)
def test_exact_on_every_network_of_the_table(name: str) -> None:
    model, inputs = built(name)
    if not any(can_select(module) for module in model.modules()):
        assert not selected(select_groups(name))
        return
    small = slim(copy.deepcopy(model).double(), half(name), example=inputs)
    assert gap(small, zeroed_consumers(model, select_groups(name), half(name)), inputs) <= TOLERANCE


# Name -> norms on a stream; groups that can be cut with and without selects, their units; share of the
# multiply-adds and parameters in the half plan with selects.
PAPERS = [
    pytest.param("densenet40", 39, (39, 39), (9360, 936), (0.501, 0.500), marks=slow),
    pytest.param("resnet164", 55, (163, 112), (12112, 4496), (0.324, 0.329), marks=slow),
]


@pytest.mark.parametrize(("name", "norms", "free", "units", "shares"), PAPERS)
def test_the_networks_of_the_papers(
    name: str, norms: int, free: tuple[int, int], units: tuple[int, int], shares: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    model = load_model(name)
    randomise(model)
    example = torch.randn(1, 3, 32, 32)
    groups, plain = (find_groups(model, example, channel_select=on) for on in (True, False))
    assert tuple(len(free_groups(found)) for found in (groups, plain)) == free
    assert tuple(sum(group.size for group in free_groups(found)) for found in (groups, plain)) == units
    assert len(selected(groups)) == norms
    # Each norm has its own units, all of them, and one consumer or two: what its block reads.
    modules = dict(model.named_modules())
    own = [group for group in groups if group.name in selected(groups)]
    assert all(group.size == modules[group.name].num_features for group in own)
    assert all(
        [m.tensor.endswith("weight") for m in group.members if m.role == "in"] == [True] for group in own
    )
    plan = make_plan(model, groups, half_scores(groups), example, constants="off")
    small = slim(model, plan, example=example)
    assert len(plan.channel_selects) == norms
    facts = plan.facts
    ratios = (facts["slim_macs"] / facts["dense_macs"], count_params(small) / count_params(model))
    assert ratios == pytest.approx(shares, abs=2e-3)
    oracle = zeroed_consumers(model, groups, plan)
    assert gap(slim(oracle, Plan.from_json(plan.to_json())), oracle, (example,)) <= TOLERANCE

    # As after proximal network slimming: many gammas are 0, and the function stays to the last digit.
    close(model)
    plan = make_plan(model, groups, closing_scores(model, groups), example)
    assert all(set(group.constant) == set(group.removed) for group in plan.groups)
    assert len(plan.channel_selects) == norms
    dense = copy.deepcopy(model).double()
    assert gap(slim(dense, plan), dense, (example,)) <= TOLERANCE
    without = make_plan(model, plain, closing_scores(model, plain), example).facts
    assert plan.facts["slim_macs"] < 0.8 * without["slim_macs"]


@pytest.mark.parametrize("name", ["preactivation", "dense_block"])
@pytest.mark.parametrize("constants", ["auto", "fold"])
def test_closed_channels_go_without_a_change(name: str, constants: Any) -> None:
    model, inputs = built(name)
    close(model)
    groups = select_groups(name)
    plan = make_plan(model, groups, closing_scores(model, groups), inputs, constants=constants)
    assert {group.name for group in plan.groups} & set(selected(groups))
    assert all(set(group.constant) == set(group.removed) for group in plan.groups)
    dense = copy.deepcopy(model).double()
    assert gap(slim(dense, plan), dense, inputs) <= TOLERANCE


def test_only_norms_that_lose_units_get_a_select() -> None:
    model, inputs = built("preactivation")
    groups = select_groups("preactivation")
    scores = {group.name: torch.ones(group.size) for group in free_groups(groups)}
    scores["b.0"][[1, 4]] = 0
    plan = make_plan(model, groups, scores, inputs, constants="off")
    assert plan.channel_selects == ("b.0",)
    small = slim(model, plan)
    assert [name for name, module in small.named_modules() if isinstance(module, ChannelSelect)] == ["b.0"]
    assert small.b[0].channel_select.tolist() == [0, 2, 3, 5, 6, 7]
    assert type(small.a[0]) is nn.BatchNorm2d


# ---- a network like any other


def test_keys_repr_copies_and_the_dense_network() -> None:
    model, inputs = built("preactivation")
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    small = slim(model, half("preactivation"), example=inputs)
    assert repr(model) == text
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert set(small.state_dict()) - set(before) == {f"{norm}.{SELECT}" for norm in ("a.0", "b.0", "norm")}
    assert set(before) < set(small.state_dict())
    assert repr(small.a[0]).startswith("SelectBatchNorm2d(4, eps=1e-05, ")
    assert repr(small.a[0]).endswith(", reads 4 of 8 channels)")
    with torch.no_grad():
        expected = small(*inputs)
        assert torch.equal(copy.deepcopy(small)(*inputs), expected)
        assert torch.equal(torch.export.export(small, inputs).module()(*inputs), expected)
        other = slim(built("preactivation", seed=1)[0], half("preactivation"))
        other.norm.channel_select.zero_()
        other.load_state_dict(small.state_dict())
        assert torch.equal(other(*inputs), expected)
    norm = pickle.loads(pickle.dumps(small.norm))
    assert type(norm) is type(small.norm)
    assert torch.equal(norm.channel_select, small.norm.channel_select)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_select_stays_whole_numbers_and_the_network_trains(dtype: torch.dtype) -> None:
    model, inputs = built("preactivation")
    model.to(dtype).train()
    small = slim(model, half("preactivation"))
    assert small.norm.channel_select.dtype == torch.int64
    assert all(module.training for module in small.modules())
    loss = small(torch.cat([inputs[0]] * 4).to(dtype)).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_hooks_of_a_norm_stay() -> None:
    model, inputs = built("preactivation")
    seen: list[int] = []
    model.norm.register_forward_hook(lambda *values: seen.append(values[-1].shape[1]))
    small = slim(model, half("preactivation"))
    seen.clear()
    small(*inputs)
    assert seen == [4]


@pytest.mark.parametrize("again", [True, False])
def test_a_slim_network_can_be_slimmed_again(again: bool) -> None:
    model, inputs = built("preactivation")
    first = slim(model, half("preactivation"))
    groups = find_groups(first, inputs, channel_select=again)
    assert selected(groups) == ["a.0", "b.0", "norm"]
    assert {group.name: group.size for group in free_groups(groups)}["a.0"] == 4
    plan = make_plan(first, groups, half_scores(groups, seed=1), inputs, constants="off")
    assert plan.channel_selects == ()  # they are there
    second = slim(copy.deepcopy(first).double(), plan)
    assert gap(second, zeroed_consumers(first, groups, plan), inputs) <= TOLERANCE
    assert repr(second.a[0]).endswith("reads 2 of 8 channels)")
    assert set(second.a[0].channel_select.tolist()) < set(first.a[0].channel_select.tolist())


def preactivation(num_classes: int = 10) -> nn.Module:
    """For ``load_model``."""
    torch.manual_seed(0)
    net = NETWORKS["preactivation"].build()
    net.head = nn.Linear(8, num_classes)
    randomise(net)
    return net


def test_save_and_load(tmp_path: Path) -> None:
    model = load_model("tests.test_channel_select:preactivation", num_classes=5)
    small = slim(model, half("preactivation"))
    save_slim(small, half("preactivation"), tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors")
    assert repr(loaded) == repr(small)
    assert loaded.norm.channel_select.tolist() == list(half("preactivation").groups[-1].keep)
    state = small.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in loaded.state_dict().items())
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(image), small(image))


@slow
@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_one_gather_per_select_in_onnx(tmp_path: Path, dynamic_batch: bool) -> None:
    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            x = x + self[2](F.relu(self[1](x)))
            return self[4](pooled(F.relu(self[3](x))))

    model = Network(conv(3, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8), nn.Linear(8, 5)).eval()
    randomise(model)
    example = torch.randn(1, 3, 8, 8)
    groups = find_groups(model, example, channel_select=True)
    plan = make_plan(model, groups, half_scores(groups), example, constants="off")
    assert plan.channel_selects == ("1", "3")
    kinds = {}
    for name, network in (("slim", slim(model, plan)), ("dense", model)):
        artifact = ep.export(network, example, tmp_path / f"{name}.onnx", dynamic_batch=dynamic_batch)
        assert artifact.parity_error <= 1e-4
        kinds[name] = [node.op_type for node in onnx.load(artifact.path).graph.node]
    assert kinds["slim"].count("Gather") == 2
    assert [kind for kind in kinds["slim"] if kind != "Gather"] == kinds["dense"]


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    model, inputs = built("preactivation")
    model.cuda()
    groups = find_groups(model, inputs, channel_select=True)
    assert groups == select_groups("preactivation")
    small = slim(model, make_plan(model, groups, half_scores(groups), inputs), example=inputs)
    assert {tensor.device.type for tensor in small.state_dict().values()} == {"cuda"}


# ---- refused


def test_a_wrong_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_wrongly(model: nn.Module, names: Any) -> None:
        add_selects(model, names)
        for module in model.modules():
            if isinstance(module, ChannelSelect):
                module.channel_select.copy_(module.channel_select.roll(1))

    model, _ = built("preactivation")
    slim(model, half("preactivation"))
    monkeypatch.setattr(surgery, "add_selects", add_wrongly)
    with pytest.raises(SlimError, match="the largest relative change of its outputs is"):
        slim(model, half("preactivation"))


def test_json_round_trip_and_a_plan_from_before() -> None:
    plan = half("preactivation")
    assert plan.channel_selects == ("a.0", "b.0", "norm")
    assert plan.shapes["a.0.channel_select"] == (8,)
    assert Plan.from_json(plan.to_json()) == plan
    model, inputs = built("preactivation")
    groups = find_groups(model, inputs)
    value = json.loads(make_plan(model, groups, half_scores(groups), inputs, constants="off").to_json())
    assert value.pop("channel_selects") == []
    old = Plan.from_json(json.dumps(value))
    assert old.channel_selects == ()
    assert not any(isinstance(module, ChannelSelect) for module in slim(model, old).modules())


@pytest.mark.parametrize("value", [3, [1], ["stem"], ["nowhere"]])
def test_a_broken_plan(value: Any) -> None:
    plan = json.loads(half("preactivation").to_json()) | {"channel_selects": value}
    with pytest.raises(PlanError, match=r"could not read the plan: the text is broken"):
        Plan.from_json(json.dumps(plan))


def without_norm(net: nn.Module) -> None:
    del net.norm


def with_select(net: nn.Module) -> None:
    add_selects(net, ["norm"])


def wider(net: nn.Module) -> None:
    net.norm = nn.BatchNorm2d(9)


def of_groups(net: nn.Module) -> None:
    net.norm = nn.GroupNorm(2, 8)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_norm, "not in the network"),
        (with_select, "SelectBatchNorm2d"),
        (wider, "BatchNorm2d.9"),
        (of_groups, "GroupNorm"),
    ],
)
def test_a_plan_for_another_network(change: Callable[[nn.Module], None], found: str) -> None:
    model, _ = built("preactivation")
    change(model)
    rule = "expected a batch or instance norm of 8 channels, without a channel select"
    with pytest.raises(PlanError, match=rf"could not use the plan: norm is {found}.*{rule}"):
        slim(model, half("preactivation"))


def test_a_plan_that_does_not_name_its_select() -> None:
    plan = dataclasses.replace(half("preactivation"), channel_selects=("a.0", "b.0"))
    with pytest.raises(PlanError, match=r"norm.channel_select is not in the network, expected shape \(8,\)"):
        slim(built("preactivation")[0], plan)


def test_groups_of_another_network() -> None:
    model, inputs = built("residual")
    groups = select_groups("preactivation")
    with pytest.raises(
        PlanError, match=r"could not make a plan: the groups is with a.0.channel_select, expec"
    ):
        make_plan(model, groups, half_scores(groups), inputs, constants="off")


# ---- schemes


@pytest.mark.slow
def test_every_scheme_scores_norms_with_selects() -> None:
    torch.manual_seed(0)
    data = make_data(contrast=1.0)
    for name in SCHEMES:
        model, _ = built("preactivation")
        groups = find_groups(model, data.example, channel_select=True)
        scores = make_scheme(name, **QUICK[name]).fit(model, groups, data)
        assert {"a.0", "b.0", "norm"} <= set(scores), name
        plan = make_plan(model, groups, scores, data.example, max_macs_ratio=0.8)
        assert slim(model, plan)(data.example).shape == model(data.example).shape


def test_magnitude_of_a_select_is_that_of_what_reads_it() -> None:
    model, _ = built("preactivation")
    scores = Magnitude(p=1, normalize="none").fit(model, select_groups("preactivation"), make_data())
    assert torch.allclose(scores["a.0"], model.a[2].weight.detach().abs().sum((0, 2, 3)))
    assert torch.allclose(scores["norm"], model.head.weight.detach().abs().sum(0))
    assert torch.allclose(scores["a.2"], model.a[2].weight.detach().abs().sum((1, 2, 3)))


def test_proximal_slimming_loses_nothing() -> None:
    data = make_data(contrast=1.0)
    model, _ = built("preactivation")
    groups = find_groups(model, data.example, channel_select=True)
    scheme = ProximalNS(l1=8.0, beta=20.0, epochs=4, lr=0.05)
    plan = make_plan(model, groups, scheme.fit(model, groups, data), data.example)
    assert plan.channel_selects
    dense = copy.deepcopy(model).double()
    assert gap(slim(dense, plan), dense, (data.example,)) <= TOLERANCE


# ---- the command line

TINY = """
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv(F.relu(self.norm(x)))

def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=4, padding=1), Block(), Block(), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""


def test_settings_decide_the_stages_and_the_command() -> None:
    settings = Settings("resnet164", channel_select=True)
    assert "--channel-select" in settings.command("runs/x")
    assert "channel" not in Settings("resnet164").command("runs/x")
    assert Settings.from_json(settings.to_json()) == settings
    assert [stage.name for stage in STAGES if "channel_select" in stage.settings] == ["score", "plan"]


def test_prune_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny_stream.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path)

    def told(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            main([*words, "--out", str(tmp_path / "run")] if words[0] != "groups" else list(words))
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out, err

    shown, _ = told("groups", "--model", "tiny_stream:net", "--channel-select", "--json")
    free = [group["name"] for group in json.loads(shown)["groups"] if not group["frozen_because"]]
    assert free == ["1.norm", "2.norm", "3"]
    told("train", "--model", "tiny_stream:net", "--train-epochs", "0")
    options = ("--scheme", "magnitude", "--max-macs-ratio", "0.7", "--channel-multiple", "4")
    told("prune", *options, "--channel-select")
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.channel_selects
    assert all(len(group.keep) % 4 == 0 for group in plan.groups)
    assert "done" not in told("prune")[1]
    _, told_again = told("prune", "--no-channel-select", "--max-macs-ratio", "0.9")
    assert "score     done" in told_again
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()).channel_selects == ()
