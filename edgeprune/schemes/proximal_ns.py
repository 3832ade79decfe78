"""Proximal network slimming: sparse training that ends with exact zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.errors import TrainingError
from edgeprune.schemes.options import check_options, option
from edgeprune.schemes.scores import Scores, parameters_by_key, scaled_by_norms, score_by_norms
from edgeprune.shares import Shares
from edgeprune.training import Checkpoints, Progress, Recipe, evaluate, train


@dataclass(frozen=True)
class ProximalNS:
    """Train a network towards batch norm weights that are exactly 0, and score units by what is left.

    Minimises ``L(W, gamma) + lambda ||xi||_1 + beta/2 ||gamma - xi||^2``. After each optimizer step, with
    alpha = 1 / learning rate, for all norms at once::

        gamma <- (alpha gamma + beta xi) / (alpha + beta)
        xi    <- S((alpha xi + beta gamma) / (alpha + beta), lambda / (alpha + beta))

    ==========  =========================================================  ==============
    symbol      meaning                                                    shape
    ==========  =========================================================  ==============
    gamma       batch norm weight, after the optimizer's step on L         (C,) per norm
    xi          its sparse twin                                            (C,) per norm
    lambda      ``l1``, weight of ||xi||_1                                 scalar
    beta        ``beta``, weight of ||gamma - xi||^2 / 2                   scalar
    alpha       1 / learning rate of the step                              scalar
    S(v, t)     soft threshold, sign(v) max(|v| - t, 0), exactly 0 inside  as v
    ==========  =========================================================  ==============

    At a minimum |gamma| <= lambda / beta where xi = 0, so `fit` ends by setting gamma to 0 there: from that
    network on, slimming loses nothing. `Scores.facts` has the validation accuracy before and after.

    A unit's score is the largest |xi| among the norm weights that must be 0 for it to be a constant at each
    consumer. Groups in which some unit reaches a consumer without a norm are left out.

    Source:
        Bui, Xue, Park, Qi, Xin 2023, "A Proximal Algorithm for Network Slimming", arXiv 2307.00684,
        algorithm 1; code kbui1993/Official-Proximal-Network-Slimming at 2e58df8, main.py,
        ``update_scaling_factor``. Defaults are those for VGG-19 on CIFAR-10; the authors use l1 0.004,
        beta 100 for DenseNet-40 and l1 0.002, beta 0.25 for ResNet-164.

    Differs:
        - The structure is {xi = 0}, exact without a threshold. The authors cut the channels whose |gamma|
          equals the network's smallest, which is 0 only by underflow: ``criterion="gamma"``.
        - The norm's bias stays: a channel with gamma = 0 is the constant that its bias makes it (the authors
          set it to 0, which changes the network).
        - xi is part of the checkpoint (theirs starts anew on resume), and may start at gamma of a trained
          network.
        - The last epoch is kept. They keep the epoch of the best test accuracy; sparsity grows with the
          epochs, so even on a validation split the best epoch tends to be one with few zeros.
        - The objective shown is the one that is minimised, with xi; theirs has lambda ||gamma||_1.

    Example:
        >>> scheme = ProximalNS(l1=0.0045, beta=100.0, epochs=160)
        >>> scores = scheme.fit(model, groups, data)  # doctest: +SKIP
        >>> scores.facts["sparsity"]  # doctest: +SKIP
        0.71
    """

    l1: float = option(0.0045, "lambda: weight of the L1 norm of xi", at_least=0)
    beta: float = option(100.0, "beta: weight of the distance of gamma to xi", above=0)
    epochs: int = option(160, "epochs of sparse training", at_least=0)
    lr: float = option(0.1, "learning rate at the start", above=0)
    momentum: float = option(0.9, "of SGD", at_least=0)
    weight_decay: float = option(1e-4, "of SGD, on every parameter", at_least=0)
    schedule: Literal["step", "cosine", "one-cycle"] = option(
        "step", "of the learning rate: x 0.1 at 50 % and 75 %, cosine or one-cycle"
    )
    start: Literal["pretrained", "scratch"] = option(
        "pretrained", "xi starts at gamma as given; or gamma is set to 0.5, its bias to 0, xi near 0.5"
    )
    criterion: Literal["xi", "gamma"] = option("xi", "a channel is out where xi is 0, or |gamma| is smallest")
    debias_epochs: int = option(0, "epochs of training afterwards, with the zeros kept", at_least=0)
    debias_lr: float = option(0.01, "learning rate of these at their start, then cosine", above=0)
    seed: int = option(0, "of what is drawn", at_least=0)

    name: ClassVar[str] = "proximal-ns"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self)

    def fit(
        self,
        model: nn.Module,
        groups: tuple[ChannelGroup, ...],
        data: Data,
        *,
        checkpoint: Path | Checkpoints | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        recipe: Recipe | None = None,
    ) -> Scores:
        """Train ``model`` in place and score its groups.

        Args:
            model: Network with batch norms; with ``start="scratch"`` an untrained one.
            groups: Its channel groups.
            data: Trained on ``data.train``; accuracies are those on ``data.val``.
            checkpoint: See `edgeprune.training.train`; debiasing has one of its own beside it.
            on_progress: Told how it goes, with the objective, the share of xi at 0 and, as an estimate, the
                MACs that would be left without these channels.
            recipe: How to train but for what the scheme's own options say (epochs, learning rate, momentum,
                weight decay, schedule); None: the defaults of `Recipe`.

        Raises:
            TrainingError: No unit could be removed by norm weights, or training failed.
        """
        gammas = batch_norm_weights(model)
        scored = scaled_by_norms(groups)
        lacks = "a batch norm weight" if not gammas else "" if scored else "a channel that a norm can close"
        if lacks:
            raise TrainingError(
                "could not train with proximal-ns",
                where="the network",
                value=f"without {lacks}",
                expected="batch norms between a convolution and its consumers",
                hint="Score it with the scheme magnitude instead.",
            )
        if self.start == "scratch":
            _reset_norms(model)
        xi = _first_xi(gammas, self.start, self.seed)
        proximal = ProximalStep(gammas, xi, l1=self.l1, beta=self.beta)
        files = Checkpoints(checkpoint) if isinstance(checkpoint, Path) else checkpoint
        how = (recipe or Recipe()).changed(
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
        )
        shares = Shares(model, data.example)
        history = train(
            model,
            data,
            recipe=how,
            seed=self.seed,
            select="last",
            after_step=proximal.step,
            penalty=proximal.penalty,
            sparsity=proximal.sparsity,
            macs_ratio=lambda: macs_without_zeros(shares, scored, _twins(model, gammas, proximal.xi)),
            extra_state=proximal,
            checkpoint=files,
            phase=self.name,
            on_progress=on_progress,
        )
        closed = proximal.closed(self.criterion)
        lost = [float((g.detach() * c).abs().max()) for g, c in zip(gammas, closed, strict=True)]
        facts: dict[str, Any] = {
            "options": asdict(self),
            "recipe": how.to_json(),
            "history": history.to_json(),
            "sparsity": sum(int(c.sum()) for c in closed) / sum(c.numel() for c in closed),
            "largest_gamma_closed": max(lost),
            "val_accuracy_before_closing": evaluate(model, data.val),
        }
        with torch.no_grad():
            for gamma, zero in zip(gammas, closed, strict=True):
                gamma.masked_fill_(zero, 0.0)
        facts["val_accuracy_after_closing"] = evaluate(model, data.val)
        if self.debias_epochs:
            later = how.changed(
                epochs=self.debias_epochs, lr=self.debias_lr, schedule="cosine", warmup_epochs=0.0
            )
            beside = files.beside("debias") if files is not None else None
            facts["debias"] = self._debias(model, data, gammas, closed, later, beside, on_progress)
        kept = proximal.xi if self.criterion == "xi" else gammas
        return Scores(score_by_norms(scored, _twins(model, gammas, kept)), facts=facts)

    def _debias(
        self,
        model: nn.Module,
        data: Data,
        gammas: Sequence[Tensor],
        closed: Sequence[Tensor],
        recipe: Recipe,
        checkpoint: Checkpoints | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> dict[str, Any]:
        """Train on with the zeros kept: without the pull of xi, what is left finds its size again."""
        leave = [(~zero).to(gamma.dtype) for gamma, zero in zip(gammas, closed, strict=True)]

        def keep_closed(lr: float) -> None:
            del lr
            with torch.no_grad():
                torch._foreach_mul_(list(gammas), leave)

        history = train(
            model,
            data,
            recipe=recipe,
            seed=self.seed + 1,
            after_step=keep_closed,
            checkpoint=checkpoint,
            phase="debias",
            on_progress=on_progress,
        )
        return history.to_json()


class ProximalStep:
    """The updates of gamma and xi, fused over all norms, and the state xi.

    Args:
        gammas: Norm weights, changed in place.
        xi: Their twins, changed in place.
        l1: lambda.
        beta: beta.
    """

    def __init__(self, gammas: Sequence[Tensor], xi: Sequence[Tensor], *, l1: float, beta: float) -> None:
        self.gammas, self.xi, self.l1, self.beta = list(gammas), list(xi), l1, beta

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update after an optimizer step with learning rate ``lr``.

        With alpha = 1 / lr, both are means that give the other variable the weight beta / (alpha + beta).
        """
        share = lr / (1 + lr * self.beta)  # 1 / (alpha + beta), also right for lr = 0
        weight, threshold = self.beta * share, self.l1 * share
        torch._foreach_lerp_(self.gammas, self.xi, weight)
        torch._foreach_lerp_(self.xi, self.gammas, weight)
        # S(v, t) = v - clip(v, -t, t): inside the threshold v - v is 0 to the bit.
        clipped = torch._foreach_clamp_min(self.xi, -threshold)
        torch._foreach_clamp_max_(clipped, threshold)
        torch._foreach_sub_(self.xi, clipped)

    @torch.no_grad()
    def penalty(self) -> float:
        """``lambda ||xi||_1 + beta/2 ||gamma - xi||^2``."""
        norms = torch.stack(torch._foreach_norm(self.xi, 1))
        gaps = torch.stack(torch._foreach_norm(torch._foreach_sub(self.gammas, self.xi), 2))
        return self.l1 * float(norms.sum()) + self.beta / 2 * float(gaps.square().sum())

    def sparsity(self) -> float:
        """Share of xi at exactly 0."""
        return 1 - sum(int(xi.count_nonzero()) for xi in self.xi) / sum(xi.numel() for xi in self.xi)

    def closed(self, criterion: Literal["xi", "gamma"]) -> list[Tensor]:
        """Per norm (C,) bool: xi is 0, or |gamma| is the smallest of the network (the authors' rule)."""
        if criterion == "xi":
            return [xi == 0 for xi in self.xi]
        sizes = [gamma.detach().abs() for gamma in self.gammas]
        smallest = min(float(size.min()) for size in sizes)
        return [size == smallest for size in sizes]

    def state_dict(self) -> dict[str, Any]:
        """Xi and the two weights."""
        return {"xi": self.xi, "l1": self.l1, "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take xi from ``state``."""
        for mine, saved in zip(self.xi, state["xi"], strict=True):
            mine.copy_(saved)


def macs_without_zeros(
    shares: Shares, groups: tuple[ChannelGroup, ...], strength: Mapping[str, Tensor]
) -> float:
    """MACs that would be left if every unit that scores 0 were cut, to those of the dense network.

    An estimate: at least one unit of each group stays in truth, and carriers of constants cost some.

    Args:
        shares: Of the network.
        groups: Of `scaled_by_norms`.
        strength: Norm weight or its xi, by key.
    """
    gone = []
    for group, scores in zip(groups, score_by_norms(groups, strength).values(), strict=True):
        zero = (scores == 0).tolist()
        members = tuple(
            replace(
                member,
                indices=tuple(unit for unit, out in zip(member.indices, zero, strict=True) if out),
            )
            for member in group.members
        )
        gone.append(replace(group, members=members))
    return 1 - shares.of(gone).macs_share


def _twins(model: nn.Module, gammas: Sequence[Tensor], others: Sequence[Tensor]) -> dict[str, Tensor]:
    """Every parameter by key; in the place of a gamma its twin."""
    twins = {id(gamma): twin for gamma, twin in zip(gammas, others, strict=True)}
    return {key: twins.get(id(value), value) for key, value in parameters_by_key(model).items()}


def batch_norm_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weight of every batch norm that has one, in the network's order, shared ones once."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine]
    return list({id(norm.weight): norm.weight for norm in norms}.values())


def _reset_norms(model: nn.Module) -> None:
    """The authors' start: gamma 0.5, norm bias 0."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.constant_(module.weight, 0.5)
            nn.init.zeros_(module.bias)


def _first_xi(gammas: Sequence[Tensor], start: str, seed: int) -> list[Tensor]:
    """Xi at gamma, or from U(0.47, 0.53)."""
    if start == "pretrained":
        return [gamma.detach().clone() for gamma in gammas]
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty(g.shape).uniform_(0.47, 0.53, generator=generator).to(g) for g in gammas]
