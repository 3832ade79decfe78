"""Paths: entries, and agreement with solves at single lambdas."""

from __future__ import annotations

import pytest
import torch

from edgeprune.errors import UsageError
from edgeprune.lasso import Lasso, lambda_max, path, solve
from tests.lasso.problems import grams, random_problem
from tests.lasso.test_solver import NAMES, made


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_the_solves(name: str) -> None:
    problem, penalty = grams(3, 4, 10, samples=40), made(name, 3, 4)
    top = lambda_max(problem, penalty)
    lambdas = 1.1 * top.max() * torch.logspace(0, -2, 10, dtype=torch.float64)
    found = path(problem, penalty, lambdas, tolerance=1e-9, keep=range(10))
    assert found.converged.all()
    assert (found.gap <= 1e-9).all()
    ever = torch.zeros(3, 10, dtype=torch.bool)
    for place, lam in enumerate(lambdas):
        alone = solve(problem, penalty, lam.item(), tolerance=1e-9)
        assert torch.allclose(found.objective[:, place], alone.objective, rtol=1e-8)
        alive = (found.coefficients[place] != 0).any(-1)
        ever |= alive
        assert torch.equal(found.entry >= lam, ever)
        sure = alone.coefficients.abs().amax(-1) > 1e-4
        assert (alive | ~sure).all()
    assert torch.allclose(found.entry.amax(-1), top, rtol=0.3)
    assert (found.entry.amax(-1) <= top).all()


@pytest.mark.parametrize("name", NAMES)
def test_entries_within_a_cell_are_close(name: str) -> None:
    """A coarse path estimates what a path ten times finer finds."""
    problem, penalty = random_problem(2, 3, 8, seed=6), made(name, 2, 3)
    top = lambda_max(problem, penalty).max()
    exponents = torch.linspace(0, -1.5, 101, dtype=torch.float64)
    fine = path(problem, penalty, top * 10**exponents).entry
    coarse = path(problem, penalty, top * 10 ** exponents[::10]).entry
    floor = top * 10 ** exponents[-1]
    seen = (fine >= floor) & (coarse >= floor)
    assert seen.any()
    assert (coarse[seen] / fine[seen]).log10().abs().max() < 0.1
    assert (coarse[seen] / fine[seen]).log10().abs().median() < 0.03


def test_rows_that_never_enter_have_their_dual_norm() -> None:
    problem, penalty = random_problem(2, 3, 8, seed=7), made("tree", 2, 3)
    last = 0.5 * lambda_max(problem, penalty).min()
    found = path(problem, penalty, [2 * last, last], keep=[1])
    out = (found.coefficients[1] == 0).all(-1)
    norms = penalty.dual_norm(problem.correlation(found.coefficients[1]))
    assert out.any()
    assert torch.allclose(found.entry[out], norms[out].clamp(max=last), rtol=1e-8)
    assert (found.entry[out] < last).all()
    assert (found.entry[out] > 0).all()


def test_layers_below_their_lambda_max_cost_nothing() -> None:
    problem, penalty = random_problem(2, 3, 8, seed=8), made("tree", 2, 3)
    top = lambda_max(problem, penalty).max().item()
    found = path(problem, penalty, [3 * top, 2 * top])
    assert found.steps == 0
    assert (found.gap == 0).all()
    assert torch.equal(found.objective[:, 0], problem.at_zero)
    assert torch.allclose(found.entry, penalty.dual_norm(problem.target.mT))


@pytest.mark.parametrize("lambdas", [[], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [float("nan")]])
def test_lambdas_that_do_not_descend(lambdas: list[float]) -> None:
    with pytest.raises(UsageError, match="expected one or more numbers > 0 that descend"):
        path(random_problem(1, 2, 3, seed=0), Lasso(), lambdas)
