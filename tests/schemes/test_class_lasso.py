"""The lassos on Grams as schemes: scores, facts and errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as Theirs
from torch import nn

import edgeprune as ep
from edgeprune.calibration import calibration_of
from edgeprune.channels import ChannelGroup, Member
from edgeprune.data import TensorLoader
from edgeprune.errors import DataError, SchemeError
from edgeprune.gram import columns_of, quadratics
from edgeprune.lasso import Lasso, Problem, solve, tied
from edgeprune.schemes import SGLPIB, STLPIB, HSICLasso, class_lasso
from edgeprune.schemes.sensitivity import stakes
from tests.schemes.conftest import make_groups, make_net, one_each
from tests.training.fakes import make_data

FEW = {"images": 12, "lambdas": 8, "path_ratio": 0.05, "weigh": "none"}
BOTH = [SGLPIB, STLPIB]


def stacked(found) -> Problem:
    return Problem(
        *(torch.stack([getattr(layer, name) for layer in found]) for name in ("gram", "target", "energy"))
    )


@pytest.mark.parametrize("scheme", BOTH)
def test_a_threshold_on_the_scores_is_a_solve_at_that_lambda(net, groups, data, scheme):
    """Units with a score above lambda are those with a non-zero row of B."""
    model, scheme = net(), scheme(**FEW)
    scores = scheme.fit(model, groups, data)
    calibration = calibration_of(data, 4, seed=0)
    checked = 0
    for layer in quadratics(model, columns_of(model, groups), calibration):
        name = layer.columns.units[0][0]
        problem, penalty = stacked([layer]), scheme.penalty([layer])
        for lam in scores.facts["lambdas"][1:]:
            row = solve(problem, penalty, lam, tolerance=1e-10).coefficients[0].abs().sum(-1)
            above = (scores[name].double() >= lam).tolist()
            assert above == (row > 0).tolist(), (name, lam)
            checked += sum(above)
    assert checked > 20


@pytest.mark.parametrize("scheme", BOTH)
def test_facts_hold_the_certificates_and_the_class_structure(net, groups, data, scheme):
    facts = scheme(**FEW).fit(net(), groups, data).facts
    assert facts["classes"] == ["a", "b", "c"]
    assert facts["images_per_class"] == 4
    assert 0 < facts["certificate"] <= facts["tolerance"] == 1e-6
    assert facts["stopped_short"] == {}
    assert facts["skipped"] == {}
    assert set(facts["layers"]) == {"3", "6", "10"}
    for layer in facts["layers"].values():
        assert np.shape(layer["relatedness"]) == (3, 3)
        assert np.shape(layer["linkage"]) == (2, 4)
        assert layer["certificate"] <= facts["certificate"]
    assert facts["layers"]["3"]["units"] == 6
    assert all("edges" in layer for layer in facts["layers"].values()) is (scheme is SGLPIB)


@pytest.mark.parametrize("kappa", [0.0, 5.0])
def test_the_graph_counts(net, groups, kappa):
    """The penalty is the l1 norm and kappa times the differences along the edges that the facts name."""
    model, scheme = net(), SGLPIB(images=12, kappa=kappa, neighbours=2)
    calibration = calibration_of(many(6, 2), 2, seed=0)
    found = next(quadratics(model, columns_of(model, groups), calibration))
    edges = scheme.structure(found)["edges"]
    assert edges
    b = torch.randn(1, len(found.columns.units), 6, generator=torch.Generator().manual_seed(0)).double()
    theirs = np.abs(b.numpy()).sum()
    for first, second, weight in edges:
        assert weight == pytest.approx(float(found.relatedness[first, second]), abs=1e-4)
        theirs += kappa * weight * float((b[0, :, first] - b[0, :, second]).abs().sum())
    assert float(scheme.penalty([found]).value(b)) == pytest.approx(theirs, rel=1e-3)


def test_a_unit_that_several_layers_read_has_its_largest_lambda(data):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Conv2d(5, 6, 1)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x).mean((2, 3)).sum(1) + self.c(x).mean((2, 3)).sum(1)

    members = tuple(Member(f"{name}.weight", 1, "in", one_each(5)) for name in "bc")
    groups, scheme = (
        (ChannelGroup("a", 5, members),),
        STLPIB(images=12, lambdas=8, path_ratio=0.1, weigh="none"),
    )
    found = tuple(quadratics(Net(), columns_of(Net(), groups), calibration_of(data, 4, seed=0)))
    entry = class_lasso.enter(found, scheme.pose, scheme.penalty, 8, 0.1).entry
    largest = torch.maximum(entry["b"], entry["c"])
    assert not torch.equal(largest, entry["b"])
    assert not torch.equal(largest, entry["c"])
    torch.testing.assert_close(scheme.fit(Net(), groups, data)["a"], largest.float())


def test_a_dead_unit_is_free_and_a_constant_one_scores_least(net, groups, data):
    model = net()
    with torch.no_grad():
        for unit, bias in ((1, -1.0), (4, 2.0)):
            model[1].weight[unit] = 0
            model[1].bias[unit] = bias
    for scheme in (SGLPIB(**FEW), STLPIB(**FEW), HSICLasso(images=12)):
        score = scheme.fit(model, groups, data)["0"]
        assert score[1] == 0
        assert 0 < float(score[4]) < 1e-30
        assert float(score[[0, 2, 3, 5]].min()) > 1e-20


def test_what_nothing_reads_as_a_layer_is_kept_and_named(net, groups, data):
    orphan = replace(groups[0], members=tuple(m for m in groups[0].members if m.role == "out"))
    odd = Member("4.weight", 0, "in", one_each(8))  # a norm's weight
    scores = STLPIB(**FEW).fit(
        net(), (orphan, replace(groups[1], members=(*groups[1].members, odd)), groups[2]), data
    )
    assert set(scores) == {"3", "6"}
    assert scores.facts["skipped"] == {
        "0": "no layer that was looked at reads its units: the group is kept whole",
        "4": "reads them, but is no convolution or linear layer",
    }


def test_a_layer_that_is_never_called_is_named(data):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Conv2d(5, 6, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x))).mean((2, 3))

    members = tuple(Member(f"{name}.weight", 1, "in", one_each(5)) for name in "bc")
    scores = STLPIB(**FEW).fit(Net(), (ChannelGroup("a", 5, members),), data)
    assert scores.facts["skipped"] == {"c": "is never called as a layer"}
    assert set(scores.facts["layers"]) == {"b"}


# ---- HSIC lasso


@pytest.mark.parametrize("scale", ["none", "channel"])
@pytest.mark.parametrize("batch", ["random", "balanced"])
def test_hsic_lasso_is_scikit_learns_on_the_stacked_grams(net, groups, data, scale, batch):
    model = net().eval()
    scheme = HSICLasso(images=15, scale=scale, batch=batch)
    calibration, _ = scheme.calibrate(model, data)
    with torch.no_grad():
        x = model[:3](calibration.images).double().flatten(2).numpy()
        y = model[3](model[:3](calibration.images)).double().flatten(1).numpy()

    def centred(maps):
        h = np.eye(15) - 1 / 15
        found = h @ np.exp(-((maps[:, None] - maps[None]) ** 2).sum(-1) / maps.shape[1]) @ h
        return found.ravel() / (np.linalg.norm(found) if scale == "channel" else 1)

    left, right = np.stack([centred(x[:, k]) for k in range(6)], 1), centred(y)
    scores = scheme.fit(model, groups, data)
    found = next(
        q
        for q in quadratics(model, columns_of(model, groups), calibration, scale=scale)
        if q.columns.layer == "3"
    )
    top = np.abs(left.T @ right).max() / 225
    for share in (0.7, 0.3, 0.05, 0.005):
        theirs = Theirs(alpha=share * top, tol=1e-14, max_iter=100_000).fit(left, right).coef_
        ours = (
            solve(tied(stacked([found])), Lasso(), share * top, tolerance=1e-13).coefficients[0, :, 0].numpy()
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * max(1, np.abs(theirs).max()))
        np.testing.assert_array_equal(scores["0"].numpy() >= share * top, theirs != 0)


def test_tied_columns_make_the_class_wise_loss_that_of_the_hsic_lasso(net, groups, data):
    """Section 6, point 3: F(beta 1') of the classes is the loss on all rows, to 1e-10."""
    model = net()
    calibration = calibration_of(data, 5)
    whole = replace(calibration, labels=0 * calibration.labels, classes=("any",))
    columns = columns_of(model, groups)
    beta = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for images in (calibration, whole):
        found = next(q for q in quadratics(model, columns, images) if q.columns.layer == "3")
        loss = sum(
            0.5 * beta @ gram @ beta - target @ beta + 0.5 * energy
            for gram, target, energy in zip(found.gram, found.target, found.energy, strict=True)
        )
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_a_random_batch_is_not_balanced_and_the_seed_chooses_it(net, groups, data):
    first, second = (HSICLasso(images=12, seed=seed).calibrate(net(), data)[0] for seed in (0, 1))
    assert not torch.equal(first.images, second.images)
    assert first.classes == ("any",)
    scores = [HSICLasso(images=12, seed=seed).fit(net(), groups, data)["0"] for seed in (0, 1)]
    assert not torch.equal(*scores)


# ---- many classes


def many(classes: int, each: int):
    labels = torch.arange(classes).repeat(each)
    images = (
        torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(0))
        + labels.view(-1, 1, 1, 1) / 9
    )
    loader = TensorLoader(images, labels, batch_size=8, normalization=ep.Normalization())
    return replace(make_data(), calib=loader, classes=tuple(f"c{number}" for number in range(classes)))


