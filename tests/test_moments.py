"""What a layer reads, as rows, and least squares on sums over rows, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune import moments
from edgeprune.flow import product_of_module
from edgeprune.moments import Moments, Product, same_padding, sampled_places

LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 5)),
    "even and strided": (nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 2)), (4, 7, 6)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=1), (4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (3, 5), dilation=(1, 2), padding="same"), (4, 9, 9)),
    "reflecting": (nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"), (4, 6, 5)),
    "circular": (nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (4, 5, 5)),
    "1-D": (nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9)),
    "3-D": (nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)), (4, 3, 4, 5)),
    "linear": (nn.Linear(4, 6), (4, 1)),
    "tokens": (nn.Linear(4, 6), (4, 7)),
}


def run(layer: nn.Module, received: torch.Tensor) -> torch.Tensor:
    """(N, C_out, places)."""
    if isinstance(layer, nn.Linear):
        return layer(received.mT).mT
    return layer(received).flatten(2)


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_the_weight_are_what_the_layer_returns(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    received = torch.randn(3, *shape)
    wanted = run(layer, received).detach()
    product = product_of_module(layer)
    places = sampled_places(3, wanted.shape[2], 4, torch.Generator().manual_seed(1))
    rows = product.patches(received, places)  # (groups, rows, d)
    ours = (rows @ product.rows.mT).transpose(0, 1).flatten(1) + layer.bias
    theirs = wanted.gather(2, places[:, None].expand(-1, wanted.shape[1], -1)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_same_padding_puts_the_odd_one_after():
    assert same_padding((3, 4), (1, 3)) == ((1, 1), (4, 5))


def test_samples_different_places_of_each_image_or_takes_all():
    generator = torch.Generator().manual_seed(0)
    drawn = sampled_places(5, 20, 6, generator)
    assert drawn.shape == (5, 6)
    assert all(len(set(row.tolist())) == 6 for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) > 1
    assert sampled_places(2, 3, 6, generator).tolist() == [[0, 1, 2], [0, 1, 2]]


def theirs_ridge(x, r, ridge, intercept):
    """Ridge regression in NumPy: the normal equations of the stacked problem."""
    mean_x, mean_r = (x.mean(0), r.mean(0)) if intercept else (0 * x[0], 0 * r[0])
    cx, cr = x - mean_x, r - mean_r
    size = ridge * np.trace(cx.T @ cx) / x.shape[1]
    stacked = np.vstack([cx, np.sqrt(size) * np.eye(x.shape[1])])
    weight = np.linalg.lstsq(stacked, np.vstack([cr, np.zeros((x.shape[1], r.shape[1]))]), rcond=None)[0].T
    return weight, mean_r - weight @ mean_x


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_ridge_regression_and_its_error_agree_with_numpy(ridge, intercept):
    rng = np.random.default_rng(0)
    x, r = rng.normal(1, 1, (40, 5)), rng.normal(2, 1, (40, 3))
    sums = Moments(
        *(torch.zeros(1, *shape, dtype=torch.float64) for shape in ((5, 5), (5, 3), (3,), (5,), (3,)))
    )
    for part in (slice(0, 7), slice(7, 40)):
        sums.add(torch.from_numpy(x[None, part]), torch.from_numpy(r[None, part]))
    weight, bias = sums.solved(ridge, intercept=intercept)
    expected_weight, expected_bias = theirs_ridge(x, r, ridge, intercept)
    np.testing.assert_allclose(weight[0], expected_weight, rtol=1e-9)
    np.testing.assert_allclose(bias[0], expected_bias, rtol=1e-9, atol=1e-12)
    left = ((r - x @ weight[0].numpy().T - bias[0].numpy()) ** 2).sum(0)
    np.testing.assert_allclose(sums.error(weight, bias)[0], left, rtol=1e-9)
    # A negative control: another weight lacks more, when nothing holds the weights back.
    if ridge < 1e-3:
        assert (sums.error(weight * 1.1, bias) > sums.error(weight, bias)).all()


def test_memory_does_not_change_the_sums(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2)
    received, lacking = torch.randn(5, 4, 6, 6), torch.randn(5, 6, 4)
    places = sampled_places(5, 16, 4, torch.Generator())
    whole = Moments.of_layer(product_of_module(layer), received, places, lacking)
    monkeypatch.setattr(moments, "CHUNK", 1)
    pieces = Moments.of_layer(product_of_module(layer), received, places, lacking)
    halves = [
        Moments.of_layer(product_of_module(layer), received[some], places[some], lacking[some])
        for some in (slice(2), slice(2, 5))
    ]
    assert whole.rows == pieces.rows == 20
    for name in ("xx", "xr", "rr", "x", "r"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
        both = getattr(halves[0] + halves[1], name)
        torch.testing.assert_close(both, getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_a_column_of_zeros_gets_no_weight():
    x = torch.randn(1, 30, 3, dtype=torch.float64)
    x[..., 1] = 0
    sums = Moments(
        *(torch.zeros(1, *shape, dtype=torch.float64) for shape in ((3, 3), (3, 2), (2,), (3,), (2,)))
    )
    sums.add(x, torch.randn(1, 30, 2, dtype=torch.float64))
    weight, bias = sums.solved(1e-5, intercept=True)
    assert bool((weight[..., 1] == 0).all())
    assert bool(bias.isfinite().all())


def test_rows_of_a_grouped_weight_are_one_matrix_per_group():
    weight = torch.arange(2 * 3 * 2.0).reshape(4, 1, 3)
    assert Product(weight, (1,), ((0, 0),), (1,), 2).rows.shape == (2, 2, 3)
