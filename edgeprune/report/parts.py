"""What sections of a report say: widths, memory, classes, the search for a budget. Device side: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprune.budget_search import Probe
from edgeprune.measurement import Measurement
from edgeprune.units import format_quantity

NO_WIDTHS = "The plan of this run tells no widths: `edgeprune run` with this version notes them."
NO_SEARCH = "Nothing was searched: without a budget only channels that are removable for free go."
NO_CLASSES = "The sidecars of this run tell no accuracy by class: `edgeprune export` writes it."


@dataclass(frozen=True)
class LayerWidth:
    """Output channels of a convolution or linear layer."""

    name: str
    dense: int
    slim: int


def widths_of(plan: Mapping[str, Any]) -> tuple[LayerWidth, ...]:
    """The widths that the plan stage noted, in the network's order; none of an older run."""
    return tuple(LayerWidth(name, *pair) for name, pair in plan.get("widths", {}).items())


def widths_sentence(widths: Sequence[LayerWidth]) -> str:
    """What the plot of the widths shows."""
    dense, slim = sum(one.dense for one in widths), sum(one.slim for one in widths)
    narrower = [one for one in widths if one.slim < one.dense]
    text = f"{len(narrower)} of {len(widths)} layers are narrower; {slim:,} of {dense:,} channels stay"
    if not narrower:
        return f"{text}."
    least = min(narrower, key=lambda one: one.slim / one.dense)
    return f"{text}. Cut most: {least.name}, {least.slim} of {least.dense}."


@dataclass(frozen=True)
class MemoryPhase:
    """Memory in one phase, in bytes; None where it was not measured of that network."""

    name: str
    dense: float | None
    slim: float


def memory_of(measurement: Measurement) -> tuple[MemoryPhase, ...]:
    """Memory by phase, and of onnxruntime's arena and of the GPU where they were measured."""
    slim = measurement.memory
    dense: Mapping[str, Any] = measurement.baseline.memory if measurement.baseline else {}
    phases = {"load_peak_bytes": "loading, peak", "loaded_bytes": "loaded", "run_peak_bytes": "running, peak"}
    found = [
        MemoryPhase(name, dense.get(key), slim[key])
        for key, name in phases.items()
        if slim.get(key) is not None
    ]
    for part, name in (("arena", "arena, peak"), ("device", "GPU, peak")):
        if slim[part]["peak_bytes"] is not None:
            before = dense[part]["peak_bytes"] if dense else None
            found.append(MemoryPhase(name, before, slim[part]["peak_bytes"]))
    return tuple(found)


def memory_sentence(phases: Sequence[MemoryPhase]) -> str:
    """What the plot of the memory shows."""
    said = [
        f"{one.name} {format_quantity(one.slim, 'size')}"
        + ("" if one.dense is None else f" (dense {format_quantity(one.dense, 'size')})")
        for one in phases
    ]
    return f"Memory: {'; '.join(said)}."


@dataclass(frozen=True)
class ClassAccuracy:
    """Share of a class's images that is classified correctly."""

    name: str
    dense: float | None
    slim: float

    @property
    def change(self) -> float | None:
        """Slim less dense; None without dense."""
        return None if self.dense is None else self.slim - self.dense


@dataclass(frozen=True)
class ClassAccuracies:
    """Accuracy by class on one split, the class that lost most first, else the worst first."""

    split: str
    classes: tuple[ClassAccuracy, ...]

    @property
    def sentence(self) -> str:
        """What the plot shows."""
        first, count = self.classes[0], len(self.classes)
        share = format_quantity(first.slim, "fraction")
        if first.change is None or first.dense is None:
            return f"The worst of {count} classes on the {self.split} split is {first.name} with {share}."
        worse = sum((one.change or 0.0) < 0 for one in self.classes)
        text = f"{worse} of {count} classes are classified worse than by dense on the {self.split} split."
        if not worse:
            return text
        lost, dense = format_quantity(-first.change, "drop"), format_quantity(first.dense, "fraction")
        return f"{text} {first.name} lost most: {lost}, from {dense} to {share}."


def class_accuracies(measurement: Measurement) -> ClassAccuracies | None:
    """Accuracy by class on the test split, else on the validation split; None if nobody tells."""
    slim = measurement.artifact.accuracy_by_class
    dense = measurement.baseline.artifact.accuracy_by_class if measurement.baseline else {}
    split = next((split for split in ("test", "val") if slim.get(split)), None)
    if split is None:
        return None
    before = dense.get(split, {})
    classes = [ClassAccuracy(name, before.get(name), share) for name, share in slim[split].items()]
    classes.sort(key=lambda one: (one.change if one.change is not None else 0.0, one.slim, one.name))
    return ClassAccuracies(split, tuple(classes))


@dataclass(frozen=True)
class Search:
    """What the search for a budget has seen.

    Attributes:
        probes: From the smallest threshold on.
        chosen: Threshold of the plan.
        cost: What it is drawn against: ``"latency_ratio"``, ``"size_bytes"``, ``"params_ratio"`` or
            ``"macs_ratio"``.
        limit: On the cost, if it is known.
    """

    probes: tuple[Probe, ...]
    chosen: float
    cost: str
    limit: float | None

    def costs(self) -> list[tuple[float, Probe]]:
        """Cost and candidate of those whose cost is known."""
        known = [(getattr(probe, self.cost), probe) for probe in self.probes]
        return [(float(cost), probe) for cost, probe in known if cost is not None]

    def front(self) -> list[tuple[float, Probe]]:
        """The candidates that no other beats: none costs less and keeps as much of the scores."""
        found: list[tuple[float, Probe]] = []
        for cost, probe in sorted(self.costs(), key=lambda pair: (pair[0], -pair[1].kept_score)):
            if not found or probe.kept_score > found[-1][1].kept_score:
                found.append((cost, probe))
        return found

    @property
    def sentence(self) -> str:
        """What the plot shows."""
        probe = next(probe for probe in self.probes if probe.threshold == self.chosen)
        text = (
            f"The search looked at {len(self.probes)} candidates and chose the threshold {self.chosen:.4g}, "
            f"which leaves {_percent(probe.macs_ratio)} of the multiply-adds, "
            f"{_percent(probe.params_ratio)} of the parameters and {_percent(probe.kept_score)} of the scores"
        )
        if probe.latency_ratio is not None:
            text += f", at {_percent(probe.latency_ratio)} of the latency"
        return f"{text}."


def search_of(plan: Mapping[str, Any]) -> Search | None:
    """What the plan stage noted of its search; None if there was none."""
    if not plan.get("search"):
        return None
    probes = tuple(Probe(**row) for row in plan["search"])
    budgets, latency = plan.get("budgets", {}), plan.get("latency", {})
    limits = {
        "latency_ratio": latency.get("limit"),
        "size_bytes": None,
        "params_ratio": None if "max_macs_ratio" in budgets else budgets.get("max_params_ratio"),
        "macs_ratio": budgets.get("max_macs_ratio"),
    }
    measured = [cost for cost in ("latency_ratio", "size_bytes") if _known(probes, cost) > 1]
    given = [cost for cost in ("params_ratio", "macs_ratio") if limits[cost] is not None]
    cost = [*measured, *given, "macs_ratio"][0]
    return Search(probes, plan["threshold"], cost, limits[cost])


def _known(probes: Sequence[Probe], cost: str) -> int:
    return sum(getattr(probe, cost) is not None for probe in probes)


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
