"""OBS: costs of removal are those of least squares, and the sensitivity is the network's Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune as ep
from edgeprune.calibration import Reader, calibration_of
from edgeprune.flow import product_of_module
from edgeprune.moments import Moments, Product
from edgeprune.schemes import OBS
from edgeprune.schemes.obs import Removal, greedy
from edgeprune.schemes.scores import unit_costs
from edgeprune.schemes.sensitivity import sensitivities
from edgeprune.shares import Shares


def left_out(x, y, columns, ridge):
    """(o,) mean squares that a ridge regression of centred y on the other columns of x lacks, in NumPy.

    The ridge, too, is paid for: it is part of what is minimised.
    """
    kept = [column for column in range(x.shape[1]) if column not in columns]
    stacked = np.vstack([x, np.sqrt(ridge * len(x)) * np.eye(x.shape[1])])
    wanted = np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    wanted[len(x) :] = stacked[len(x) :] @ WEIGHT.T
    found = np.linalg.lstsq(stacked[:, kept], wanted, rcond=None)[0]
    return ((wanted - stacked[:, kept] @ found) ** 2).sum(0) / len(x)


RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 8))


def removal(x, importance=(1.0, 1.0, 1.0), ridge=1e-3):
    """A reader of 4 units of 2 columns each: unit k holds the columns 2 (3 - k) and 2 (3 - k) + 1."""
    product = Product(torch.from_numpy(WEIGHT))
    sums = Moments.of_layer(
        product, torch.from_numpy(x)[:, :, None], torch.zeros(len(x), 1, dtype=torch.int64)
    )
    units = tuple((2 * (3 - unit), 2 * (3 - unit) + 1) for unit in range(4))
    return Removal(Reader("layer", units, units), product, sums, torch.tensor(importance), ridge), units


@pytest.mark.parametrize("importance", [(1.0, 1.0, 1.0), (1.0, 0.0, 5.0)])
def test_costs_and_the_greedy_order_are_those_of_least_squares(importance):
    x = RNG.normal(size=(200, 8)) @ RNG.normal(size=(8, 8)) + 3
    part, units = removal(x, importance)
    centred = x - x.mean(0)
    ridge = 1e-3 * np.trace(centred.T @ centred) / len(x) / 8
    gone: list[int] = []
    before = 0.0
    for _ in range(3):
        left = [unit for unit in range(4) if unit not in gone]
        errors = [
            left_out(centred, centred @ WEIGHT.T, {c for u in (*gone, unit) for c in units[u]}, ridge)
            @ np.array(importance)
            for unit in left
        ]
        np.testing.assert_allclose(part.costs(left), np.array(errors) - before, rtol=1e-6, atol=1e-9)
        chosen = int(np.argmin(errors))
        before = errors[chosen]
        gone.append(left[chosen])
        part.remove(gone[-1])


def test_a_threshold_cuts_in_the_order_of_removal():
    class Falling:
        """The first removal costs most."""

        def __init__(self):
            self.now = 5.0

        def costs(self, units):
            return self.now + torch.tensor(units, dtype=torch.float64)

        def remove(self, _):
            self.now -= 2.0

    assert greedy(4, [Falling()]).tolist() == [5.0, 5.0, 5.0, 5.0]
    assert greedy(2, [Falling(), Falling()]).tolist() == [10.0, 10.0]


def test_a_unit_that_copies_another_costs_next_to_nothing_until_that_one_is_gone():
    x = RNG.normal(size=(300, 8))
    x[:, 2:4] = x[:, 6:8]  # units 2 and 0
    scores = greedy(4, [removal(x, ridge=1e-6)[0]])
    assert float(scores[[0, 2]].min()) < 1e-4 * float(scores[[0, 2]].max())
    assert float(scores[[0, 2]].min()) < 1e-4 * float(scores[[1, 3]].min())


def test_sensitivity_is_the_squared_jacobian_of_the_logits():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4)).eval()
    images = torch.randn(2, 2, 2, 2)
    found = sensitivities(net, images, ("0", "3"), draws=4000)
    torch.testing.assert_close(found["3"], torch.ones(4, dtype=torch.float64), rtol=0.1, atol=0)
    exact = torch.zeros(3, dtype=torch.float64)
    for image in images:
        start = net[0](image[None]).detach()
        jacobian = torch.autograd.functional.jacobian(lambda z: net[3](z.relu().flatten(1)), start)
        exact += jacobian.double().square().sum((0, 1, 2, 4, 5)) / len(images)
    torch.testing.assert_close(found["0"], exact, rtol=0.1, atol=0)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_scores_are_costs_divided_by_what_a_unit_saves(net, groups, data):
    model = net()
    by = {per: OBS(images=12, per=per).fit(model, groups, data) for per in ("unit", "macs", "params")}
    shares = Shares(model, data.example)
    for group in groups[:3]:
        for per in ("macs", "params"):
            part = getattr(shares.of([group]), f"{per}_share") / group.size
            torch.testing.assert_close(by[per][group.name], by["unit"][group.name] / part)


def test_a_unit_without_macs_of_its_own_costs_as_much_as_the_smallest(net, groups, data):
    costs = unit_costs(net(), groups, data.example, "unit")
    assert set(costs.values()) == {1.0}
    assert all(cost > 0 for cost in unit_costs(net(), groups, data.example, "macs").values())


class Back(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.b = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.b(self.up(self.a(x)).relu()).mean((2, 3)))


def test_a_group_that_only_a_transposed_convolution_reads_is_left_out_and_named(data):
    model = Back().eval()
    scores = OBS(images=12).fit(model, ep.find_groups(model, data.example), data)
    assert set(scores) == {"up", "b"}
    assert scores.facts["without_score"] == ["a"]
    assert scores.facts["images"] == len(calibration_of(data, 4))


def test_the_weight_of_a_padded_string_convolution_is_read_as_it_runs():
    layer = nn.Conv2d(4, 6, 3, padding="same")
    assert product_of_module(layer).padding == ((1, 1), (1, 1))
