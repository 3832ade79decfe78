from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import TrainingError
from edgeprune.schemes import ProximalNS
from edgeprune.schemes.proximal_ns import ProximalStep, batch_norm_weights
from edgeprune.training import evaluate, train

QUICK = ProximalNS(l1=1.5, beta=2.0, epochs=4)


# The paper's equations, in NumPy, beside ours.


def soft_threshold(v: np.ndarray, t: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - t, 0)


def theirs_step(gamma, xi, *, lr, l1, beta):
    alpha = 1 / lr
    gamma = (alpha * gamma + beta * xi) / (alpha + beta)
    xi = soft_threshold((alpha * xi + beta * gamma) / (alpha + beta), l1 / (alpha + beta))
    return gamma, xi


@pytest.mark.parametrize(("l1", "beta"), [(0.0045, 100.0), (0.002, 0.25), (0.5, 3.0), (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_step_is_the_papers(dtype, l1, beta):
    draw = np.random.default_rng(0)
    sizes = (5, 16, 1, 64)
    theirs = [(draw.uniform(-0.3, 1, size), draw.uniform(-0.3, 1, size)) for size in sizes]
    gammas = [nn.Parameter(torch.tensor(gamma, dtype=dtype)) for gamma, _ in theirs]
    ours = ProximalStep(gammas, [torch.tensor(xi, dtype=dtype) for _, xi in theirs], l1=l1, beta=beta)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for step in range(300):
        lr = 0.1 * 0.1 ** (step // 100)
        noise = [0.05 * draw.standard_normal(size) for size in sizes]  # what the optimizer does in between
        with torch.no_grad():
            for gamma, change in zip(gammas, noise, strict=True):
                gamma += torch.tensor(change, dtype=dtype)
        theirs = [
            theirs_step(gamma + change, xi, lr=lr, l1=l1, beta=beta)
            for (gamma, xi), change in zip(theirs, noise, strict=True)
        ]
        ours.step(lr)
        for gamma, xi, (their_gamma, their_xi) in zip(gammas, ours.xi, theirs, strict=True):
            np.testing.assert_allclose(gamma.detach().numpy(), their_gamma, rtol=0, atol=tolerance)
            np.testing.assert_allclose(xi.numpy(), their_xi, rtol=0, atol=tolerance)
            if dtype == torch.float64:
                assert np.array_equal(xi.numpy() == 0, their_xi == 0)
    objective = sum(l1 * np.abs(xi).sum() + beta / 2 * ((gamma - xi) ** 2).sum() for gamma, xi in theirs)
    assert ours.penalty() == pytest.approx(objective, rel=1e-4, abs=1e-6)
    zeros = sum((xi == 0).sum() for _, xi in theirs)
    if dtype == torch.float64:
        assert ours.sparsity() == pytest.approx(zeros / sum(sizes))
        assert l1 < 0.5 or zeros > 0


def test_xi_is_updated_with_the_new_gamma():
    """Negative control of the order: with the old gamma the result would be another one."""
    gamma, xi = (
        nn.Parameter(torch.tensor([2.0], dtype=torch.float64)),
        torch.tensor([1.0], dtype=torch.float64),
    )
    ours = ProximalStep([gamma], [xi], l1=0.0, beta=10.0)
    ours.step(0.1)
    assert gamma.item() == pytest.approx(1.5)
    assert xi.item() == pytest.approx(1.25)  # (10 * 1 + 10 * 1.5) / 20; with the old gamma 1.5


def test_the_soft_threshold_gives_exact_zeros_on_both_sides():
    values = torch.tensor([1e-3, -1e-3, 9.9e-4, -9.9e-4, 0.0, 1e-38, 1.01e-3, -0.5])
    ours = ProximalStep([nn.Parameter(values.clone())], [values.clone()], l1=1.1e-2, beta=1.0)
    ours.step(0.1)  # threshold 0.011 / 11 = 0.001
    assert (ours.xi[0] == 0).tolist() == [True] * 6 + [False] * 2
    assert float(ours.xi[0][6]) > 0 > float(ours.xi[0][7])


def test_a_rate_of_zero_changes_nothing():
    gamma = nn.Parameter(torch.tensor([0.5, -2.0]))
    ours = ProximalStep([gamma], [torch.tensor([0.1, 0.0])], l1=1.0, beta=7.0)
    ours.step(0.0)
    assert gamma.tolist() == [0.5, -2.0]
    assert torch.equal(ours.xi[0], torch.tensor([0.1, 0.0]))


def test_a_whole_training_follows_numpy(net, groups, data):
    """`fit` against the same training with the NumPy update after each step."""
    ours, theirs = net().double(), net().double()
    for split in (data.train, data.val):
        split.images = split.images.double()
    data = dataclasses.replace(data, example=data.example.double())
    scores = QUICK.fit(ours, groups, data)
    gammas = batch_norm_weights(theirs)
    xi = [gamma.detach().numpy().copy() for gamma in gammas]

    def after_step(lr):
        for i, gamma in enumerate(gammas):
            new, xi[i] = theirs_step(gamma.detach().numpy(), xi[i], lr=lr, l1=QUICK.l1, beta=QUICK.beta)
            gamma.data.copy_(torch.from_numpy(new))

    train(theirs, data, epochs=4, schedule="step", select="last", after_step=after_step)
    for name, their_xi in zip(("0", "3"), xi, strict=True):
        np.testing.assert_allclose(scores[name].numpy(), np.abs(their_xi), atol=1e-6)
        assert np.array_equal(scores[name].numpy() == 0, their_xi == 0)
    assert 0 < scores.facts["sparsity"] == sum((v == 0).sum() for v in xi) / 14 < 1
    torch.testing.assert_close(ours[0].weight, theirs[0].weight, rtol=0, atol=1e-9)


def test_ends_with_gamma_exactly_zero_where_xi_is_and_reports_what_that_cost(net, groups, data):
    model = net()
    scores = QUICK.fit(model, groups, data)
    facts = scores.facts
    for name, norm in (("0", model[1]), ("3", model[4])):
        assert torch.equal(norm.weight == 0, scores[name] == 0)
    zeros = sum(int((score == 0).sum()) for score in (scores["0"], scores["3"]))
    assert facts["sparsity"] == zeros / 14
    assert 0 < zeros < 14
    assert facts["val_accuracy_before_closing"] == facts["history"]["val_accuracy"]
    assert facts["val_accuracy_after_closing"] == evaluate(model, data.val)
    assert 0 < facts["largest_gamma_closed"] < 0.5  # from 0.5 to 1.5
    assert "6" not in scores  # no norm between it and its consumer


def test_a_closed_channel_keeps_its_bias(net, groups, data):
    model = net()
    scores = QUICK.fit(model, groups, data)
    assert bool((model[4].bias[scores["3"] == 0] != 0).all())


def test_more_l1_more_zeros(net, groups, data):
    schemes = [dataclasses.replace(QUICK, l1=l1) for l1 in (0.0, 1.5, 3.0)]
    shares = [scheme.fit(net(), groups, data).facts["sparsity"] for scheme in schemes]
    assert shares[0] == 0 < shares[1] < shares[2]


def test_pretrained_starts_at_gamma(net, groups, data):
    model = net()
    before = model[1].weight.detach().abs().clone()
    scores = dataclasses.replace(QUICK, epochs=0).fit(model, groups, data)
    assert torch.equal(scores["0"], before)


def test_scratch_starts_as_the_authors_do(net, groups, data):
    model = net()
    scores = dataclasses.replace(QUICK, epochs=0, start="scratch").fit(model, groups, data)
    for norm, name in ((model[1], "0"), (model[4], "3")):
        assert torch.all(norm.weight == 0.5)
        assert torch.all(norm.bias == 0)
        assert bool(((scores[name] >= 0.47) & (scores[name] <= 0.53)).all())
    other = dataclasses.replace(QUICK, epochs=0, start="scratch", seed=1).fit(net(), groups, data)
    assert not torch.equal(scores["0"], other["0"])


def test_criterion_gamma_cuts_only_what_is_tied_at_the_smallest(net, groups, data):
    model = net()
    with torch.no_grad():
        model[1].weight[:3] = torch.tensor([0.25, -0.25, 0.3])
    scores = dataclasses.replace(QUICK, epochs=0, criterion="gamma").fit(model, groups, data)
    assert (scores["0"] == 0).tolist() == [True, True, False, False, False, False]
    assert float(scores["0"][2]) == pytest.approx(0.3)
    assert model[1].weight[:2].tolist() == [0, 0]
    assert bool((scores["3"] > 0).all())


def test_criterion_gamma_differs_after_training(net, groups, data):
    """Where xi is 0, gamma is only near it: the authors' rule keeps nearly all of these channels."""
    by_xi = QUICK.fit(net(), groups, data)
    by_gamma = dataclasses.replace(QUICK, criterion="gamma").fit(net(), groups, data)
    assert by_gamma.facts["sparsity"] < by_xi.facts["sparsity"]


def test_debiasing_keeps_the_zeros_and_trains_the_rest(net, groups, data, tmp_path):
    plain, debiased = net(), net()
    before = QUICK.fit(plain, groups, data)
    path = tmp_path / "checkpoint.pt"
    after = dataclasses.replace(QUICK, debias_epochs=3).fit(debiased, groups, data, checkpoint=path)
    assert torch.equal(plain[4].weight == 0, debiased[4].weight == 0)
    assert not torch.equal(plain[4].weight, debiased[4].weight)
    assert torch.equal(before["3"], after["3"])
    assert len(after.facts["debias"]["epochs"]) == 3
    # Never worse on validation than without: the start is among the choices.
    assert after.facts["debias"]["val_accuracy"] >= before.facts["val_accuracy_after_closing"]
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.pt", "checkpoint.1.pt", "checkpoint.debias.pt", "checkpoint.debias.1.pt"
    }  # fmt: skip


class StopError(Exception):
    pass


@pytest.mark.parametrize(("stop_at", "debias_epochs"), [(1, 0), (3, 0), (3, 3), (5, 3)])
def test_a_stopped_fit_ends_with_the_same_bits(net, groups, data, tmp_path, stop_at, debias_epochs):
    scheme = dataclasses.replace(QUICK, debias_epochs=debias_epochs)
    whole = net()
    expected = scheme.fit(whole, groups, data)
    path = tmp_path / "checkpoint.pt"
    ends = 0

    def stop(progress):
        nonlocal ends
        ends += progress.step == progress.steps
        if ends > stop_at:
            raise StopError

    with pytest.raises(StopError):
        scheme.fit(net(), groups, data, checkpoint=path, on_progress=stop)
    resumed = net()
    scores = scheme.fit(resumed, groups, data, checkpoint=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_xi_is_in_the_checkpoint(net, groups, data, tmp_path):
    path = tmp_path / "checkpoint.pt"
    scores = QUICK.fit(net(), groups, data, checkpoint=path)
    saved = torch.load(path, weights_only=True)["extra"]["xi"]
    assert torch.equal(saved[0].abs(), scores["0"])


@pytest.mark.parametrize("change", [{"l1": 0.2}, {"beta": 1.0}, {"start": "scratch"}, {"lr": 0.05}], ids=str)
def test_a_checkpoint_of_other_hyper_parameters_is_refused(net, groups, data, tmp_path, change):
    path = tmp_path / "checkpoint.pt"
    QUICK.fit(net(), groups, data, checkpoint=path)
    with pytest.raises(TrainingError, match="is of another training"):
        dataclasses.replace(QUICK, **change).fit(net(), groups, data, checkpoint=path)


def test_every_batch_norm_weight_once(net):
    model = net()
    model.append(nn.BatchNorm1d(3))
    model.append(nn.BatchNorm1d(3, affine=False))
    model.append(nn.BatchNorm2d(6))
    model[-1].weight = model[1].weight
    weights = batch_norm_weights(model)
    assert [id(weight) for weight in weights] == [id(model[i].weight) for i in (1, 4, 11)]


def test_shows_objective_and_sparsity_live(net, groups, data):
    seen = []
    scores = QUICK.fit(net(), groups, data, on_progress=seen.append)
    assert all(p.phase == "proximal-ns" and p.objective > p.loss and 0 <= p.sparsity <= 1 for p in seen)
    assert seen[-1].sparsity == scores.facts["sparsity"]
    ratios = [epoch["macs_ratio"] for epoch in scores.facts["history"]["epochs"]]
    assert ratios[-1] == seen[-1].macs_ratio < 1
    # By hand: 3x3 convolutions 3 -> 6 -> 8 on 8x8 images, then 8 -> 4 by 1x1, then 4 -> 3.
    first, second = (int((scores[name] != 0).sum()) for name in ("0", "3"))
    whole, left = (64 * 9 * (3 * a + a * b) + 64 * 4 * b + 4 * 3 for a, b in ((6, 8), (first, second)))
    assert ratios[-1] == pytest.approx(left / whole, abs=1e-3)


def test_a_network_without_batch_norms_is_refused_before_training(net, groups, data):
    model = net()
    model[1], model[4] = nn.Identity(), nn.Identity()
    with pytest.raises(TrainingError, match=r"network is without a batch norm weight.*scheme magnitude"):
        QUICK.fit(model, groups, data)


def test_norms_that_close_no_channel_are_refused_before_training(net, groups, data):
    model = net()
    before = pickle.dumps(model.state_dict())
    with pytest.raises(TrainingError, match="network is without a channel that a norm can close"):
        QUICK.fit(model, groups[2:], data)
    assert pickle.dumps(model.state_dict()) == before
