"""How the trainings went, epoch by epoch, as drawings of the page and as sentences. Device side: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

STYLE = """
.curves { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin-top: .75rem; }
.curves figure { flex: 1 1 20rem; max-width: 27.5rem; margin: 0; }
.curves figcaption { font-size: .925rem; margin-bottom: .4rem; }
.curves svg { display: block; width: 100%; }
.curves text { font: 12px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.curves rect { fill: var(--panel); }
.curves polyline { fill: none; stroke: var(--ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.curves .sparsity { stroke-dasharray: 5 3; }
"""

_WIDTH, _LEFT, _HIGH, _GAP = 440, 46, 84, 18  # of a drawing, its scale's names, a panel, between panels


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


def curves_html(curves: Sequence[Curves]) -> str:
    """A drawing for each training: loss above, accuracy and zeros below."""
    figures = []
    for one in curves:
        top, bottom = 8, 8 + _HIGH + _GAP
        highest = max(max(one.losses), 1e-9)
        parts = [
            *_panel(top, f"{highest:.3g}", "0", "loss"),
            _line(one.losses, highest, top, "loss"),
            *_panel(bottom, "100 %", "0", ""),
            _line(one.accuracies, 1.0, bottom, "accuracy"),
        ]
        if one.sparsities:
            parts.append(_line(one.sparsities, 1.0, bottom, "sparsity"))
        height = bottom + _HIGH + 20
        parts += [
            f'<text x="{_LEFT}" y="{height - 5}">epoch 1</text>',
            f'<text x="{_WIDTH - 4}" y="{height - 5}" text-anchor="end">{len(one.losses)}</text>',
        ]
        key = "Above: loss. Below: validation accuracy" + (", and dashed the zeros" if one.sparsities else "")
        figures.append(
            f"<figure><figcaption>{escape(one.name)}</figcaption>"
            f'<svg role="img" aria-label="{escape(one.sentence)}" viewBox="0 0 {_WIDTH} {height}">'
            f'{"".join(parts)}</svg><p class="soft">{key}.</p></figure>'
        )
    said = "".join(f"<li>{escape(one.sentence)}</li>" for one in curves)
    return f'<div class="curves">{"".join(figures)}</div><ul>{said}</ul>'


def _panel(top: int, high: str, low: str, name: str) -> list[str]:
    return [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 4}" height="{_HIGH}"/>',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{high}</text>',
        f'<text x="{_LEFT - 6}" y="{top + _HIGH}" text-anchor="end">{low}</text>',
        *(
            [f'<text x="{_LEFT - 6}" y="{top + _HIGH / 2 + 4}" text-anchor="end">{name}</text>']
            if name
            else []
        ),
    ]


def _line(values: Sequence[float], highest: float, top: int, kind: str) -> str:
    """A curve; one epoch is a short line."""
    wide = _WIDTH - _LEFT - 4
    points = [
        (_LEFT + wide * place / max(len(values) - 1, 1), top + _HIGH * (1 - min(value / highest, 1.0)))
        for place, value in enumerate(values)
    ]
    if len(points) == 1:
        points.append((points[0][0] + 6, points[0][1]))
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
