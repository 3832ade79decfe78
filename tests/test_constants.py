"""Constant channels: removed without changing the function, wherever they go; and never by mistake."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.channels import ChannelGroup
from edgeprune.constants import find_constants
from edgeprune.errors import SlimError
from edgeprune.groups import find_groups
from edgeprune.oracle import random_inputs
from edgeprune.plan import Plan
from edgeprune.selection import Constants, make_plan
from edgeprune.surgery import TOLERANCE, slim
from tests.networks import IMAGE, Net, built, cbr, conv, free_groups, gap, groups_of, pooled, randomise

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "prelu": lambda: nn.PReLU(8),
    "none": nn.Identity,
}

# What reads 8 channels, and whether it needs a carrier: its border sees fewer of the constants.
CONSUMERS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "padded": (lambda: conv(8, 6), True),
    "padded, then a norm": (lambda: cbr(8, 6), True),
    "padded 5x5 with stride and dilation": (
        lambda: nn.Conv2d(8, 6, 5, stride=2, padding=4, dilation=2),
        True,
    ),
    "padding='same'": (lambda: nn.Conv2d(8, 6, 3, padding="same"), True),
    "padded, grouped": (lambda: conv(8, 6, groups=2), True),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1), True),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), True),
    "unpadded": (lambda: nn.Conv2d(8, 6, 3), False),
    "unpadded, then a norm": (
        lambda: nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        False,
    ),
    "unpadded without a bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), False),
    "padding='valid'": (lambda: nn.Conv2d(8, 6, 3, padding="valid"), False),
    "unpadded, grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), False),
    "1x1": (lambda: conv(8, 6, 1), False),
    "reflect": (lambda: conv(8, 6, padding_mode="reflect"), False),
    "replicate": (lambda: conv(8, 6, padding_mode="replicate"), False),
    "circular": (lambda: conv(8, 6, padding_mode="circular"), False),
    "depthwise 1x1, then 1x1": (lambda: nn.Sequential(conv(8, 16, 1, groups=8), conv(16, 6, 1)), False),
}

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool, padding not counted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "upsampled": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
    "affine": lambda x: 2 * x.clamp(-3, 3) - 1,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "shuffled": lambda x: F.channel_shuffle(x, 2),
}


def plant(gamma: Tensor, units: range | list[int]) -> None:
    """Close channels of a norm."""
    with torch.no_grad():
        gamma[list(units)] = 0


def norm_scores(model: nn.Module, groups: tuple[ChannelGroup, ...]) -> dict[str, Tensor]:
    """The largest |gamma| that keeps a unit from being a constant."""
    state = model.state_dict()
    return {
        group.name: torch.tensor(
            [
                max((float(state[key][place].abs()) for key, place in when), default=0.0)
                for when in group.constant_when
            ]
        )
        for group in free_groups(groups)
        if None not in group.constant_when
    }


def zero_plan(model: nn.Module, inputs: Any, **options: Any) -> Plan:
    """Only what is removable for free, by the norms' weights."""
    groups = find_groups(model, inputs)
    return make_plan(model, groups, norm_scores(model, groups), inputs, **options)


def change(model: nn.Module, plan: Plan, inputs: tuple[Tensor, ...]) -> float:
    """How much the function changes, in float64."""
    dense = copy.deepcopy(model).double()
    return gap(slim(dense, plan, example=inputs), dense, inputs)


