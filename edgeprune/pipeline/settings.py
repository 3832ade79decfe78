"""What a run is made with: one flat record, kept in ``run.json``."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edgeprune.errors import UsageError
from edgeprune.units import show_value


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run produces. ``None`` means: the default that its text states.

    Attributes:
        model: Network, see ``edgeprune.load_model``.
        data: Data set, see ``edgeprune.load_data``.
        num_classes: Outputs; None: as many as the data has classes.
        weights: State dict of the dense network; None: it is trained from scratch.
        batch_size: Images per batch; None: the recipe's.
        image_size: Height and width for ``imagefolder`` data.
        cutout: Side in pixels of a square of each training image that is blanked; 0: none.
        seed: Of splits, order, augmentation, initial weights and schemes.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"`` or ``"cuda"``.
        recipe: How to train, a key of ``edgeprune.training.PRESETS``.
        epochs: For each training that has no number of its own.
        optimizer: Like the ten that follow, in the place of what the recipe says; see
            ``edgeprune.training.Recipe``.
        schedule: Of the learning rate.
        warmup_epochs: Epochs in which it rises.
        weight_decay: Of the optimizer.
        label_smoothing: Share of the target that goes to all classes; 0: off.
        mixup: alpha of the mixing of images; 0: off.
        ema: Decay of the mean of the weights; 0: off.
        clip: Largest norm of the gradient; 0: off.
        patience: Epochs without a better validation accuracy until a training stops; 0: off.
        precision: Of the training steps.
        compile: Run them through torch.compile.
        sync_norms: Of several processes: batch norms see the images of all.
        checkpoint_steps: Write a checkpoint after so many steps of an epoch; 0: once a minute. One is
            written after each epoch in any case.
        keep_checkpoints: How many are kept.
        tensorboard: Write for TensorBoard.
        train_epochs: Of dense training; None: 0 with weights, else ``epochs`` or the recipe's.
        train_lr: Its learning rate; None: the recipe's.
        scheme: Pruning scheme, a key of ``SCHEMES``.
        scheme_options: Its hyper-parameters, by name.
        prune_epochs: Epochs of a scheme that trains; None: ``epochs`` or the recipe's.
        max_macs_ratio: Multiply-adds, slim / dense.
        max_params_ratio: Parameters, slim / dense.
        max_size_bytes: Size of the ONNX file.
        max_latency_ratio: Latency on the target, slim / dense; candidates are measured there.
        channel_multiple: Widths are multiples of this; None: as the target says.
        min_channels: At least this many units of a group stay.
        min_share: At least this share of a group's units stays.
        keep: Groups to keep whole.
        constants: See ``edgeprune.make_plan``.
        channel_select: See ``edgeprune.find_groups``.
        inexact: Offer channels too whose removal changes what the others compute; likewise.
        refit: After slimming, let the weights that are left make up for those that are gone.
        refit_images: Calibration images for that, at most.
        finetune_epochs: None: ``epochs`` or the recipe's.
        finetune_lr: Its learning rate; None: the recipe's.
        distill: Fine-tune towards the dense network's outputs too.
        opset: ONNX opset.
        dynamic_batch: Leave the batch size of the ONNX files open.
        tolerance: Largest relative difference between ONNX and torch.
        variant_tolerance: The same between a file in the target's precision and the float32 one; None: see
            ``edgeprune.variants.TOLERANCES``.
        ort_format: Write the files for the target in onnxruntime's own format too.
        target: Target file, a name or a path.
        processes: Fresh processes of the latency measurement, at most.
        budget_seconds: Of the whole measurement; None: no limit.
        instructions: Count those of an inference too; a budget that needs them is asking as well.
        latency: Time the networks.
        against: File of an earlier release, which budgets against a release need.
    """

    model: str
    data: str = "digits"
    num_classes: int | None = None
    weights: str | None = None
    batch_size: int | None = None
    image_size: int | None = None
    cutout: int = 0
    seed: int = 0
    device: str = "auto"
    recipe: str = "default"
    epochs: int | None = None
    optimizer: str | None = None
    schedule: str | None = None
    warmup_epochs: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    ema: float | None = None
    clip: float | None = None
    patience: int | None = None
    precision: str | None = None
    compile: bool | None = None
    sync_norms: bool | None = None
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    tensorboard: bool = False
    train_epochs: int | None = None
    train_lr: float | None = None
    scheme: str = "proximal-ns"
    scheme_options: dict[str, Any] = field(default_factory=dict)
    prune_epochs: int | None = None
    max_macs_ratio: float | None = None
    max_params_ratio: float | None = None
    max_size_bytes: int | None = None
    max_latency_ratio: float | None = None
    channel_multiple: int | None = None
    min_channels: int = 1
    min_share: float = 0.0
    keep: tuple[str, ...] = ()
    constants: str = "auto"
    channel_select: bool = False
    inexact: bool = False
    refit: bool = True
    refit_images: int = 300
    finetune_epochs: int | None = None
    finetune_lr: float | None = None
    distill: bool = True
    opset: int = 18
    dynamic_batch: bool = False
    tolerance: float = 1e-4
    variant_tolerance: float | None = None
    ort_format: bool = False
    target: str = "local-cpu"
    processes: int = 30
    budget_seconds: float | None = None
    instructions: bool = False
    latency: bool = True
    against: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary."""
        return {**asdict(self), "keep": list(self.keep)}

    @staticmethod
    def from_json(value: Any) -> Settings:
        """Read what ``to_json`` wrote.

        Raises:
            UsageError: It is no table, a key is unknown, the model is missing, or a value is of another kind.
        """
        if not isinstance(value, dict):
            raise UsageError(
                "could not read the run's settings", where="the value", value=show_value(value),
                expected="a table of settings", hint="Use a new folder.",
            )  # fmt: skip
        hints = get_type_hints(Settings)
        unknown = sorted(set(value) - set(hints))
        wrong = [key for key in value if key in hints and not _is_of(value[key], hints[key])]
        if unknown or wrong or "model" not in value:
            raise UsageError(
                "could not read the run's settings",
                where="a key" if unknown else wrong[0] if wrong else "model",
                value=", ".join(unknown) or (show_value(value[wrong[0]]) if wrong else "missing"),
                expected=_kind_text(hints[wrong[0]]) if wrong and not unknown
                else f"the keys {', '.join(sorted(hints))}",
                hint="The run was made by another version: use a new folder.",
            )  # fmt: skip
        return Settings(**{**value, "keep": tuple(value.get("keep", ()))})

    def command(self, out: str) -> str:
        """The command line that makes this run."""
        words = ["edgeprune", "run"]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "scheme_options":
                words += [
                    word for key, text in value.items() for word in ("--scheme-option", f"{key}={text}")
                ]
            elif item.name == "keep":
                words += [word for name in value for word in ("--keep", name)]
            elif item.name == "max_size_bytes":
                words += ["--max-size", f"{value} B"] if value is not None else []
            elif isinstance(value, bool):
                flag = item.name.replace("_", "-")
                words += [] if value == item.default else [f"--{flag}" if value else f"--no-{flag}"]
            elif value is not None and value != item.default:
                words += [f"--{item.name.replace('_', '-')}", str(value)]
        return shlex.join([*words, "--out", out])


def _kind_text(hint: Any) -> str:
    """A field's kind, as the class states it."""
    return (
        hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
    )


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's kind."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = tuple(get_origin(kind) or kind for kind in kinds)
    if isinstance(value, bool):
        return bool in plain
    if tuple in plain:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return isinstance(value, (*plain, int) if float in plain else plain)
