"""How the trainings of a run are done: its preset, with what the settings say otherwise."""

from __future__ import annotations

from typing import Any

from edgeprune.pipeline.settings import Settings
from edgeprune.training import Checkpoints, Recipe, find_preset
from edgeprune.training.recipe import Part

SINGLE = (
    "optimizer", "schedule", "warmup_epochs", "weight_decay", "label_smoothing", "mixup", "ema", "clip",
    "patience", "precision", "compile", "sync_norms",
)  # fmt: skip
"""Settings that change every training of a run."""
SCHEME_OPTIONS = ("epochs", "lr", "momentum", "weight_decay", "schedule")
"""What a scheme that trains may have as options of its own."""


def recipe_of(settings: Settings, part: Part) -> Recipe:
    """The recipe of one of a run's trainings.

    Raises:
        UsageError: The recipe is unknown or a setting out of range.
    """
    recipe = find_preset(settings.recipe).part(part)
    own_epochs = {
        "dense": settings.train_epochs,
        "sparse": settings.prune_epochs,
        "finetune": settings.finetune_epochs,
    }[part]
    own_lr = {"dense": settings.train_lr, "sparse": None, "finetune": settings.finetune_lr}[part]
    epochs = settings.epochs if own_epochs is None else own_epochs
    if part == "dense" and settings.weights and own_epochs is None:
        epochs = 0
    single = {name: getattr(settings, name) for name in SINGLE}
    return recipe.changed(epochs=epochs, lr=own_lr, **single)


def scheme_options(settings: Settings, known: Any) -> dict[str, Any]:
    """The recipe's values for what a scheme that trains has as options of its own."""
    recipe = recipe_of(settings, "sparse")
    return {name: getattr(recipe, name) for name in SCHEME_OPTIONS if name in known}


def batch_size_of(settings: Settings) -> int:
    """Images per batch."""
    return find_preset(settings.recipe).batch_size if settings.batch_size is None else settings.batch_size


def checkpoints_of(run: Any, name: str) -> Checkpoints:
    """Where a stage of a run writes its checkpoints, and how often."""
    settings: Settings = run.settings
    return Checkpoints(
        run.file(f"{name}.checkpoint"), steps=settings.checkpoint_steps, keep=settings.keep_checkpoints
    )