def chain(
    consumer: nn.Module, activation: nn.Module, between: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """Image -> convolution, norm of which three channels are closed, activation -> consumer."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.consumer((between or torch.clone)(m.stem(x))),
        stem=nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), activation), consumer=consumer,
    )  # fmt: skip
    randomise(net)
    plant(net.stem[1].weight, [1, 2, 4, 5, 6])
    with torch.no_grad():
        net.stem[1].bias[1] = -1  # dead behind a ReLU
    return net.eval()


INPUTS = (torch.randn(2, *IMAGE[1:], generator=torch.Generator().manual_seed(5)),)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_kind_of_consumer(consumer: str, activation: str) -> None:
    make, padded = CONSUMERS[consumer]
    net = chain(make(), ACTIVATIONS[activation]())
    plan = zero_plan(net, INPUTS)
    (group,) = (group for group in plan.groups if group.name == "stem.0")
    assert (group.carrier is not None) is padded
    closed = 2 if group.size == 4 else 5  # of the grouped ones two channels are one unit
    assert len(group.removed) == closed - padded
    assert change(net, plan, INPUTS) <= TOLERANCE
    # Negative control: what was removed is not nothing.
    assert change(net, zero_plan(net, INPUTS, constants="off"), INPUTS) > 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("consumer", ["padded, then a norm", "unpadded without a bias"])
def test_every_activation(consumer: str, activation: str) -> None:
    net = chain(CONSUMERS[consumer][0](), ACTIVATIONS[activation]())
    plan = zero_plan(net, INPUTS)
    assert len(plan.removed("stem.0")) == (4 if CONSUMERS[consumer][1] else 5)
    assert change(net, plan, INPUTS) <= TOLERANCE


@pytest.mark.parametrize("between", BETWEEN)
def test_what_stands_in_between(between: str) -> None:
    for consumer in ("padded", "unpadded"):
        net = chain(CONSUMERS[consumer][0](), nn.SiLU(), BETWEEN[between])
        plan = zero_plan(net, INPUTS)
        assert plan.removed("stem.0")
        assert change(net, plan, INPUTS) <= TOLERANCE


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_consumers(flatten: bool, bias: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(m.stem(x), 4)
        return m.head(F.silu(m.norm(m.mid(x.flatten(1) if flatten else pooled(x)))))

    torch.manual_seed(0)
    net = Net(
        forward, stem=cbr(3, 8), mid=nn.Linear(32 if flatten else 8, 10, bias=bias), norm=nn.BatchNorm1d(10),
        head=nn.Linear(10, 4, bias=bias),
    )  # fmt: skip
    randomise(net)
    plant(net.stem[1].weight, range(5))
    plant(net.norm.weight, range(2, 8))
    plan = zero_plan(net.eval(), INPUTS)
    assert (len(plan.removed("stem.0")), len(plan.removed("mid"))) == (5, 6)
    assert plan.new_biases == (() if bias else ("head",))  # `mid` has a norm behind it
    assert change(net, plan, INPUTS) <= TOLERANCE
    small = slim(net, plan)
    assert small.head.bias is not None
    assert (small.mid.bias is not None) is bias


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_one_and_three_dimensions(kind: int, padding: int) -> None:
    layer = {1: nn.Conv1d, 3: nn.Conv3d}[kind]
    norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[kind]
    torch.manual_seed(0)
    net = nn.Sequential(layer(2, 6, 3), norm(6), nn.GELU(), layer(6, 3, 3, padding=padding, bias=False))
    randomise(net)
    plant(net[1].weight, range(4))
    inputs = (torch.randn(1, 2, *[6] * kind),)
    plan = zero_plan(net.eval(), inputs)
    assert len(plan.removed("0")) == 4 - padding
    assert change(net, plan, inputs) <= TOLERANCE


def residual() -> Any:
    """A stream of three norms that two padded and one 1x1 convolution and a linear layer read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = F.relu(m.b(m.a(x)) + x)
        x = F.silu(m.d(m.c(x)) + x)
        return m.head(pooled(x)) + pooled(m.e(x))

    torch.manual_seed(0)
    net = Net(
        forward, stem=cbr(3, 8), a=cbr(8, 6), b=nn.Sequential(conv(6, 8), nn.BatchNorm2d(8)), c=cbr(8, 6, 1),
        d=nn.Sequential(conv(6, 8), nn.BatchNorm2d(8)), e=conv(8, 4), head=nn.Linear(8, 4),
    )  # fmt: skip
    randomise(net)
    return net.eval()


def test_a_carriers_own_constant_finds_a_place_where_those_of_the_removed_are_zero() -> None:
    """Found by the property test: the removed unit is 0 behind the ReLU, its carrier is not."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.conv(x))
        return m.pad(x) + m.one(F.relu(x))

    net = Net(
        forward,
        conv=conv(3, 4, bias=False),
        norm=nn.BatchNorm2d(4),
        pad=conv(4, 2),
        one=conv(4, 2, 1, bias=False),
    ).eval()
    randomise(net)
    with torch.no_grad():
        net.norm.weight[:2] = 0
        net.norm.bias[:2] = torch.tensor([1.0, -1.0])
    groups = find_groups(net, torch.zeros(IMAGE))
    plan = make_plan(net, groups, {"conv": net.norm.weight.detach().abs()}, torch.zeros(IMAGE))
    assert plan.groups[0].carrier == 0
    assert plan.groups[0].constant == (1,)
    assert plan.new_biases == ("one",)
    assert gap(slim(net.double(), plan), net, (torch.randn(IMAGE),)) <= TOLERANCE


def test_a_residual_stream() -> None:
    net = residual()
    for norm in (net.stem[1], net.b[1], net.d[1]):
        plant(norm.weight, [0, 3, 5])
    plant(net.b[1].weight, [1, 2])  # the stream still varies there
    plant(net.a[1].weight, range(4))
    plan = zero_plan(net, INPUTS)
    assert (len(plan.removed("stem.0")), len(plan.removed("a.0"))) == (2, 3)
    assert set(plan.removed("stem.0")) < {0, 3, 5}
    assert change(net, plan, INPUTS) <= TOLERANCE


@pytest.mark.parametrize("name", ["dense_block", "preactivation", "crelu", "c2f", "space_to_depth", "aspp"])
def test_networks_of_the_table_with_closed_channels(name: str) -> None:
    model, inputs = built(name)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        plant(norm.weight, range(number % 2, norm.num_features, 2))
        nn.init.uniform_(norm.bias, -1, 2)
    if name in ("dense_block", "preactivation"):
        for norm in norms:
            plant(norm.weight, range(norm.num_features // 2))
    plan = zero_plan(model, inputs)
    assert plan.groups
    assert change(model, plan, inputs) <= TOLERANCE


def test_a_unit_that_is_there_as_x_and_minus_x_is_carried_by_what_a_relu_leaves() -> None:
    for sign in (1, -1):
        torch.manual_seed(0)
        net = Net(
            lambda m, x, sign=sign: m.out(F.relu(torch.cat([sign * (y := m.stem(x)), -sign * y], 1))),
            stem=nn.Sequential(conv(3, 6), nn.BatchNorm2d(6)), out=conv(12, 4),
        )  # fmt: skip
        plant(net.stem[1].weight, range(4))
        nn.init.normal_(net.stem[1].bias)
        plan = zero_plan(net.eval(), INPUTS)
        assert len(plan.removed("stem.0")) == 3
        assert change(net, plan, INPUTS) <= TOLERANCE
        # Of two groups one hears nothing: no unit can carry for both, and none is free.
        net.out = conv(12, 4, groups=2)
        assert zero_plan(net.eval(), INPUTS).groups == ()


def test_channels_last_weights() -> None:
    for consumer in ("padded", "unpadded", "transposed"):
        net = chain(CONSUMERS[consumer][0](), nn.ReLU()).to(memory_format=torch.channels_last)
        assert change(net, zero_plan(net, INPUTS), INPUTS) <= TOLERANCE


def test_float32_is_close() -> None:
    net = chain(cbr(8, 6), nn.ReLU())
    small = slim(net, zero_plan(net, INPUTS))
    with torch.no_grad():
        torch.testing.assert_close(small(*INPUTS), net(*INPUTS), rtol=1e-5, atol=1e-5)


def test_it_is_the_same_function_in_training_mode() -> None:
    """What went into a running mean, batch statistics never saw."""
    net = chain(CONSUMERS["unpadded, then a norm"][0](), nn.SiLU())
    dense = copy.deepcopy(net).double()
    small = slim(dense, zero_plan(net, INPUTS))
    assert gap(small.train(), dense.train(), INPUTS) <= 1e-9


# ---- options


def test_options() -> None:
    """A padded and a 1x1 convolution read the stem; two of its closed channels are dead behind the ReLU."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.a(y := m.stem(x)) + m.b(y), stem=cbr(3, 8), a=conv(8, 4), b=conv(8, 4, 1))
    plant(net.stem[1].weight, range(6))
    with torch.no_grad():
        net.stem[1].bias[:6] = torch.tensor([-1.0, 1.0, 2.0, -2.0, 3.0, 4.0])
    net.eval()
    removed = {kind: zero_plan(net, INPUTS, constants=kind).removed("stem.0") for kind in get_args(Constants)}
    assert removed["off"] == (0, 1, 2, 3, 4, 5)
    assert removed["fold"] == (0, 3)
    assert removed["auto"] == removed["carrier"] == (0, 2, 3, 4, 5)
    for kind in ("auto", "carrier", "fold"):
        assert change(net, zero_plan(net, INPUTS, constants=kind), INPUTS) <= TOLERANCE
    assert change(net, zero_plan(net, INPUTS, constants="off"), INPUTS) > 1e-3


def test_without_carriers_a_budget_still_takes_what_is_closed_first() -> None:
    net = chain(conv(8, 6), nn.Sigmoid())
    groups = find_groups(net, INPUTS)
    plan = make_plan(net, groups, norm_scores(net, groups), INPUTS, max_macs_ratio=0.5, constants="fold")
    assert set(plan.removed("stem.0")) == {1, 2, 4, 5, 6}
    assert plan.groups[0].constant == ()
    assert plan.groups[0].carrier is None
    assert change(net, plan, INPUTS) > 1e-3  # asked for, and said


def test_one_closed_channel_carries_itself() -> None:
    net = chain(conv(8, 6), nn.Sigmoid())
    with torch.no_grad():
        net.stem[1].weight[[1, 2, 4, 5]] = 1
    assert zero_plan(net, INPUTS).groups == ()


@pytest.mark.parametrize(("multiple", "kept"), [(1, 4), (2, 4), (3, 6), (4, 4), (5, 5), (8, 8)])
def test_widths_count_the_carrier(multiple: int, kept: int) -> None:
    """Three open channels and a carrier."""
    net = chain(conv(8, 6), nn.Sigmoid())
    plan = zero_plan(net, INPUTS, channel_multiple=multiple)
    width = slim(net, plan).stem[0].out_channels
    assert width == kept
    assert change(net, plan, INPUTS) <= TOLERANCE
    for group in plan.groups:
        assert group.carrier in group.keep
        assert set(group.constant) == set(group.removed)


def test_a_closed_channel_that_stays_for_the_width_carries_the_others() -> None:
    net = chain(conv(8, 6), nn.Sigmoid())
    plan = zero_plan(net, INPUTS, min_channels=6)
    (group,) = plan.groups
    assert len(group.keep) == 6
    assert group.carrier in {1, 2, 4, 5, 6} & set(group.keep)
    assert change(net, plan, INPUTS) <= TOLERANCE


# ---- never by mistake


def constants_of(net: nn.Module, inputs: tuple[Tensor, ...]) -> set[int]:
    groups = find_groups(net, inputs)
    batches = [random_inputs([(x.shape, x.dtype) for x in inputs], torch.device("cpu"), seed=0)]
    return set(find_constants(net, free_groups(groups), batches).get("stem.0", {}))


def test_a_dead_relu_is_no_constant() -> None:
    net = chain(conv(8, 6), nn.ReLU())
    with torch.no_grad():
        net.stem[1].weight[0], net.stem[1].bias[0] = 1e-3, -50
        net.stem[1].weight[3], net.stem[1].bias[3] = 1e-30, 5
    assert net.stem(INPUTS[0])[:, 0].max().item() == 0
    assert constants_of(net, INPUTS) == {1, 2, 4, 5, 6}


def test_an_example_without_any_contrast_makes_no_constants() -> None:
    net = chain(nn.Conv2d(8, 6, 3), nn.ReLU())
    assert constants_of(net, (torch.zeros(IMAGE),)) == {1, 2, 4, 5, 6}


def between_is_no_constant(forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
    torch.manual_seed(0)
    net = Net(
        forward, stem=nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Sigmoid()), out=conv(8, 2), **layers
    )
    plant(net.stem[1].weight, range(4))
    net.eval()
    assert not constants_of(net, INPUTS)
    groups = find_groups(net, INPUTS)
    scores = {group.name: (torch.arange(group.size) >= 4).float() for group in free_groups(groups)}
    plan = make_plan(net, groups, scores, INPUTS)
    assert all(not group.constant for group in plan.groups)
    slim(net, plan)  # cut as any other


def test_padding_by_hand_with_zeros() -> None:
    between_is_no_constant(lambda m, x: m.out(F.pad(m.stem(x), (1, 1, 1, 1))))


def test_average_pooling_over_padding() -> None:
    between_is_no_constant(lambda m, x: m.out(F.avg_pool2d(m.stem(x), 3, 1, 1)))


def test_a_padded_depthwise_convolution() -> None:
    between_is_no_constant(lambda m, x: m.out(m.deep(m.stem(x))), deep=conv(8, 8, groups=8))


def test_a_gate_that_varies() -> None:
    between_is_no_constant(lambda m, x: m.out(m.stem(x) * m.gate(x)), gate=conv(3, 8))


def test_an_embedding_of_the_place() -> None:
    between_is_no_constant(lambda m, x: m.out(m.stem(x) + m.row), row=nn.Parameter(torch.rand(1, 1, 1, 8)))


def test_two_constants_side_by_side_in_one_channel() -> None:
    between_is_no_constant(lambda m, x: m.out(torch.cat([y := m.stem(x), -y], 2)))
    between_is_no_constant(lambda m, x: m.out(torch.stack([y := m.stem(x), 3 * y], 2).flatten(2, 3)))


def test_noise_and_cumulative_sums() -> None:
    between_is_no_constant(lambda m, x: m.out(m.stem(x).cumsum(3)))


def test_a_consumer_that_is_used_on_two_inputs() -> None:
    between_is_no_constant(lambda m, x: m.out(y := m.stem(x)) + m.out(2 * y))


def test_a_constant_written_over_in_place() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        alias = y
        y += m.gate(x)
        return m.out(alias)

    between_is_no_constant(forward, gate=conv(3, 8))


def test_a_depthwise_convolution_is_constant_if_its_own_norm_is_closed() -> None:
    model, inputs = built("depthwise")
    plant(model.stem[1].weight, range(8))
    plant(model.deep[1].weight, [0, 1, 2])
    plan = zero_plan(model, inputs)
    assert plan.removed("stem.0") == (0, 1, 2)
    assert change(model, plan, inputs) <= TOLERANCE


# ---- refused


@pytest.fixture
def carried() -> tuple[Any, Plan]:
    net = chain(conv(8, 6), nn.Sigmoid())
    return net, zero_plan(net, INPUTS)


def test_a_plan_on_a_network_whose_channels_are_open_again(carried: tuple[Any, Plan]) -> None:
    net, plan = carried
    nn.init.ones_(net.stem[1].weight)
    with pytest.raises(
        SlimError, match=r"could not keep the constants.*group stem.0 at consumer.weight is varying"
    ):
        slim(net, plan)


def test_a_plan_without_the_carrier_that_it_needs(carried: tuple[Any, Plan]) -> None:
    net, plan = carried
    bare = dataclasses.replace(plan, groups=(dataclasses.replace(plan.groups[0], carrier=None),))
    with pytest.raises(
        SlimError, match=r"is a padded convolution without a carrier, expected a plan made with const"
    ):
        slim(net, bare)


def test_a_carrier_that_is_silent(carried: tuple[Any, Plan]) -> None:
    net, plan = carried
    net.stem[2] = nn.Threshold(1.5, 0.0)  # lets the constants pass, and not the carrier's 1
    nn.init.constant_(net.stem[1].bias, 4.0)
    with pytest.raises(
        SlimError, match=r"carrier of group stem.0 is 0 at consumer.weight, expected a constant o"
    ):
        slim(net, plan)
    assert zero_plan(net, INPUTS).groups == ()


def test_a_plan_without_the_bias_that_it_needs() -> None:
    net = chain(nn.Conv2d(8, 6, 3, bias=False), nn.Sigmoid())
    plan = zero_plan(net, INPUTS)
    assert plan.new_biases == ("consumer",)
    with pytest.raises(
        SlimError, match=r"consumer.weight is the weight of a layer without a bias, expected a bias"
    ):
        slim(net, dataclasses.replace(plan, new_biases=()))


def test_a_layer_that_can_not_get_a_bias_keeps_its_constants() -> None:
    """A weight that is used by a function: there is nowhere to put a bias."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: F.conv2d(m.stem(x), m.weight),
        stem=nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)), weight=nn.Parameter(torch.randn(4, 8, 1, 1)),
    )  # fmt: skip
    plant(net.stem[1].weight, range(4))
    nn.init.ones_(net.stem[1].bias)
    assert not constants_of(net.eval(), INPUTS)
    nn.init.zeros_(net.stem[1].bias)  # nothing to keep
    assert constants_of(net, INPUTS) == {0, 1, 2, 3}


def test_the_table_of_groups_knows_the_weights() -> None:
    (stem, *_) = groups_of("residual")
    assert stem.constant_when[2] == (("b.1.weight", 2), ("stem.1.weight", 2))
