"""Channel groups: what is found in each network of the table, what is frozen and why."""

from __future__ import annotations

import copy
import itertools
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.groups import find_groups
from edgeprune.trial import ATTEMPTS, FEW_ATTEMPTS, MANY_ATTEMPTS, Trial, some_units
from tests.networks import IMAGE, NETWORKS, Net, built, cbr, conv, free_groups, groups_of


@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_cut_and_what_not_and_why(name: str) -> None:
    groups = groups_of(name)
    free = {group.name: group.size for group in free_groups(groups)}
    assert free == NETWORKS[name].free
    reasons = {group.name: group.frozen_because for group in groups if group.frozen_because}
    inner = {group: reason for group, reason in reasons.items() if reason != "reaches the output"}
    assert inner.keys() == NETWORKS[name].frozen.keys()
    for group, part in NETWORKS[name].frozen.items():
        assert part in inner[group]


@pytest.mark.parametrize("name", NETWORKS)
def test_members_are_places_of_the_network_and_no_place_is_in_two_groups(name: str) -> None:
    model, _ = built(name)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    seen: set[tuple[str, int, int]] = set()
    for group in groups_of(name):
        assert not group.members or group.members[0].role == "out"
        assert group.members or group.frozen_because
        assert len(group.constant_when) == group.size
        for member in group.members:
            assert len(member.indices) == group.size
            places = [(member.tensor, member.axis, place) for unit in member.indices for place in unit]
            assert all(0 <= place < shapes[member.tensor][member.axis] for *_, place in places)
            assert len(set(places)) == len(places)
            assert seen.isdisjoint(places)
            seen |= set(places)


def test_members_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    first, second, last = find_groups(net, torch.zeros(1, 3, 4, 4))
    assert (first.name, first.size, second.name, second.size) == ("0", 2, "3", 2)
    assert [(m.tensor, m.axis, m.role, m.norm, m.indices) for m in first.members] == [
        ("0.weight", 0, "out", None, ((0, 2), (1, 3))),
        ("0.bias", 0, "out", None, ((0, 2), (1, 3))),
        ("1.weight", 0, "out", "weight", ((0, 2), (1, 3))),
        ("1.bias", 0, "out", "bias", ((0, 2), (1, 3))),
        ("1.running_mean", 0, "out", "running_mean", ((0, 2), (1, 3))),
        ("1.running_var", 0, "out", "running_var", ((0, 2), (1, 3))),
        ("3.weight", 1, "in", None, ((0,), (1,))),
    ]
    assert first.members[-1].padded
    assert first.members[-1].mean_after == "4.running_mean"
    assert first.constant_when == ((("1.weight", 0), ("1.weight", 2)), (("1.weight", 1), ("1.weight", 3)))
    columns = second.members[-1]
    assert (columns.tensor, columns.axis, columns.padded, columns.mean_after) == ("6.weight", 1, False, None)
    assert columns.indices[0] == (0, 1, 2, 3, 8, 9, 10, 11)
    assert columns.positions([1]) == [4, 5, 6, 7, 12, 13, 14, 15]
    assert (last.name, last.frozen_because) == ("6", "reaches the output")


def test_a_reason_names_operator_and_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.GroupNorm(2, 4)), nn.Conv2d(4, 2, 1))
    frozen = find_groups(net, torch.zeros(1, 3, 8, 8))[0].frozen_because
    assert frozen == "group_norm in 1.0 computes statistics over channels"


