"""How the trainings went, epoch by epoch, as drawings of the page and as sentences. Device side: no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.report.plotting import WIDTH, Plot, colour, figure, make_plot, stacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curves:
    """One training.

    Attributes:
        name: Which, e.g. ``"dense training"``.
        losses: Mean loss of each epoch.
        accuracies: Validation accuracy after each epoch, 0 to 1.
        sparsities: Share of the scheme's variables at 0 after each epoch; empty without.
    """

    name: str
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    sparsities: tuple[float, ...] = ()

    @property
    def sentence(self) -> str:
        """What the drawing shows."""
        epochs = len(self.losses)
        text = (
            f"{self.name}, {epochs} epoch{'' if epochs == 1 else 's'}: loss from {self.losses[0]:.3g} to "
            f"{self.losses[-1]:.3g}; validation accuracy from {_percent(self.accuracies[0])} to "
            f"{_percent(self.accuracies[-1])}, at best {_percent(max(self.accuracies))}"
        )
        if self.sparsities:
            text += f"; zeros from {_percent(self.sparsities[0])} to {_percent(self.sparsities[-1])}"
        return text


def training_curves(histories: Mapping[str, Mapping[str, Any] | None]) -> tuple[Curves, ...]:
    """The curves of the trainings that had epochs.

    Args:
        histories: By the training's name, what ``edgeprune.training.History.to_json`` gave.
    """
    found = []
    for name, history in histories.items():
        epochs = (history or {}).get("epochs") or ()
        if epochs:
            zeros = [epoch["sparsity"] for epoch in epochs if epoch["sparsity"] is not None]
            found.append(
                Curves(
                    name,
                    tuple(epoch["loss"] for epoch in epochs),
                    tuple(epoch["val_accuracy"] for epoch in epochs),
                    tuple(zeros) if len(zeros) == len(epochs) else (),
                )
            )
    return tuple(found)


def curve_plot(curves: Curves) -> Plot:
    """Loss, validation accuracy and zeros, one below the other."""

    def draw() -> Figure:
        lines: dict[str, tuple[float, ...]] = {"loss": curves.losses}
        lines["validation accuracy, %"] = tuple(share * 100 for share in curves.accuracies)
        if curves.sparsities:
            lines["variables at zero, %"] = tuple(share * 100 for share in curves.sparsities)
        epochs = range(1, len(curves.losses) + 1)
        drawing = figure(WIDTH, 110 * len(lines) + 30)
        panels = stacked(drawing, [1] * len(lines))
        for axes, (name, values) in zip(panels, lines.items(), strict=True):
            marker = "o" if len(values) < 10 else ""
            axes.plot(epochs, values, color=colour("slim"), marker=marker, ms=4, clip_on=False)
            axes.set_title(name, color=colour("soft"))
            axes.locator_params(axis="y", nbins=4)
        if curves.sparsities:
            panels[2].set_ylim(0, max(*curves.sparsities, 0.05) * 105)
        finite = [loss for loss in curves.losses if math.isfinite(loss)]
        panels[0].set_ylim(0, max([*finite, 1e-9]) * 1.05)
        panels[-1].set_xlim(0.5 if len(epochs) == 1 else 1, max(1.5, len(epochs)))
        panels[-1].locator_params(axis="x", integer=True, nbins=6)
        panels[-1].set_xlabel("epoch")
        return drawing

    return make_plot(curves.name, f"{curves.sentence}.", "", draw)


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
