"""What a search for a budget weighs: the cost of a candidate, limits on it, and notes of what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a candidate costs.

    Attributes:
        macs: Multiply-adds at batch 1.
        params: Weights and biases.
        kept_score: Sum of the scores of the kept units / of all units, 0 to 1.
    """

    macs: int
    params: int
    kept_score: float = 1.0


@dataclass(frozen=True)
class Limit:
    """A limit on a candidate's cost."""

    name: str
    most: float
    measure: Callable[[Cost], float]

    def met(self, cost: Cost) -> bool:
        """Whether a candidate fits."""
        return self.measure(cost) <= self.most


@dataclass(frozen=True)
class Probe:
    """A candidate that the search has looked at; what was not measured of it is None.

    Attributes:
        threshold: On the scores.
        macs_ratio: Multiply-adds, slim / dense.
        params_ratio: Parameters, slim / dense.
        kept_score: As in ``Cost``.
        size_bytes: Of the exported ONNX file.
        latency_ratio: Latency on the target, slim / dense, with ``low`` and ``high`` of its interval.
    """

    threshold: float
    macs_ratio: float
    params_ratio: float
    kept_score: float
    size_bytes: int | None = None
    latency_ratio: float | None = None
    low: float | None = None
    high: float | None = None


def note_search(
    dense: Cost,
    costs: Mapping[float, Cost],
    sizes: Mapping[float, int],
    trials: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Every candidate that a search has seen, from the smallest threshold on, as JSON values.

    Args:
        dense: Cost of the dense network.
        costs: By threshold.
        sizes: Bytes by threshold, of those that were exported for it.
        trials: What was timed, in order, as in ``latency_budget.Trial.to_json``; of two measurements of a
            network the later counts.
    """
    timed = {
        trial["threshold"]: {key: trial[key] for key in ("latency_ratio", "low", "high")} for trial in trials
    }
    return [
        asdict(
            Probe(
                threshold, cost.macs / max(1, dense.macs), cost.params / max(1, dense.params),
                cost.kept_score, sizes.get(threshold), **timed.get(threshold, {}),
            )
        )
        for threshold, cost in sorted(costs.items())
    ]  # fmt: skip


def round_up(value: float, digits: int = 4) -> str:
    """A number that is at least ``value``, in a few digits: a limit that is quoted must be reachable."""
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value))) if value > 0 else 1.0
    text = f"{math.ceil(value * scale) / scale:.{digits}g}"
    return text if float(text) >= value else repr(value)
