"""What decides a training but for data, network and seed; and the named recipes of the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypedDict, get_args

from edgeprune.errors import UsageError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "one-cycle"]
Precision = Literal["fp32", "bf16"]
Part = Literal["dense", "sparse", "finetune"]

PROBLEM = "could not train"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Recipe:
    """How to train. 0 switches off what can be switched off.

    Attributes:
        epochs: Passes over the training split; 0: nothing is trained.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: Learning rate: the highest of the schedule.
        momentum: Of SGD.
        nesterov: Nesterov momentum, of SGD.
        betas: Of AdamW.
        weight_decay: Of the optimizer.
        decay_norms: On every parameter, as the papers do; False: not on norm weights and biases (all that has
            one axis).
        schedule: ``"cosine"``: to 0, changing each step; ``"step"``: x 0.1 after 50 % and after 75 % of the
            epochs; ``"one-cycle"``: up from lr / 25 and down to lr / 250,000 by cosines, changing each step.
        warmup_epochs: The rate rises linearly over so many epochs (may be a fraction) first; for one-cycle:
            its way up, 0 being 30 % of the epochs.
        label_smoothing: Share of the target that is spread over all classes; not of a teacher's target.
        mixup: alpha of the Beta distribution by which pairs of images are mixed. A teacher sees the mixed
            images, too.
        ema: Decay per step of a running mean of the weights and norm statistics; validation and choice then
            are of that mean. It is shorter at the start: min(ema, (1 + step) / (10 + step)).
        clip: Largest norm of the gradient of all parameters together.
        patience: Stop after so many epochs without a better validation accuracy.
        precision: ``"bf16"``: convolutions and matrix products of the training steps in bfloat16
            (torch.autocast), images and kernels laid out channels last; weights, losses, batch-norm
            statistics and every evaluation stay float32. Faster where the processor has bfloat16.
        compile: Run the training steps through torch.compile; weights and their names stay those of the
            network.
        sync_norms: Of several processes: batch norms use the statistics of all their images; False: each
            those of its own part, and at the end of an epoch the first one's running statistics count.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> Recipe(epochs=5, lr=0.05).changed(schedule="one-cycle").lr
        0.05
    """

    epochs: int = 30
    optimizer: Optimizer = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_norms: bool = True
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    patience: int = 0
    precision: Precision = "fp32"
    compile: bool = False
    sync_norms: bool = True

    def __post_init__(self) -> None:
        below_1 = "from 0 to below 1"
        betas = isinstance(self.betas, tuple | list) and len(self.betas) == 2
        rules: list[tuple[str, Callable[[Any], bool], str]] = [
            ("epochs", lambda n: _whole(n) and n >= 0, "a whole number, 0 or more"),
            ("optimizer", lambda name: name in get_args(Optimizer), "sgd or adamw"),
            ("lr", lambda lr: _number(lr) and lr > 0, "more than 0"),
            ("momentum", lambda m: _number(m) and 0 <= m < 1, below_1),
            ("nesterov", lambda on: not on or self.momentum > 0, "False, or a momentum above 0"),
            ("betas", lambda b: betas and all(_number(x) and 0 <= x < 1 for x in b), f"two, each {below_1}"),
            ("weight_decay", lambda decay: _number(decay) and decay >= 0, "0 or more"),
            ("schedule", lambda name: name in get_args(Schedule), "cosine, step or one-cycle"),
            (
                "warmup_epochs",
                lambda n: _number(n) and (n == 0 or 0 < n < self.epochs or not self.epochs),
                f"0 or more and fewer than the {self.epochs} epochs",
            ),
            ("label_smoothing", lambda share: _number(share) and 0 <= share < 1, below_1),
            ("mixup", lambda alpha: _number(alpha) and alpha >= 0, "0 or more"),
            ("ema", lambda decay: _number(decay) and 0 <= decay < 1, below_1),
            ("clip", lambda norm: _number(norm) and norm >= 0, "0 or more"),
            ("patience", lambda n: _whole(n) and n >= 0, "a whole number, 0 or more"),
            ("precision", lambda name: name in get_args(Precision), "fp32 or bf16"),
        ]
        for name, fine, rule in rules:
            value = getattr(self, name)
            if not fine(value):
                raise UsageError(PROBLEM, where=name, value=value, expected=rule)

    def changed(self, **changes: Any) -> Recipe:
        """With other values; a value of None leaves that of the recipe.

        Raises:
            UsageError: A name is unknown or a value out of range.
        """
        known = [item.name for item in fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(
                    PROBLEM, where="a keyword", value=name, expected=f"one of {', '.join(known)}"
                )
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return {**asdict(self), "betas": list(self.betas)}


class Changes(TypedDict, total=False):
    """The fields of `Recipe`, as keywords of `edgeprune.train`."""

    epochs: int
    optimizer: Optimizer
    lr: float
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    weight_decay: float
    decay_norms: bool
    schedule: Schedule
    warmup_epochs: float
    label_smoothing: float
    mixup: float
    ema: float
    clip: float
    patience: int
    precision: Precision
    compile: bool
    sync_norms: bool


@dataclass(frozen=True)
class Preset:
    """A named set of recipes, one for each training of a run.

    Attributes:
        dense: Of dense training.
        sparse: Of a scheme that trains.
        finetune: Of the slim network.
        batch_size: Images per batch.
        source: Where the numbers are from, and which of them nobody has published.
    """

    dense: Recipe
    sparse: Recipe
    finetune: Recipe
    batch_size: int
    source: str

    def part(self, name: Part) -> Recipe:
        """The recipe of one of its trainings."""
        recipe: Recipe = getattr(self, name)
        return recipe


_PROXIMAL = Recipe(epochs=160, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="step")
_APIB = Recipe(epochs=150, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine")
_QUICK = Recipe(
    epochs=8, lr=0.2, nesterov=True, weight_decay=5e-4, decay_norms=False, schedule="one-cycle",
    label_smoothing=0.05,
)  # fmt: skip

PRESETS: Mapping[str, Preset] = {
    "default": Preset(
        dense=Recipe(epochs=30),
        sparse=Recipe(epochs=30, schedule="step"),
        finetune=Recipe(epochs=10, lr=0.01),
        batch_size=128,
        source="edgeprune's own, for small data sets; nothing is published with it.",
    ),
    "proximal-ns-cifar": Preset(
        dense=_PROXIMAL,
        sparse=_PROXIMAL,
        finetune=_PROXIMAL,
        batch_size=64,
        source=(
            "arXiv 2307.00684 and its code kbui1993/Official-Proximal-Network-Slimming at 2e58df8, main.py: "
            "SGD 0.1, momentum 0.9, weight decay 1e-4 on all parameters, batch 64, 160 epochs, x 0.1 at 50 % "
            "and 75 %; the same call trains dense (without --sparsity-regularization) and fine-tunes "
            "(--refine, which the paper calls optional). The authors choose the epoch on the test set; here "
            "it is chosen on the validation split, or is the last."
        ),
    ),
    "apib-cifar": Preset(
        dense=_APIB,
        sparse=_APIB,
        finetune=_APIB,
        batch_size=256,
        source=(
            "Code of APIB (ICCV 2023), songxmu/APIB at 4255718, train.py, with the call in its README for "
            "VGG-16 on CIFAR-10, which trains the pruned network: SGD 0.1, momentum 0.9, weight decay 1e-4 "
            "on all parameters, batch 256, cosine to 0 over 150 epochs, no warm-up, no mixup, no teacher. "
            "There the rate changes each epoch, here each step. How the dense networks were trained is not "
            "published (checkpoints are linked), nor, where we could look, are the settings of sGLP-IB and "
            "sTLP-IB (arXiv 2502.09125): for these the same values are taken."
        ),
    ),
    "quick": Preset(
        dense=_QUICK,
        sparse=_QUICK.changed(epochs=6, lr=0.1, label_smoothing=0.0),
        finetune=_QUICK.changed(epochs=4, lr=0.05),
        batch_size=128,
        source="edgeprune's own, for a first answer on a few processor cores; nothing is published with it.",
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in PRESETS:
        raise UsageError(
            "could not find the recipe",
            where="its name",
            value=repr(name),
            expected=f"one of {', '.join(PRESETS)}",
        )
    return PRESETS[name]


def as_recipe(recipe: Recipe | str | None) -> Recipe:
    """A recipe as it is, that of a preset's dense training, or the default."""
    if isinstance(recipe, Recipe):
        return recipe
    return find_preset("default" if recipe is None else recipe).dense