def test_many_classes_are_joined(net, groups):
    model = net()
    model[10] = nn.Linear(4, 24)
    facts = (
        STLPIB(images=20, lambdas=4, path_ratio=0.1, super_classes=4).fit(model, groups, many(24, 2)).facts
    )
    assert len(facts["classes"]) == 4
    assert facts["images_per_class"] == 5
    assert sorted(name for members in facts["joined_classes"].values() for name in members) == sorted(
        f"c{number}" for number in range(24)
    )
    assert {len(members) for members in facts["joined_classes"].values()} == {6}
    assert np.shape(facts["layers"]["3"]["relatedness"]) == (4, 4)


def test_few_classes_stay_apart(net, groups, data):
    assert STLPIB(**FEW, super_classes=2).fit(net(), groups, data).facts["joined_classes"] == {}


# ---- errors


def test_says_that_there_are_too_few_images_per_class(net, groups, data):
    with pytest.raises(SchemeError, match="images is 5, expected at least 6: 2 of each of 3 classes"):
        STLPIB(images=5).fit(net(), groups, data)


def test_says_that_the_split_has_too_few(net, groups, data):
    with pytest.raises(DataError, match=r"of data.calib is .* images, expected at least 66"):
        STLPIB(images=200).fit(net(), groups, data)


