"""The table of operators: what each one does to units, checked by cutting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.groups import TOLERANCE, find_groups
from edgeprune.operators import RULES
from edgeprune.selection import make_plan
from edgeprune.surgery import slim
from tests.networks import IMAGE, Net, conv, free_groups, gap, half_scores, zeroed_consumers

INPUTS = (torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)),)
Operator = Callable[[Tensor], Tensor]


def between(operators: Sequence[Operator], **layers: Any) -> tuple[Any, dict[str, int], set[str]]:
    """Groups of a network with the sum of operators between two convolutions of 8 and 2 channels."""
    torch.manual_seed(0)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(sum(operator(y) for operator in operators))

    net = Net(forward, a=conv(3, 8), b=nn.LazyConv2d(2, 1), **layers).eval()
    with torch.no_grad():
        net(*INPUTS)
    groups = find_groups(net, INPUTS)
    plan = make_plan(net, groups, half_scores(groups), INPUTS, constants="off")
    assert gap(slim(net.double(), plan), zeroed_consumers(net, groups, plan), INPUTS) <= TOLERANCE
    reasons = {g.frozen_because or "" for g in groups if g.frozen_because and g.name != "b"}
    return net, {group.name: group.size for group in free_groups(groups)}, reasons


def test_every_row_is_an_operator() -> None:
    unknown = [name for name in RULES if not hasattr(torch.ops.aten, name)]
    assert unknown == []


UNARY: list[Operator] = [
    F.relu, F.relu6, F.hardtanh, torch.sigmoid, F.hardsigmoid, F.hardswish, F.silu, F.gelu, torch.tanh,
    F.leaky_relu, F.elu, F.selu, F.celu, F.softplus, F.mish, F.softsign, F.logsigmoid, F.hardshrink,
    F.softshrink, F.tanhshrink, lambda x: F.threshold(x, 0.1, 0.2), F.rrelu, F.dropout, F.dropout2d,
    F.alpha_dropout, F.feature_alpha_dropout, torch.abs, torch.neg, torch.exp, torch.expm1,
    lambda x: torch.log(x.abs() + 1), lambda x: torch.log1p(x.abs()), lambda x: torch.sqrt(x.abs()),
    lambda x: torch.rsqrt(x.abs() + 1), torch.sin, torch.cos, torch.erf,
    lambda x: torch.reciprocal(x.abs() + 1), torch.square, torch.sign, torch.clone, lambda x: x.contiguous(),
    lambda x: x.detach(), lambda x: x.to(x.dtype), lambda x: x.type_as(x), torch.nan_to_num, torch.positive,
    lambda x: torch.floor(x) + torch.ceil(x) + torch.round(x), lambda x: torch.logical_not(x).type_as(x),
    lambda x: F.relu_(x.clone()), lambda x: x.clone().mul_(2).add_(1), lambda x: x.clone().clamp_(-1, 1),
]  # fmt: skip


def in_eval(operator: Operator) -> Operator:
    """Dropout and the like as in evaluation mode."""
    random = ("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout", "rrelu")
    if getattr(operator, "__name__", "") in random:
        return lambda x: operator(x, training=False)  # type: ignore[call-arg]
    return operator


def test_what_works_on_each_number_by_itself() -> None:
    for start in range(0, len(UNARY), 13):
        _, free, reasons = between([in_eval(operator) for operator in UNARY[start : start + 13]])
        assert (free, reasons) == ({"a": 8}, set())


def test_what_combines_several() -> None:
    operators: list[Operator] = [
        lambda x: x + x, lambda x: x - 1, lambda x: 1 - x, lambda x: torch.rsub(x, x, alpha=2),
        lambda x: x * x, lambda x: x / (x.abs() + 1), lambda x: torch.maximum(x, x * 2),
        lambda x: torch.minimum(x, -x),
        lambda x: torch.where(x > 0, x, x * 0.1), lambda x: x.abs() ** 2, lambda x: torch.atan2(x, x + 1),
        lambda x: (x == 0) * x + (x != 0) * x, lambda x: ((x < 0) | (x > 1)) * x, lambda x: (x >= 0) * x,
        lambda x: ((x <= 0) & (x < 1)) * x, lambda x: torch.addcmul(x, x, x, value=0.5),
        lambda x: torch.addcdiv(x, x, x.abs() + 1), lambda x: torch.lerp(x, x * 2, 0.3),
        lambda x: torch.fmod(x, 2.0), lambda x: torch.remainder(x, 2.0), lambda x: x.clamp(-1, 1),
        lambda x: x.clamp_min(0), lambda x: x.clamp_max(0), lambda x: x.masked_fill(x < 0, 0.5),
        lambda x: torch.logical_and(x, x) * x, lambda x: x // 2, lambda x: torch.clamp(x, min=-x.abs()),
    ]  # fmt: skip
    for start in range(0, len(operators), 9):
        _, free, reasons = between(operators[start : start + 9])
        assert (free, reasons) == ({"a": 8}, set())


def test_operands_of_other_groups_are_tied() -> None:
    def pair(combine: Callable[[Tensor, Tensor], Tensor]) -> dict[str, int]:
        net = Net(lambda m, x: m.c(combine(m.a(x), m.b(x))), a=conv(3, 8), b=conv(3, 8), c=conv(8, 2))
        return {group.name: group.size for group in free_groups(find_groups(net, INPUTS))}

    for combine in (
        torch.add, torch.maximum, torch.atan2, lambda a, b: a.clamp(min=b),
        lambda a, b: torch.where(a > b, a, 0.0), lambda a, b: a * torch.sigmoid(b),
        lambda a, b: a.masked_fill(b > 0, 0.0), lambda a, b: F.pad(a, (1, 1)) + F.pad(b, (0, 2)),
        lambda a, b: torch.max(a, b), lambda a, b: a + b.mean((2, 3), keepdim=True), torch.Tensor.add_,
    ):  # fmt: skip
        assert pair(combine) == {"a": 8}
    for combine in (lambda a, b: torch.cat([a, b], 2), lambda a, b: torch.stack([a, b]).sum(0)):
        assert pair(combine) == {"a": 8}


def test_reductions_over_space_keep_units_and_over_channels_join_them() -> None:
    over_space: list[Operator] = [
        lambda x: x.mean((2, 3), keepdim=True), lambda x: x.sum(3, keepdim=True),
        lambda x: x.amax((2, 3), True), lambda x: x.amin(2, keepdim=True),
        lambda x: x.max(3, keepdim=True).values,
        lambda x: x.min(2, keepdim=True)[0], lambda x: x.var((2, 3), keepdim=True),
        lambda x: x.std((2, 3), keepdim=True), lambda x: x.prod(3, keepdim=True), lambda x: x.softmax(3),
        lambda x: x.log_softmax(2), lambda x: x.argmax(3, keepdim=True), lambda x: x.cumsum(2),
        lambda x: x.norm(dim=(2, 3), keepdim=True),
        lambda x: torch.linalg.vector_norm(x, dim=3, keepdim=True), lambda x: x.logsumexp(3, keepdim=True),
        lambda x: (x > 0).any(3, keepdim=True) * x,
        lambda x: (x > 0).all(2, keepdim=True) * x, lambda x: F.normalize(x, dim=3),
    ]  # fmt: skip
    assert between(over_space)[1:] == ({"a": 8}, set())
    for operator in (
        lambda x: x * x.mean(1, keepdim=True), lambda x: x.softmax(1), lambda x: F.normalize(x, dim=1),
        lambda x: x / x.sum(), lambda x: x * x.std(), lambda x: x - x.amax((1, 2), keepdim=True),
        lambda x: x.cumsum(1), lambda x: x + x.argmax(1, keepdim=True),
    ):  # fmt: skip
        _, free, reasons = between([operator])
        assert free == {}
        assert all("all together" in reason or "spreads" in reason for reason in reasons)
        assert reasons


def test_pooling_and_interpolation() -> None:
    operators: list[Operator] = [
        lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.lp_pool2d(x, 2, 1),
        lambda x: F.adaptive_avg_pool2d(x, 8), lambda x: F.adaptive_max_pool2d(x, 8),
        lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True)[0], lambda x: F.interpolate(x, size=(8, 8)),
        lambda x: F.interpolate(x[..., ::2, ::2], scale_factor=2, mode="bilinear"),
        lambda x: F.interpolate(x[..., ::2, ::2], size=8, mode="bicubic", align_corners=True),
        lambda x: F.interpolate(x, size=8, mode="nearest-exact"),
        lambda x: F.interpolate(x, size=8, mode="bilinear", antialias=True),
        lambda x: F.adaptive_avg_pool1d(x.flatten(2), 64).unflatten(2, (8, 8)),
        lambda x: F.max_pool3d(x.unsqueeze(2), 1).squeeze(2),
    ]  # fmt: skip
    assert between(operators)[1:] == ({"a": 8}, set())


def test_moving() -> None:
    operators: list[Operator] = [
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), lambda x: x.transpose(1, 3).transpose(3, 1),
        lambda x: x.flip(1), lambda x: x.flip(3), lambda x: x.roll(1, 3), lambda x: x.unsqueeze(0).squeeze(0),
        lambda x: x.movedim(1, 0).movedim(0, 1), lambda x: x.repeat(1, 1, 1, 2)[..., :8],
        lambda x: x.repeat_interleave(2, 3)[..., ::2], lambda x: x.flatten(2).view_as(x),
        lambda x: x.reshape_as(x), lambda x: x.expand(1, -1, 8, 8), lambda x: x[:, :, 3:4].expand_as(x),
        lambda x: x.unfold(3, 8, 1).squeeze(3), lambda x: x.unbind(3)[0].unsqueeze(3),
        lambda x: torch.cat(x.split(3, 2), 2), lambda x: torch.cat(x.tensor_split(3, 3), 3),
        lambda x: x.select(2, 0).unsqueeze(2), lambda x: x.index_select(3, torch.arange(7, -1, -1)),
        lambda x: x[:, :, [1, 0, 3, 2, 5, 4, 7, 6]], lambda x: x.narrow(2, 1, 1), lambda x: x.swapaxes(2, 3),
        lambda x: F.pad(x, (1, 2, 3, 4))[:, :, 3:11, 1:9], lambda x: x[..., None, :][:, :, :, 0],
        lambda x: F.pad(x, (1, 1, 0, 0), mode="reflect")[..., 1:9], lambda x: x.mT,
        lambda x: F.pad(x, (1, 1, 0, 0), mode="circular")[..., 1:9], lambda x: F.pad(x, (1, -1), value=3.0),
        lambda x: F.pad(x, (0, 0, 2, 0), mode="replicate")[:, :, 2:],
        lambda x: torch.tile(x, (1, 1, 2, 1))[:, :, :8], lambda x: torch.broadcast_to(x, (1, *x.shape[1:])),
        lambda x: x + torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2.0),
        lambda x: x + x.new_zeros(()) + x.new_ones(1) + x.new_full((8, 8), 2.0),
    ]  # fmt: skip
    for start in range(0, len(operators), 9):
        _, free, reasons = between(operators[start : start + 9])
        # A flip of the channels ties each to its mirror image, where it meets the others.
        assert (free, reasons) == ({"a": 4 if start == 0 else 8}, set())


@pytest.mark.parametrize(
    ("operator", "free"),
    [
        (lambda x: x.repeat(1, 2, 1, 1), {"a": 8}),
        (lambda x: x.repeat_interleave(2, 1), {"a": 8}),
        (lambda x: torch.cat([x, x.flip(1)], 1), {"a": 8}),
        (lambda x: F.pixel_unshuffle(x, 2), {"a": 8}),
        (lambda x: F.pixel_shuffle(x, 2), {"a": 2}),
        (lambda x: F.channel_shuffle(x, 4), {"a": 2}),
        (lambda x: F.glu(x, 1), {"a": 4}),
        (lambda x: x.unflatten(1, (2, -1)).amax(1), {"a": 4}),
        (lambda x: x.view(1, 2, -1, 8, 8).flatten(1, 2), {"a": 4}),
        (lambda x: x.unflatten(1, (-1, 2)).sum(2), {"a": 4}),
        (lambda x: torch.stack(x.chunk(2, 1), 2).flatten(1, 2), {"a": 4}),
        (lambda x: x.unbind(1)[0].unsqueeze(1) * x, {"a#2": 7}),
        (lambda x: x[:, 2:3], {"a#2": 5}),
        (lambda x: x[:, 2], {"a#2": 5}),
        (lambda x: x[:, -3:], {"a": 5}),
        (lambda x: x.narrow(1, 0, 6), {"a#2": 2}),
        (lambda x: x.index_select(1, torch.tensor([2, 0, 1])), {"a#2": 5}),
        (lambda x: x[:, [2, 0, 1]], {}),
        (lambda x: x[:, ::2], {"a": 4}),
        (lambda x: x[:, : x.shape[1] // 2], {"a": 4}),
        (lambda x: x[:, x.shape[1] // 4 :], {"a": 2}),
        (lambda x: x.roll(1, 1), {"a": 7}),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), {"a": 8}),
        (lambda x: F.pad(x.transpose(1, 3), (1, 1, 0, 0), mode="reflect").transpose(1, 3), {}),
        (lambda x: torch.cat([x, torch.ones(1, 3, 8, 8)], 1), {"a": 8}),
        (lambda x: torch.cat([x, x.new_zeros(1, 3, 8, 8)], 1), {"a": 8}),
        (lambda x: torch.cat([x, torch.zeros_like(x)], 1), {"a": 8}),
        (lambda x: x + torch.arange(8.0).view(8, 1, 1), {}),
        (lambda x: x + torch.arange(8.0), {"a": 8}),
        (lambda x: x @ x, {}),
        (lambda x: torch.einsum("nchw,ncuv->nchw", x, x), {}),
        (lambda x: F.unfold(x, 2).unflatten(2, (7, 7)), {}),
        (lambda x: x.flatten(1)[:, :, None, None], {"a": 8}),
    ],
)  # fmt: skip
def test_what_cuts_channels(operator: Operator, free: dict[str, int]) -> None:
    assert between([operator])[1] == free


def test_layers_on_fixed_operands() -> None:
    """Convolutions, norms, pools and the like of what the forward pass makes itself."""

    def forward(m: Any, x: Tensor) -> Tensor:
        grid = torch.linspace(-1, 1, 8).repeat(1, 3, 8, 1)
        y = m.norm(m.place(grid)) + m.act(grid).mean(1, keepdim=True) + m.line(grid).sum(1, keepdim=True)
        y = y + F.max_pool2d(grid, 1).amax(1, keepdim=True) + F.channel_shuffle(grid, 3)[:, :1]
        return m.b(m.a(x) + y)

    net = Net(
        forward, place=conv(3, 8), norm=nn.BatchNorm2d(8), act=nn.PReLU(3), line=nn.Linear(8, 8),
        a=conv(3, 8), b=conv(8, 2),
    )  # fmt: skip
    assert {g.name: g.size for g in free_groups(find_groups(net.eval(), INPUTS))} == {"place": 8}


def test_linear_layers_on_other_axes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.mix(m.a(x).flatten(2))  # over space: the channels stay whole
        z = m.wide(y.transpose(1, 2))  # over channels
        return m.out(z)

    net = Net(forward, a=conv(3, 8), mix=nn.Linear(64, 10), wide=nn.Linear(8, 6), out=nn.Linear(6, 2))
    groups = find_groups(net, INPUTS)
    assert {g.name: g.size for g in free_groups(groups)} == {"wide": 6}
    plan = make_plan(net, groups, half_scores(groups), INPUTS, constants="off")
    assert gap(slim(net.double(), plan), zeroed_consumers(net, groups, plan), INPUTS) <= TOLERANCE