@pytest.mark.parametrize("name", ["shuffle_unit", "aside_in_training", "unused_branch"])
def test_the_network_is_not_changed(name: str) -> None:
    model, inputs = built(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    find_groups(model, inputs)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_the_same_groups_whatever_the_weights_and_the_example_are() -> None:
    model, inputs = built("shuffle_unit")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert find_groups(model, tuple(torch.zeros_like(x) for x in inputs)) == groups_of("shuffle_unit")
    assert find_groups(model, torch.zeros(4, *IMAGE[1:])) == groups_of("shuffle_unit")


def test_half_precision_and_double() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    expected = find_groups(net, torch.zeros(IMAGE))
    for dtype in (torch.bfloat16, torch.float64):
        assert find_groups(net.to(dtype), torch.zeros(IMAGE, dtype=dtype)) == expected


def test_a_group_is_named_once() -> None:
    names = [group.name for group in groups_of("slice_hard_coded")]
    assert names == ["stem.0", "stem.0#2", "a.0", "b.0", "out"]


# ---- what cannot be read


def test_an_input_that_does_not_fit() -> None:
    with pytest.raises(
        ModelError, match=r"could not run the network: the example input is \[\(1, 4, 8, 8\)\]"
    ):
        find_groups(nn.Conv2d(3, 8, 3), torch.zeros(1, 4, 8, 8))


def test_data_dependent_control_flow() -> None:
    net = Net(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    with pytest.raises(
        ModelError, match=r"could not read the network's graph: torch.export is .*expected a forw"
    ):
        find_groups(net, torch.zeros(IMAGE))


def test_a_network_that_insists_on_float32() -> None:
    net = Net(lambda m, x: m.b(m.a(x).float()), a=conv(3, 4), b=conv(4, 2))
    with pytest.raises(
        ModelError, match=r"could not run the network in float64, in which every cut is checked"
    ):
        find_groups(net, torch.zeros(IMAGE))


def test_a_network_that_cannot_be_copied() -> None:
    net = nn.Conv2d(3, 4, 3)
    net.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"could not copy the network: copy.deepcopy is refused"):
        find_groups(net, torch.zeros(IMAGE))


@pytest.mark.parametrize("example", [[1, 2], torch.tensor(1.0), torch.zeros(0, 3, 8, 8), ("x",)])
def test_an_example_that_is_none(example: Any) -> None:
    with pytest.raises(
        ModelError, match=r"could not use the example input: one of its values is .*expected a te"
    ):
        find_groups(nn.Conv2d(3, 4, 3), example)


def test_without_any_layer_there_is_no_group() -> None:
    assert find_groups(nn.Sequential(nn.ReLU()), torch.zeros(IMAGE)) == ()


# ---- deciding by trying


@pytest.mark.parametrize("size", [2, 3, 4, 8, 31])
def test_every_unit_is_cut_in_one_attempt_and_never_all_at_once(size: int) -> None:
    for name, count in itertools.product(
        ("a", "b", "layer1.0.conv2"), (MANY_ATTEMPTS, ATTEMPTS, FEW_ATTEMPTS)
    ):
        (group, *_) = find_groups(nn.Sequential(conv(1, size), conv(size, 1)), torch.zeros(1, 1, 4, 4))
        object.__setattr__(group, "name", name)
        attempts = [some_units(group, attempt, count) for attempt in range(count)]
        assert {unit for units in attempts for unit in units} == set(range(size))
        assert all(len(set(units)) == len(units) < size for units in attempts)
        assert len(attempts[0]) % 2 == 1
        if count >= ATTEMPTS:
            assert len(attempts[3]) >= size - 2


def test_a_size_that_the_graph_does_not_show_freezes() -> None:
    """The trial is what finds it: without the trial the group would be cut, and wrong."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(x * (8 / x.shape[1]))

    groups = find_groups(Net(forward, a=conv(3, 8), b=conv(8, 2)), torch.zeros(IMAGE))
    assert groups[0].frozen_because is not None
    assert groups[0].frozen_because.startswith("its removal fails a trial (the outputs change by")


def test_pieces_of_rounded_sizes_are_tried_down_to_the_last_units() -> None:
    """``chunk(8)`` of 16 channels makes other pieces only when few are left."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.stack(m.deep(m.stem(x)).chunk(8, 1), 2).flatten(1, 2))

    net = Net(forward, stem=cbr(3, 8), deep=conv(8, 16, groups=8), out=conv(16, 2))
    groups = find_groups(net, torch.zeros(IMAGE))
    assert [group.name for group in free_groups(groups)] == []
    assert "cuts channels into pieces" in str(groups[0].frozen_because)


@pytest.mark.slow
def test_two_small_groups_that_lose_equally_many_by_chance() -> None:
    """Found by the property test: of two units each, every attempt may take one from both."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).chunk(2, 1)
        b = m.conv(b)
        return m.out(a + m.short(torch.cat([b, -b], 1)))

    for names in itertools.permutations(["stem", "conv", "short", "out"]):
        rename = dict(zip(["stem", "conv", "short", "out"], names, strict=True))
        layers = {
            "stem": conv(3, 4),
            "conv": conv(2, 4),
            "short": conv(8, 2, 1, bias=False),
            "out": conv(2, 2, 1),
        }
        net = Net(
            lambda m, x, rename=rename: forward(
                SimpleNamespace(**{k: getattr(m, v) for k, v in rename.items()}), x
            ),
            **{rename[name]: layer for name, layer in layers.items()},
        )
        groups = find_groups(net, torch.zeros(IMAGE))
        assert {group.name: group.size for group in free_groups(groups)} == {
            rename["stem"]: 2,
            rename["conv"]: 4,
        }


def test_a_group_that_fails_does_not_freeze_its_neighbours() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.b(m.a(x))
        return m.d(m.c(x.view(x.shape[0], 8, *x.shape[2:])))

    groups = find_groups(
        Net(forward, a=cbr(3, 6), b=cbr(6, 8), c=cbr(8, 7), d=conv(7, 2)), torch.zeros(IMAGE)
    )
    assert [group.name for group in free_groups(groups)] == ["a.0", "c.0"]


def test_a_single_channel_can_not_go() -> None:
    groups = find_groups(nn.Sequential(conv(3, 1), nn.ReLU(), conv(1, 2)), torch.zeros(IMAGE))
    assert [(group.size, group.frozen_because) for group in groups] == [
        (1, "has a single channel"),
        (2, "reaches the output"),
    ]


def test_fewest_ties_first() -> None:
    """Groups stated first or last, sizes computed or hard-coded: always as many units as can be."""

    def shuffled(*sizes: Any) -> list[int]:
        def forward(m: Any, x: Tensor) -> Tensor:
            x = m.b(m.a(x))
            n, c, h, w = x.shape
            x = x.view(n, *(size(c) if callable(size) else size for size in sizes), h, w)
            return m.c(x.transpose(1, 2).reshape(n, c, h, w))

        net = Net(forward, a=cbr(3, 12), b=cbr(12, 12, groups=2), c=conv(12, 2))
        return [group.size for group in free_groups(find_groups(net, torch.zeros(IMAGE)))]

    assert shuffled(2, lambda c: c // 2) == [6, 6]
    assert shuffled(lambda c: c // 2, 2) == [6, 3]
    assert shuffled(2, -1) == [6, 6]


def test_pieces_of_two_groups_must_lose_equally_many() -> None:
    """Found only because groups of one size do not lose the same units in a trial."""
    assert {g.name: g.size for g in free_groups(groups_of("chunk_of_concat"))} == {"a.0": 6}


def test_a_trial_with_one_unit_removed_from_the_wrong_place_fails() -> None:
    """Negative control of the trial itself."""
    model, inputs = built("residual")
    groups = groups_of("residual")
    trial = Trial(model, inputs, in_training=False)
    assert trial.failing(groups, {}, doubtful=set()) == {}
    wrong = groups[0].members[-1]
    object.__setattr__(wrong, "indices", wrong.indices[1:] + wrong.indices[:1])
    try:
        failed = trial.failing(groups, {}, doubtful=set())
    finally:
        object.__setattr__(wrong, "indices", wrong.indices[-1:] + wrong.indices[:-1])
    assert failed["stem.0"].startswith("the outputs change by")


def test_forward_only_in_training_is_tried_in_training() -> None:
    reason = next(g.frozen_because for g in groups_of("aside_in_training") if g.name == "a.0")
    assert reason is not None
    assert "training mode: Given groups=1, weight of size [2, 6, 3, 3]" in reason
    assert find_groups(with_spare(), torch.zeros(IMAGE))[0].frozen_because is None


def with_spare() -> nn.Module:
    """Unused parameters, but the same forward pass in training mode."""
    return Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 2), spare=conv(8, 8))