def test_refuses_a_constant_layer(net, groups, data):
    model = net()
    nn.init.zeros_(model[6].weight)
    with pytest.raises(SchemeError, match="what 10 returns is the same for every calibration image"):
        SGLPIB(**FEW).fit(model, groups, data)


def test_refuses_maps_that_are_not_finite(net, groups, data):
    model = net()
    with torch.no_grad():
        model[3].weight[0] = float("nan")
    with pytest.raises(SchemeError, match="what 3 returns is not finite"):
        SGLPIB(**FEW).fit(model, groups, data)


def test_refuses_units_that_are_all_constant(data):
    """A layer may well differ between images by what cannot be removed."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)
            nn.init.zeros_(self.a.weight)

        def forward(self, x):
            return self.b(self.a(x)).mean((2, 3))

    found = [
        replace(q, gram=0 * q.gram, target=0 * q.target)
        for q in quadratics(make_net(), columns_of(make_net(), make_groups()), calibration_of(data, 4))
    ]
    scheme = STLPIB(**FEW)
    with pytest.raises(
        SchemeError, match="every unit is the same for every calibration image, expected units"
    ):
        class_lasso.enter(found, scheme.pose, scheme.penalty, 4, 0.1)


def test_says_so_when_a_solution_is_far_from_solved(net, groups, data, monkeypatch):
    """A little short stands in the facts; far short is an error."""
    solved = class_lasso.path
    for factor, far in ((1e5, True), (30.0, False)):

        def short(*args, factor=factor, **kwargs):
            found = solved(*args, **kwargs)
            return replace(found, gap=torch.full_like(found.gap, 1e-7) * factor)

        monkeypatch.setattr(class_lasso, "path", short)
        if far:
            with pytest.raises(SchemeError, match=r"duality gap of .* is 1.0e-02, expected at most 1e-06"):
                STLPIB(**FEW).fit(net(), groups, data)
        else:
            facts = STLPIB(**FEW).fit(net(), groups, data).facts
            assert set(facts["stopped_short"]) == {"3", "6", "10"}
            assert facts["certificate"] == pytest.approx(3e-6)


# ---- budgets


@pytest.mark.parametrize(
    "budget",
    [
        {"max_macs_ratio": 0.5},
        {"max_params_ratio": 0.5},
        pytest.param({"max_size_bytes": 4_000}, marks=pytest.mark.slow),
    ],
    ids=["macs", "params", "size"],
)
def test_budgets_are_met(net, data, budget):
    model = net().eval()
    groups = ep.find_groups(model, data.example)
    scores = STLPIB(**FEW).fit(model, groups, data)
    plan = ep.make_plan(model, groups, scores, data.example, **budget)
    small = ep.slim(model, plan)
    assert ep.count_params(small) < ep.count_params(model)
    for key, limit in budget.items():
        if key.endswith("_ratio"):
            kind = key.split("_")[1]
            assert plan.facts[f"slim_{kind}"] <= limit * plan.facts[f"dense_{kind}"]


@pytest.mark.parametrize("scheme", BOTH)
def test_a_layers_loss_counts_by_what_hangs_on_its_output(net, groups, data, scheme):
    """Weights of the losses are weights of the lambdas: entries of single layers are multiplied by them."""
    model = net().eval()
    options = {**FEW, "path_ratio": 1e-4, "lambdas": 40}
    plain = scheme(**options).fit(model, groups, data)
    weighed = scheme(**{**options, "weigh": "logits"}).fit(model, groups, data)
    images = class_lasso.class_images(model, data, 12, 10, 0)[0].images
    weights = stakes(model, images, ("3", "6", "10"))
    most = max(weights.values())
    for group, reader in (("0", "3"), ("3", "6"), ("6", "10")):
        high = plain[group] > 0.05 * plain[group].max()  # entries of both paths, not what is left below them
        ratio = weighed[group][high] / plain[group][high]
        torch.testing.assert_close(ratio, torch.full_like(ratio, weights[reader] / most), rtol=0.12, atol=0)
    assert max(weights.values()) > 1.3 * min(weights.values())  # else it would show nothing


def test_stakes_are_what_the_logits_change_by_where_they_are_linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Flatten(), nn.Linear(16, 2)).eval()
    images = torch.randn(400, 4, 2, 2)  # channels and places that vary on their own
    found = stakes(model, images, ("0", "2"))
    with torch.no_grad():
        maps = model[0](images)
        logits = model(images)
        without = model[2]((maps.mean((0, 2, 3), keepdim=True)).expand_as(maps).flatten(1))
    change = float((logits - without).square().sum(1).mean())
    assert found["0"] == pytest.approx(change, rel=0.15)
    assert found["2"] == pytest.approx(float(logits.var(0, correction=0).sum()), rel=0.15)


def test_a_network_whose_output_hangs_on_nothing_can_not_be_weighed(net, data):
    model = net().eval()
    with torch.no_grad():
        model[10].weight.zero_()
    with pytest.raises(SchemeError, match="is 0, expected a network whose output hangs on its layers"):
        class_lasso.GramLasso.weighed(
            SGLPIB(),
            model,
            calibration_of(data, 2),
            (Fake("3"), Fake("6")),  # type: ignore[arg-type]
            ("3", "6"),
        )


class Fake:
    def __init__(self, layer: str):
        self.columns = self
        self.layer = layer
