"""Surgery: exact on every network of the table, refused when anything is wrong, a network like any other."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeprune import surgery
from edgeprune.cost import count_params
from edgeprune.cutting import Cuts, cut
from edgeprune.errors import ModelError, PlanError, SlimError
from edgeprune.groups import find_groups
from edgeprune.models import load_model, source_of
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from edgeprune.surgery import TOLERANCE, load_slim, read_file, save_slim, slim
from tests.networks import (
    IMAGE,
    NETWORKS,
    built,
    conv,
    free_groups,
    gap,
    groups_of,
    half_plan,
    half_scores,
    randomise,
    zeroed_consumers,
)

CUTTABLE = [name for name, row in NETWORKS.items() if row.free]


# ---- exact


@pytest.mark.parametrize("name", CUTTABLE)
def test_slim_agrees_with_an_oracle_of_its_own(name: str) -> None:
    model, inputs = built(name)
    groups = groups_of(name)
    changes = []
    for seed in (0, 1):
        plan = half_plan(name, seed)
        assert {g: len(plan.removed(g)) for g in NETWORKS[name].free} == {
            g: size // 2 for g, size in NETWORKS[name].free.items()
        }
        small = slim(copy.deepcopy(model).double(), plan, example=inputs)
        assert gap(small, zeroed_consumers(model, groups, plan), inputs) <= TOLERANCE
        assert count_params(small) < count_params(model)
        changes.append(gap(small, copy.deepcopy(model).double(), inputs))
    # Negative control: the oracle is not blind, what is removed did matter (but where nothing reads it).
    assert (max(changes) > 1e-6) is (name != "slice_first")


@pytest.mark.parametrize("name", CUTTABLE[::4])
def test_slim_changes_nothing_of_the_dense_network(name: str) -> None:
    model, _ = built(name)
    before = copy.deepcopy(model.state_dict())
    text = repr(model)
    slim(model, half_plan(name))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert repr(model) == text


@pytest.mark.parametrize("name", ["residual", "grouped", "shuffle_module", "two_inputs"])
def test_a_plan_of_one_unit_and_a_plan_of_nothing(name: str) -> None:
    model, inputs = built(name)
    groups = groups_of(name)
    nothing = {group.name: torch.ones(group.size) for group in free_groups(groups)}
    whole = slim(model, make_plan(model, groups, nothing, inputs))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    for group in free_groups(groups):
        scores = {group.name: (torch.arange(group.size) > 0).float()}
        plan = make_plan(model, groups, scores, inputs, constants="off")
        small = slim(copy.deepcopy(model).double(), plan)
        assert gap(small, zeroed_consumers(model, groups, plan), inputs) <= TOLERANCE


# ---- a network like any other


@pytest.mark.parametrize("name", CUTTABLE)
def test_sizes_in_the_repr_are_true(name: str) -> None:
    small = slim(built(name)[0], half_plan(name))
    for module in small.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and "weight" in module._parameters:
            rows, columns = module.weight.shape[:2]
            sides = (module.in_channels, module.out_channels)
            expected = (
                (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
            )
            assert sides == expected
            assert module.in_channels % module.groups == module.out_channels % module.groups == 0
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.num_features == len(module.running_mean)
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)


def test_repr_of_a_depthwise_a_grouped_and_a_plain_norm() -> None:
    small = slim(built("depthwise_multiplier")[0], half_plan("depthwise_multiplier"))
    assert "(0): Conv2d(3, 6, groups=3" in repr(small.deep).replace(
        "kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), ", ""
    )
    small = slim(built("grouped_transposed")[0], half_plan("grouped_transposed"))
    assert (small.up.in_channels, small.up.out_channels, small.up.groups) == (4, 6, 2)
    small = slim(built("instance_norm")[0], half_plan("instance_norm"))
    assert (small.norm.num_features, small.plain.num_features) == (4, 3)


@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "grouped", "shared_conv", "tied_weights", "layer_scale"]
)
def test_a_slim_network_trains(name: str) -> None:
    model, _ = built(name)
    small = slim(model.train(), half_plan(name))
    assert all(module.training for module in small.modules())
    torch.manual_seed(1)
    images = torch.randn(8, *NETWORKS[name].inputs[0][1:])
    goal = torch.randn_like(small(images))
    optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(small(images), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["residual", "tied_weights", "layer_scale", "parametrized", "instance_norm"])
def test_deepcopy_and_state_dict_round_trip(name: str) -> None:
    model, inputs = built(name)
    small = slim(model, half_plan(name))
    with torch.no_grad():
        expected = small(*inputs)
        assert torch.equal(copy.deepcopy(small)(*inputs), expected)
        other = slim(built(name, seed=1)[0], half_plan(name))
        assert not torch.equal(other(*inputs), expected)
        other.load_state_dict(small.state_dict())
        assert torch.equal(other(*inputs), expected)


def test_what_is_tied_stays_tied() -> None:
    model, _ = built("tied_weights")
    small = slim(model, half_plan("tied_weights"))
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (4, 4, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_mode_and_requires_grad_stay(dtype: torch.dtype) -> None:
    model, inputs = built("residual")
    plan = make_plan(model, groups_of("residual"), half_scores(groups_of("residual")), inputs)
    model.to(dtype).train()
    model.a.eval()
    model.stem[0].weight.requires_grad_(False)
    model.head.float()  # a part in another dtype
    model.head.to(dtype)
    small = slim(model, plan)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small.stem[1].num_batches_tracked.dtype == torch.int64
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert type(small) is type(model)
    assert source_of(small) == source_of(model)


def test_tensors_that_are_plain_attributes_keep_their_dtype() -> None:
    model, _ = built("fixed_operand")
    assert slim(model, half_plan("fixed_operand")).offset.dtype == torch.float32


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    model, inputs = built("shuffle_module")
    model.cuda()
    groups = find_groups(model, inputs)
    assert groups == groups_of("shuffle_module")
    plan = make_plan(model, groups, half_scores(groups), inputs)
    small = slim(model, plan, example=inputs)
    assert {parameter.device.type for parameter in small.parameters()} == {"cuda"}


# ---- refused


def test_a_plan_for_another_network() -> None:
    plan = half_plan("residual")
    with pytest.raises(
        PlanError, match=r"could not use the plan: stem.0.weight is not in the network, expected sh"
    ):
        slim(built("perceptron")[0], plan)
    small = slim(built("residual")[0], plan)
    with pytest.raises(
        PlanError, match=r"stem.0.weight is of shape \(4, 3, 3, 3\), expected shape \(8, 3, 3, 3\)"
    ):
        slim(small, plan)


def test_an_example_that_does_not_fit() -> None:
    model, _ = built("residual")
    with pytest.raises(
        ModelError, match=r"could not run the dense network: its forward pass in float64 is failing"
    ):
        slim(model, half_plan("residual"), example=torch.zeros(1, 4, 8, 8))


def planted(change: Callable[[dict[tuple[str, int], Tensor]], Any]) -> Callable[[nn.Module, Cuts], None]:
    """``cut`` with a fault."""

    def cut_wrongly(model: nn.Module, cuts: Cuts) -> None:
        cuts = dict(cuts)
        change(cuts)
        cut(model, cuts)

    return cut_wrongly


def swap(cuts: dict[tuple[str, int], Tensor]) -> None:
    columns = cuts["a.0.weight", 1].clone()
    columns[[0, 1]] = columns[[1, 0]]
    cuts["a.0.weight", 1] = columns


def take_another(cuts: dict[tuple[str, int], Tensor]) -> None:
    gone = next(place for place in range(8) if place not in cuts["a.0.weight", 1])
    cuts["a.0.weight", 1] = torch.cat([cuts["a.0.weight", 1][1:], torch.tensor([gone])]).sort().values


def take_another_row(cuts: dict[tuple[str, int], Tensor]) -> None:
    gone = next(place for place in range(8) if place not in cuts["b.1.running_var", 0])
    cuts["b.1.running_var", 0] = torch.cat([cuts["b.1.running_var", 0][1:], torch.tensor([gone])])


FAULTS: dict[str, Callable[[dict[tuple[str, int], Tensor]], Any]] = {
    "a norm statistic is left long": lambda cuts: cuts.pop(("b.1.running_mean", 0)),
    "a bias is left long": lambda cuts: cuts.pop(("b.0.bias", 0)),
    "columns are left uncut": lambda cuts: cuts.pop(("a.0.weight", 1)),
    "rows are left uncut": lambda cuts: cuts.pop(("b.0.weight", 0)),
    "two columns are swapped": swap,
    "the wrong column is cut": take_another,
    "the wrong statistic is cut": take_another_row,
    "a tensor is cut that is not there": lambda cuts: cuts.update({("c.weight", 0): torch.tensor([0])}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_never_handed_over(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = built("residual")
    plan = half_plan("residual")
    slim(model, plan)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(surgery, "cut", planted(FAULTS[fault]))
    with pytest.raises(
        SlimError, match=r"could not slim the network: the (slim network is broken|largest relative)"
    ):
        slim(model, plan)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_forgotten_column_of_a_plan_is_never_handed_over() -> None:
    """A consumer that the groups forgot is not in the oracle either: the shapes give it away."""
    model, _ = built("residual")
    plan = half_plan("residual")
    group = plan.groups[0]
    for member in group.members:
        rest = tuple(other for other in group.members if other is not member)
        broken = dataclasses.replace(
            plan, groups=(dataclasses.replace(group, members=rest), *plan.groups[1:])
        )
        with pytest.raises(SlimError, match="could not slim the network"):
            slim(model, broken)


def test_a_lost_tie_is_never_handed_over() -> None:
    """Two producers of one stream that lose different units."""
    model, _ = built("two_inputs")
    plan = half_plan("two_inputs")
    group = plan.groups[0]
    shifted = [
        dataclasses.replace(m, indices=m.indices[1:] + m.indices[:1]) if m.tensor.startswith("b.") else m
        for m in group.members
    ]
    broken = dataclasses.replace(plan, groups=(dataclasses.replace(group, members=tuple(shifted)),))
    with pytest.raises(
        SlimError, match=r"the largest relative change of its outputs is \d.*expected at most 1e-10"
    ):
        slim(model, broken)


def test_a_forgotten_fold_is_never_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("residual")
    groups = groups_of("residual")
    with torch.no_grad():
        model.a[1].weight[:3] = 0
    plan = make_plan(model, groups, {"a.0": (torch.arange(6) >= 3).float()}, inputs)
    assert plan.groups[0].carrier is not None
    slim(model, plan)
    monkeypatch.setattr(surgery, "fold_constants", lambda *_: None)
    with pytest.raises(SlimError, match="the largest relative change of its outputs"):
        slim(model, plan)


def test_outputs_that_are_not_numbers_are_never_handed_over() -> None:
    model, _ = built("residual")
    model.head.bias.data[0] = float("nan")
    with pytest.raises(SlimError, match="the largest relative change of its outputs is inf"):
        slim(model, half_plan("residual"))


# ---- files


def tiny() -> nn.Module:
    """For ``package.module:function``."""
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 2))


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Plan]:
    """A dense ResNet-20 and a plan with constants, carriers and half of the multiply-adds."""
    torch.manual_seed(0)
    dense = load_model("resnet20")
    randomise(dense)
    with torch.no_grad():
        dense.layer1[0].bn1.weight[:5] = 0
    example = torch.zeros(1, 3, 32, 32)
    groups = find_groups(dense, example)
    scores = {g.name: torch.rand(g.size) for g in free_groups(groups)}
    scores["layer1.0.conv1"][:5] = 0
    return dense, make_plan(dense, groups, scores, example, max_macs_ratio=0.5)


LOAD = """
import sys, torch
from edgeprune.surgery import TOLERANCE, load_slim
small = load_slim(sys.argv[1])
torch.manual_seed(3)
torch.save({"y": small(torch.randn(2, 3, 32, 32)).detach(), "training": small.training}, sys.argv[2])
"""


def test_a_fresh_process_computes_the_same_bits(resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    small = slim(dense, plan)
    save_slim(small, plan, tmp_path / "slim.safetensors")
    subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "slim.safetensors", tmp_path / "y.pt"],
        check=True,
        timeout=120,
    )
    there = torch.load(tmp_path / "y.pt", weights_only=True)
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.equal(there["y"], small(torch.randn(2, 3, 32, 32)))
    assert not there["training"]


def test_equal_networks_give_equal_files(resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    for name in ("a", "b"):
        save_slim(slim(dense, plan), plan, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_file_keeps_the_dtype(dtype: torch.dtype, resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    small = slim(dense, plan).to(dtype)
    save_slim(small, plan, tmp_path / "slim")
    loaded = load_slim(tmp_path / "slim")
    for key, tensor in small.state_dict().items():
        assert loaded.state_dict()[key].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[key], tensor)


def test_a_network_of_the_users_own(tmp_path: Path) -> None:
    dense = load_model("tests.test_surgery:tiny")
    example = torch.zeros(IMAGE)
    groups = find_groups(dense, example)
    plan = make_plan(dense, groups, half_scores(groups), example, constants="off")
    small = slim(dense, plan)
    save_slim(small, plan, tmp_path / "slim")
    assert torch.equal(load_slim(tmp_path / "slim")(example), small(example))
    again = find_groups(small, example)
    second = make_plan(small, again, half_scores(again), example, constants="off")
    with pytest.raises(
        ModelError, match=r"could not save the slim network: its plan is for another network than te"
    ):
        save_slim(slim(small, second), second, tmp_path / "slim")


def test_what_cannot_be_saved(resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    with pytest.raises(ModelError, match=r"its source is unknown, expected a network made by load_model"):
        save_slim(slim(built("residual")[0], half_plan("residual")), half_plan("residual"), tmp_path / "slim")
    with pytest.raises(
        ModelError, match=r"conv1.weight is \(16, 3, 3, 3\), expected \(\d+, 3, 3, 3\), as source an"
    ):
        save_slim(dense, plan, tmp_path / "slim")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"could not save the weights: .*folder is not writable"):
        save_slim(slim(dense, plan), plan, tmp_path / "folder")
    assert not list(tmp_path.glob("slim*"))


def test_broken_files(resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    path = tmp_path / "slim"
    with pytest.raises(
        ModelError, match=r"could not load the network: .*slim is not there, expected a file of save"
    ):
        load_slim(path)
    save_slim(slim(dense, plan), plan, path)
    good = path.read_bytes()
    for broken in (b"", good[:7], good[:300], good[: len(good) // 2], b"PK" + good[2:], b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"could not load the network: .*slim is broken \("):
            load_slim(path)
    path.write_bytes(good)
    state = load_file(path)
    save_file(state, path)
    with pytest.raises(
        ModelError, match="slim is a safetensors file that does not say what network it is of"
    ):
        load_slim(path)
    surgery.write_weights(dense, path, {"source": source_of(dense)})
    assert read_file(path)[0] == {"source": {"name": "resnet20", "num_classes": 10}}
    with pytest.raises(
        ModelError, match=r"could not load the slim network: .*slim is a dense network, expected for"
    ):
        load_slim(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "is of format 7, expected format 1"),
        ({"source": {"name": "resnet32", "num_classes": 10}}, "is not what its source and plan build"),
        (
            {"source": {"name": "vgg16", "num_classes": 10}},
            "not what its source and plan build .could not use",
        ),
        ({"source": {"name": "nothing"}}, "not what its source and plan build .could not make the network"),
        ({"source": {"name": "nothing:here", "num_classes": 1}}, "not what its source and plan build"),
        ({"plan": "{"}, "not what its source and plan build .could not read the plan"),
        ({"plan": None}, "not what its source and plan build .could not read the plan"),
    ],
)
def test_files_that_contradict_themselves(
    change: dict[str, Any], message: str, resnet: tuple[nn.Module, Plan], tmp_path: Path
) -> None:
    dense, plan = resnet
    path = tmp_path / "slim"
    save_slim(slim(dense, plan), plan, path)
    about, state = read_file(path)
    save_file(state, path, {surgery.ABOUT: json.dumps(about | change)})
    with pytest.raises(ModelError, match=message):
        load_slim(path)


def test_a_file_without_one_of_its_tensors(resnet: tuple[nn.Module, Plan], tmp_path: Path) -> None:
    dense, plan = resnet
    path = tmp_path / "slim"
    save_slim(slim(dense, plan), plan, path)
    about, state = read_file(path)
    state.pop("linear.bias")
    save_file(state, path, {surgery.ABOUT: json.dumps(about)})
    with pytest.raises(
        ModelError, match=r"is not what its source and plan build .Error.* in loading state_dict"
    ):
        load_slim(path)
