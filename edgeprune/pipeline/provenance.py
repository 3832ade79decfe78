"""Where a run's files come from, as their sidecars and the files themselves tell it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from edgeprune.files import sha256_file
from edgeprune.pipeline.context import Context
from edgeprune.repository import commit_of

RECIPE = ("epochs", "optimizer", "lr", "weight_decay")
"""What a file says of a training; the rest is in run.json."""


def provenance_of(context: Context, role: str) -> dict[str, Any]:
    """The origin of one of a run's networks, without any path.

    Args:
        context: The run, after its last training.
        role: ``"dense"`` or ``"slim"``.

    Returns:
        ``role``, ``source`` (what builds the dense network), ``weights_sha256``, ``seed`` and ``training``;
        if there are any, ``git`` (commit of the working folder), ``code_sha256`` (of the user's file that
        builds the network) and ``initial_weights_sha256``. A slim network's has ``plan_sha256``, ``scheme``,
        ``refit`` (calibration images, or None) and ``finetuning`` too.
    """
    run, settings = context.run, context.run.settings
    given = Path(settings.weights) if settings.weights else None
    optional = {
        "git": commit_of(),
        "code_sha256": code_of(settings.model),
        "initial_weights_sha256": sha256_file(given) if given and given.is_file() else None,
    }
    found: dict[str, Any] = {
        "role": role,
        "source": run.facts("train").get("source"),
        "weights_sha256": sha256_file(run.file(f"{role}.safetensors")),
        "seed": settings.seed,
        "training": _training(context, "train"),
        **{key: value for key, value in optional.items() if value is not None},
    }
    if role == "slim":
        scheme = run.facts("score")
        found["plan_sha256"] = sha256_file(run.file("plan.json"))
        found["scheme"] = {key: scheme.get(key) for key in ("scheme", "options")}
        found["refit"] = settings.refit_images if settings.refit else None
        found["finetuning"] = {**_training(context, "finetune"), "distill": settings.distill}
    return found


def _training(context: Context, stage: str) -> dict[str, Any]:
    """The name of a recipe, and what of it decides most."""
    recipe = context.run.facts(stage).get("recipe", {})
    return {"recipe": context.run.settings.recipe, **{key: recipe[key] for key in RECIPE if key in recipe}}


def code_of(model: str) -> str | None:
    """Hash of the file that a ``package.module:function`` model lives in."""
    module, _, name = model.partition(":")
    if not name or module in ("torchvision", "timm"):
        return None
    spec = importlib.util.find_spec(module)
    return sha256_file(Path(spec.origin)) if spec and spec.origin and Path(spec.origin).is_file() else None
