"""The stage that writes the model card: no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.card import model_card
from edgeprune.files import write_text
from edgeprune.measurement import load_measurement
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.settings import Settings


def identity_of_card(context: Context) -> Any:
    """The settings, for the command."""
    return context.run.settings.to_json()


def write_card(context: Context) -> dict[str, Any]:
    """Write model_card.md."""
    run = context.run
    command = command_without_places(run.settings, run.path)
    text = model_card(load_measurement(run.file("measurement.json")), command=command)
    write_text(run.file("model_card.md"), text)
    return {}


def command_without_places(settings: Settings, out: Path) -> str:
    """The command that makes a run, with names instead of this machine's paths."""
    data, weights = settings.data, settings.weights
    kind, _, place = data.partition(":")
    if "/" in place or "\\" in place or Path(place).is_absolute():
        data = f"{kind}:DIR"
    return replace(
        settings,
        data=data,
        weights=weights and Path(weights).name,
        target=Path(settings.target).name if settings.target.endswith(".toml") else settings.target,
    ).command(out.name or "run")
