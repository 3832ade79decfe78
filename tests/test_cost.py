"""Costs, as exact integers worked out by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeprune.cost import as_inputs, count_macs, count_params, evaluating, shell_of
from edgeprune.errors import ModelError
from edgeprune.models import load_model
from tests.networks import Net, built, conv

MACS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 32, 32), 8 * 3 * 9 * 32 * 32),
    "conv with stride": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 32, 32), 8 * 3 * 9 * 16 * 16),
    "conv with dilation": (nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 12, 10), 8 * 3 * 9 * 8 * 6),
    "conv, not square": (nn.Conv2d(4, 6, (3, 5)), (1, 4, 9, 9), 6 * 4 * 15 * 7 * 5),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (1, 8, 6, 6), 12 * 2 * 9 * 4 * 4),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), (1, 8, 6, 6), 16 * 9 * 4 * 4),
    "1d": (nn.Conv1d(3, 8, 5), (1, 3, 20), 8 * 3 * 5 * 16),
    "3d": (nn.Conv3d(2, 4, 3), (1, 2, 5, 5, 5), 4 * 2 * 27 * 27),
    "transposed": (nn.ConvTranspose2d(6, 4, 4, stride=2), (1, 6, 5, 5), 6 * 4 * 16 * 25),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 4, groups=2), (1, 6, 5, 5), 6 * 2 * 16 * 25),
    "linear": (nn.Linear(10, 7), (1, 10), 70),
    "linear on a sequence": (nn.Linear(10, 7), (1, 5, 10), 5 * 70),
    "matrix product": (Net(lambda _, x: x @ x.transpose(1, 2)), (1, 5, 10), 5 * 10 * 5),
    "norm, activation, pooling": (
        nn.Sequential(nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Dropout()),
        (1, 3, 8, 8),
        0,
    ),
    "a layer twice": (Net(lambda m, x: m.a(m.a(x)), a=nn.Linear(5, 5)), (1, 5), 50),
    "attributes": (Net(lambda m, x: F.linear(x + m.b, m.a), a=torch.ones(4, 5), b=torch.ones(5)), (1, 5), 20),
    "a tensor of its own": (
        Net(lambda m, x: m.a(torch.cat([x, torch.zeros(1, 2)], 1)), a=nn.Linear(7, 3)), (1, 5), 21
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MACS)
def test_macs(name: str) -> None:
    model, shape, macs = MACS[name]
    assert count_macs(model, torch.zeros(shape)) == macs
    assert count_macs(model, torch.zeros(4, *shape[1:])) == macs  # always of one sample


@pytest.mark.parametrize(
    ("name", "size", "macs", "params"),
    [
        (
            "resnet20",
            32,
            3 * 16 * 9 * 1024 + 6 * 16**2 * 9 * 1024 + (16 * 32 + 5 * 32**2) * 9 * 256
            + (32 * 64 + 5 * 64**2) * 9 * 64 + 640,
            269_722,
        ),
        ("resnet56", 32, 125_485_696, 853_018),
        ("vgg16", 32, None, 14_710_464 + 2 * 4224 + 5130),
    ],
)  # fmt: skip
def test_known_networks(name: str, size: int, macs: int | None, params: int | None) -> None:
    model = load_model(name)
    example = torch.zeros(1, 3, size, size)
    if macs is not None:
        assert count_macs(model, example) == macs
    if params is not None:
        assert count_params(model) == params


def test_params() -> None:
    assert count_params(nn.Conv2d(3, 8, 3)) == 8 * 3 * 9 + 8
    assert count_params(nn.BatchNorm2d(8)) == 16  # the statistics are no parameters
    assert count_params(nn.Linear(5, 4).requires_grad_(False)) == 24
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    assert count_params(tied) == 25 + 5 + 5
    assert count_params(shell_of(tied)) == 35


def test_two_inputs() -> None:
    model, inputs = built("two_inputs")
    assert count_macs(model, inputs) == (8 * 3 + 8 * 2 + 2 * 8) * 9 * 64


def test_nothing_is_changed() -> None:
    model, inputs = built("residual")
    model.train()
    model.a.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    count_macs(model, inputs)
    assert [module.training for module in model.modules()] == modes
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_numbers_decide() -> None:
    net = Net(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x), a=conv(3, 4), b=conv(3, 4))
    with pytest.raises(
        ModelError, match=r"could not count multiply-adds: the forward pass on tensors without stor"
    ):
        count_macs(net, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("example", "value"),
    [
        ([1, 2], "list"),
        (torch.tensor(1.0), r"of shape \(\)"),
        (torch.zeros(0, 3), r"of shape \(0, 3\)"),
        ((torch.zeros(1), None), "NoneType"),
    ],
)
def test_examples_that_are_none(example: Any, value: str) -> None:
    with pytest.raises(
        ModelError, match=f"could not use the example input: one of its values is {value}, expected a"
    ):
        as_inputs(example)


def test_evaluating_puts_every_module_back() -> None:
    model, _ = built("residual")
    model.train()
    model.stem[1].eval()
    modes = [module.training for module in model.modules()]

    def broken() -> None:
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        broken()
    assert [module.training for module in model.modules()] == modes
