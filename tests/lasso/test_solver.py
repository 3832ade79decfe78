"""Solutions against scikit-learn, their certificates, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import Lasso as TheirLasso

import edgeprune.lasso.descent as descent
from edgeprune.errors import UsageError
from edgeprune.lasso import Lasso, Penalty, Problem, lambda_max, solve, tied
from edgeprune.lasso.solver import _certify
from tests.lasso.problems import grams, penalty_of, problem_of, random_problem, rows_of

NAMES = ["lasso", "tree", "graph"]


def made(name: str, layers: int, classes: int) -> Penalty:
    return Lasso() if name == "lasso" else penalty_of(name, layers, classes)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_the_plain_and_the_tied_lasso_are_scikit_learns(share: float) -> None:
    a, b = rows_of(2, 3, 8, seed=4)
    problem = problem_of(a, b)
    for posed in (problem, tied(problem)):
        lam = share * lambda_max(posed, Lasso()).min().item()
        ours = solve(posed, Lasso(), lam, tolerance=1e-12)
        assert ours.converged.all()
        for layer in range(2):
            if posed is problem:
                stacks = [(a[layer, c], b[layer, c]) for c in range(3)]
            else:
                stacks = [(a[layer].flatten(0, 1), b[layer].flatten())]
            for column, (rows, wanted) in enumerate(stacks):
                theirs = TheirLasso(lam / len(rows), fit_intercept=False, tol=1e-12, max_iter=100_000)
                theirs.fit(rows.numpy(), wanted.numpy())
                found = ours.coefficients[layer, :, column]
                assert torch.allclose(found, torch.from_numpy(theirs.coef_), atol=1e-6, rtol=1e-6)


def test_equal_columns_have_the_loss_of_the_tied_problem() -> None:
    problem = random_problem(3, 4, 6, seed=1)
    one = tied(problem)
    beta = torch.randn(3, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(posed: Problem, coefficients: torch.Tensor) -> torch.Tensor:
        fit = (posed.target.mT * coefficients).sum((-1, -2))
        return (coefficients * posed.product(coefficients)).sum((-1, -2)) / 2 - fit + posed.at_zero

    assert torch.allclose(loss(problem, beta.expand(-1, -1, 4)), loss(one, beta), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_ill_conditioned_grams_are_solved_to_the_certificate(name: str) -> None:
    problem = grams(2, 4, 12, samples=40)
    values = torch.linalg.eigvalsh(problem.gram)
    assert (values[..., -1] / values[..., 0]).min() > 1e4
    penalty = made(name, 2, 4)
    top = lambda_max(problem, penalty)
    for share in (0.3, 1e-2, 1e-3):
        found = solve(problem, penalty, share * top)
        assert found.converged.all()
        assert (found.gap <= 1e-6).all()
        exact = solve(problem, penalty, share * top, tolerance=1e-9)
        assert ((found.objective - exact.objective) <= (found.gap + 1e-12) * problem.at_zero).all()


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_a_newton_step_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, penalty = random_problem(3, 4, 8, seed=5), made(name, 3, 4)
    lam = torch.tensor([0.5, 0.1, 0.02], dtype=torch.float64) * lambda_max(problem, penalty)
    start = descent.proximal_steps(problem, penalty, lam, torch.zeros(3, 8, 4).double(), 30)
    face = penalty.face(start)
    assert face.alive.any()
    assert not face.alive.all()
    directly, _ = descent.newton_step(problem, penalty, lam, start)
    calls = []
    iteratively = descent._solve_iteratively
    monkeypatch.setattr(descent, "_solve_iteratively", lambda *a: calls.append(a) or iteratively(*a))
    descent.newton_step(problem, penalty, lam, start)
    assert not calls
    monkeypatch.setattr(descent, "_FEW", 0)
    other, _ = descent.newton_step(problem, penalty, lam, start)
    assert len(calls) == 1
    assert not torch.equal(directly, start)
    assert torch.allclose(directly, other, atol=1e-4 * float(start.abs().max()), rtol=0)


def test_a_newton_system_without_a_factor_goes_by_conjugate_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, penalty = random_problem(2, 3, 6, seed=6), Lasso()
    broken = Problem(problem.gram, problem.target, problem.energy)
    broken.gram[1, 0, 0, 1] = broken.gram[1, 0, 1, 0] = -9.0  # no longer positive definite
    start = torch.ones(2, 6, 3).double()
    calls = []
    iteratively = descent._solve_iteratively
    monkeypatch.setattr(
        descent, "_solve_iteratively", lambda *a: calls.append(len(a[0].gram)) or iteratively(*a)
    )
    new, _ = descent.newton_step(broken, penalty, torch.full((2,), 1e-3).double(), start)
    assert calls == [1]
    assert new.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_all_is_zero_from_lambda_max_on(name: str) -> None:
    problem, penalty = random_problem(3, 4, 6, seed=2), made(name, 3, 4)
    top = lambda_max(problem, penalty)
    above, below = solve(problem, penalty, top * (1 + 1e-9)), solve(problem, penalty, 0.9 * top)
    assert (above.coefficients == 0).all()
    assert above.steps == 0
    assert (below.coefficients != 0).flatten(1).any(-1).all()


@pytest.mark.parametrize("name", NAMES)
def test_zeros_are_exact_and_the_start_does_not_matter(name: str) -> None:
    problem, penalty = random_problem(4, 3, 10, seed=3), made(name, 4, 3)
    lam = 0.2 * lambda_max(problem, penalty)
    cold = solve(problem, penalty, lam, tolerance=1e-11)
    warm = solve(problem, penalty, lam, tolerance=1e-11, start=torch.ones(4, 10, 3))
    assert ((cold.coefficients == 0).all(-1)).any()
    assert torch.allclose(cold.coefficients, warm.coefficients, atol=1e-6)
    assert torch.allclose(cold.objective, warm.objective, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_certificate_sees_what_is_wrong(name: str) -> None:
    problem, penalty = random_problem(3, 4, 6, seed=2), made(name, 3, 4)
    lam = 0.1 * lambda_max(problem, penalty)
    right = solve(problem, penalty, lam)
    assert right.converged.all()
    for wrong in (1.01 * right.coefficients, right.coefficients + 1e-3, torch.zeros_like(right.coefficients)):
        gap, objective, _ = _certify(problem, penalty, lam, wrong)
        assert (gap > 1e-6 * problem.at_zero).all()
        assert (gap >= objective - right.objective - 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_that_stops_short_says_so(name: str) -> None:
    problem, penalty = grams(2, 4, 12, samples=40), made(name, 2, 4)
    found = solve(problem, penalty, 1e-3 * lambda_max(problem, penalty), max_steps=3)
    assert not found.converged.any()
    assert (found.gap > 1e-6).all()


def test_layers_do_not_see_each_other() -> None:
    problem, penalty = random_problem(3, 4, 6, seed=5), penalty_of("tree", 3, 4)
    lam = torch.tensor([0.3, 0.1, 0.03], dtype=torch.float64) * lambda_max(problem, penalty)
    together = solve(problem, penalty, lam, tolerance=1e-11)
    for layer in range(3):
        one = torch.tensor([layer])
        alone = solve(problem.at(one), penalty.at(one), lam[one], tolerance=1e-11)
        assert torch.allclose(alone.coefficients[0], together.coefficients[layer], atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_explain(name: str) -> None:
    problem = Problem(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3))
    penalty = made(name, 2, 3)
    assert (lambda_max(problem, penalty) == 0).all()
    found = solve(problem, penalty, 1.0)
    assert found.converged.all()
    assert (found.coefficients == 0).all()


def test_a_channel_that_is_constant_stays_out() -> None:
    a, b = rows_of(1, 3, 5, seed=0)
    a[..., 2] = 0
    problem, penalty = problem_of(a, b), penalty_of("graph", 1, 3)
    found = solve(problem, penalty, 1e-3 * lambda_max(problem, penalty))
    assert found.converged.all()
    assert (found.coefficients[0, 2] == 0).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"gram": torch.ones(2, 3, 4, 5)}, r"gram is of shape \(2, 3, 4, 5\), expected \(layers"),
        ({"target": torch.ones(2, 3, 5)}, r"target is of shape \(2, 3, 5\), expected \(2, 3, 4\)"),
        ({"energy": torch.ones(2)}, r"energy is of shape \(2,\), expected \(2, 3\)"),
        ({"target": torch.full((2, 3, 4), math.nan)}, "target is not finite, expected numbers"),
        ({"gram": -torch.eye(4).expand(2, 3, 4, 4)}, "the diagonal of gram or energy is negative"),
        ({"energy": -torch.ones(2, 3)}, "the diagonal of gram or energy is negative"),
        ({"gram": torch.ones(2, 3, 4, 4).triu()}, "gram is not symmetric, expected A' A"),
    ],
)
def test_bad_problems(fault: dict[str, torch.Tensor], message: str) -> None:
    good = {
        "gram": torch.eye(4).expand(2, 3, 4, 4),
        "target": torch.ones(2, 3, 4),
        "energy": torch.ones(2, 3),
    }
    assert Problem(**good)
    with pytest.raises(UsageError, match=message):
        Problem(**(good | fault))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1.0}, "lambda is -1, expected a number > 0"),
        ({"lam": math.nan}, "lambda is nan, expected a number > 0"),
        ({"lam": torch.ones(3)}, r"lambda is of shape \(3,\), expected one number, or 2"),
        ({"lam": 1.0, "start": torch.ones(2, 2)}, r"start is of shape \(2, 2\), expected \(2, 4, 3\)"),
        ({"lam": 1.0, "start": torch.full((2, 4, 3), math.inf)}, "start is not finite, expected numbers"),
        ({"lam": 1.0, "tolerance": 0.0}, "expected tolerance > 0 and max_steps >= 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        solve(random_problem(2, 3, 4, seed=0), Lasso(), **arguments)  # type: ignore[arg-type]


def test_a_penalty_of_other_layers() -> None:
    problem = random_problem(2, 3, 4, seed=0)
    for call in (
        lambda: solve(problem, penalty_of("tree", 3, 3), 1.0),
        lambda: lambda_max(problem, penalty_of("graph", 2, 4)),
    ):
        with pytest.raises(UsageError, match="the penalty is one of"):
            call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_finds_the_same(name: str) -> None:
    problem, penalty = grams(2, 4, 12, samples=40), made(name, 2, 4)
    there = Problem(*(tensor.cuda() for tensor in (problem.gram, problem.target, problem.energy)))
    lam = 0.01 * lambda_max(problem, penalty)
    assert torch.allclose(lambda_max(there, penalty).cpu() * 0.01, lam)
    ours, theirs = solve(problem, penalty, lam), solve(there, penalty, lam.cuda())
    assert theirs.coefficients.is_cuda
    assert theirs.converged.all()
    assert torch.allclose(ours.objective, theirs.objective.cpu(), rtol=1e-5)
