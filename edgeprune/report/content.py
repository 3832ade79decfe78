"""What a report says, laid out by nobody yet. Device side: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeprune.measurement import Measurement
from edgeprune.metrics import METRICS, Estimate
from edgeprune.placement import functional_only
from edgeprune.report.headline import KeyFigure, headline, key_figures
from edgeprune.report.parts import (
    NO_CLASSES,
    NO_SEARCH,
    NO_WIDTHS,
    ClassAccuracies,
    LayerWidth,
    MemoryPhase,
    Search,
    class_accuracies,
    memory_of,
    search_of,
    widths_of,
)
from edgeprune.statistics import CONFIDENCE
from edgeprune.units import format_quantity
from edgeprune.verdict import Verdict, format_margin, format_measured

if TYPE_CHECKING:
    from edgeprune.report.classes import ClassStructure
    from edgeprune.report.curves import Curves

NONE = "-"

# The rows of dense against slim: metric, and the metric that compares the two.
_ROWS = (
    ("params", "params_ratio"),
    ("macs", "macs_ratio"),
    ("size", "size_ratio"),
    ("accuracy", ""),
    ("accuracy_top5", "accuracy_top5_drop"),
    ("worst_class_accuracy", ""),
    ("latency_p50", "latency_ratio"),
    ("latency_p90", "latency_p90_ratio"),
    ("latency_p95", "latency_p95_ratio"),
    ("latency_p99", "latency_p99_ratio"),
    ("load_time", "load_time_ratio"),
    ("first_inference", "first_inference_ratio"),
    ("cold_start", "cold_start_ratio"),
    ("peak_memory", "peak_memory_ratio"),
    ("arena_memory", "arena_memory_ratio"),
    ("device_memory", "device_memory_ratio"),
    ("instructions", "instructions_ratio"),
    ("parity_error", ""),
    ("cpu_nodes", ""),
    ("partitions", ""),
)
_ALWAYS = ("params", "macs", "size", "accuracy", "latency_p50", "latency_p95", "load_time", "peak_memory")


@dataclass(frozen=True)
class Table:
    """A table of texts; ``header`` names the columns, the first column names the rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        title: What was measured where.
        target: Where.
        outcome: Released or not, in one sentence.
        headline: How much faster and smaller, at what accuracy, in one sentence.
        key_figures: Its figures apart.
        comparison: Dense against slim.
        verdicts: One for each budget of the target, in their order.
        notes: What the reader should know about the quality of the figures.
        method: How the figures were taken.
        command: The command that does it again.
        environment: What they were taken on.
        run: What else the caller wants said, e.g. scheme and data.
        samples_s: Latency of each timed run by network and process, in seconds; empty if nothing was timed.
        memory: Memory by phase.
        class_accuracies: Accuracy by class, if it is known.
        widths: Of each layer; empty if unknown.
        search: What the search for a budget has seen, if there was one.
        missing: By the name of one of these fields, why a run does not have it.
        classes: How the scheme relates the classes, if it does.
        curves: How the trainings went.
        also: Verdicts of further targets, by their names.
    """

    title: str
    target: str
    outcome: str
    headline: str
    key_figures: tuple[KeyFigure, ...]
    comparison: Table
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    method: tuple[str, ...]
    command: str
    environment: Table
    run: Table
    samples_s: dict[str, tuple[tuple[float, ...], ...]]
    memory: tuple[MemoryPhase, ...] = ()
    class_accuracies: ClassAccuracies | None = None
    widths: tuple[LayerWidth, ...] = ()
    search: Search | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    classes: ClassStructure | None = None
    curves: tuple[Curves, ...] = ()
    also: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)


def make_report(
    measurement: Measurement,
    verdicts: Sequence[Verdict],
    *,
    command: str,
    extra: Mapping[str, object] | None = None,
    plan: Mapping[str, Any] | None = None,
    classes: ClassStructure | None = None,
    curves: tuple[Curves, ...] = (),
    also: Mapping[str, Sequence[Verdict]] | None = None,
) -> Report:
    """Put together what a report says.

    Args:
        measurement: Of the slim network; its ``baseline``, if any, is the dense one.
        verdicts: From the gate.
        command: The command that does it again.
        extra: More facts of the run by name, e.g. ``{"scheme": "proximal-ns"}``.
        plan: Facts of a run's plan stage; None for a measurement alone, whose report has no such sections.
        classes: From `class_structure`.
        curves: From `training_curves`.
        also: Verdicts of further targets, by their names.
    """
    dense = measurement.baseline
    networks = {"slim" if dense else "network": measurement}
    if dense:
        networks = {"dense": dense, **networks}
    widths, search, by_class = widths_of(plan or {}), search_of(plan or {}), class_accuracies(measurement)
    missing = {}
    if plan is not None:
        missing = {"widths": NO_WIDTHS} if not widths else {}
        missing |= {"search": NO_SEARCH} if not search else {}
        missing |= {"class_accuracies": NO_CLASSES} if not by_class else {}
    every = [*verdicts, *(verdict for others in (also or {}).values() for verdict in others)]
    notes = [*measurement.notes, *(dense.notes if dense else ()), *_unmeasured(measurement)]
    return Report(
        title=f"{measurement.artifact.path.name} on {measurement.target_name}",
        target=measurement.target_name,
        outcome=_outcome(every),
        headline=headline(measurement),
        key_figures=key_figures(measurement),
        comparison=_comparison(measurement),
        verdicts=tuple(verdicts),
        notes=tuple(dict.fromkeys(notes)),
        method=_method(measurement),
        command=command,
        environment=_facts(measurement.environment),
        run=_facts(extra or {}),
        samples_s={name: one.latency_samples_s for name, one in networks.items() if one.latency_samples_s},
        memory=memory_of(measurement),
        class_accuracies=by_class,
        widths=widths,
        search=search,
        missing=missing,
        classes=classes,
        curves=curves,
        also={name: tuple(others) for name, others in (also or {}).items()},
    )


def verdict_rows(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts as texts."""
    header = ("budget", "measured", "limit", "margin", "verdict")
    return Table(header, tuple(verdict_row(verdict) for verdict in verdicts))


def verdict_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """What, measured, limit, margin, verdict."""
    budget = verdict.budget
    limit = f"{'≤' if budget.is_max else '≥'} {budget.text}"
    margin = NONE if verdict.margin is None else format_margin(verdict.margin, budget, signed=True)
    return (budget.key, verdict.measured_text, limit, margin, verdict.state)


def reasons(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """A sentence for each budget that did not pass: by how much, why, or how many runs would tell."""
    return tuple(f"{v.budget.key}: {v.text}." for v in verdicts if v.state != "passed")


def printable(text: str, keep: str = "") -> str:
    """Text without control characters, which XML forbids and terminals obey: spaces in their place."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def _outcome(verdicts: Sequence[Verdict]) -> str:
    bad = [verdict for verdict in verdicts if verdict.state in ("failed", "unmeasured")]
    unsure = [verdict for verdict in verdicts if verdict.state == "cannot tell"]
    if not verdicts:
        return "Nothing was gated: there are no budgets."
    of = f"of {len(verdicts)} budget{'s' if len(verdicts) > 1 else ''}"
    if bad:
        return f"Not released: {len(bad)} {of} failed or could not be measured."
    if unsure:
        return f"Not released: {len(unsure)} {of} cannot be told yet."
    skipped = sum(verdict.state == "skipped" for verdict in verdicts)
    rest = f", {skipped} optional not measured" if skipped else ""
    return f"Released: {len(verdicts) - skipped} {of} passed{rest}."


def _comparison(measurement: Measurement) -> Table:
    """Rows of what was measured, or ought to have been; a column for dense only if there is a baseline."""
    networks = [network for network in (measurement.baseline, measurement) if network]
    rows: list[tuple[str, ...]] = []
    for name, ratio_name in _ROWS:
        metric = METRICS[name]
        values = [network.value(name) for network in networks]
        if name == "accuracy" and any(value is not None for value in values):
            rows += _accuracies(networks)
        elif name in _ALWAYS or any(value is not None for value in values):
            cells = [format_measured(value, metric.quantity) for value in values]
            rows.append((metric.text, *cells, _against_dense(measurement, ratio_name)))
        if name == "peak_memory":
            rows += _memory_phases(networks)
    if len(networks) == 1:
        return Table(("", "network"), tuple(row[:-1] for row in rows))
    return Table(("", "dense", "slim", "slim / dense"), tuple(rows))


def _against_dense(measurement: Measurement, name: str) -> str:
    """A ratio, or how much accuracy is lost or, with a plus, gained."""
    value = measurement.value(name) if name else None
    if value is None:
        return NONE
    if name.endswith("_drop") and not isinstance(value, Estimate):
        return format_quantity(-value, "drop", signed=True)
    return format_measured(value, METRICS[name].quantity)


def _accuracies(networks: Sequence[Measurement]) -> list[tuple[str, ...]]:
    """A row for each split; the last column is the difference in percentage points."""
    rows = []
    for split in ("val", "test"):
        values = [network.artifact.accuracy.get(split) for network in networks]
        if any(value is not None for value in values):
            first, last = values[0], values[-1]
            known = first is not None and last is not None
            change = format_quantity(last - first, "drop", signed=True) if known else NONE  # type: ignore[operator]
            cells = [format_measured(value, "fraction") for value in values]
            rows.append((f"{split} accuracy", *cells, change))
    return rows


def _memory_phases(networks: Sequence[Measurement]) -> list[tuple[str, ...]]:
    phases = {"load_peak_bytes": "loading", "loaded_bytes": "loaded"}
    phases["run_peak_bytes"] = "running"
    rows = []
    for key, text in phases.items():
        values = [network.memory.get(key) for network in networks]
        if None not in values:
            rows.append((f"memory {text}", *(format_measured(value, "size") for value in values), NONE))
    return rows


def _unmeasured(measurement: Measurement) -> list[str]:
    missing: dict[str | None, list[str]] = {}
    for name in _ALWAYS:
        # What is out of reach a note says once.
        if measurement.value(name) is None and not measurement.is_out_of_reach(name):
            missing.setdefault(measurement.why_unmeasured(name), []).append(METRICS[name].text)
    return [f"Not measured: {', '.join(texts)}. {why}" for why, texts in missing.items()]


def _method(measurement: Measurement) -> tuple[str, ...]:
    runtime, placement, dense = measurement.runtime, measurement.placement, measurement.baseline
    networks = (("dense", dense), ("slim" if dense else "network", measurement))
    runs = sum(map(len, measurement.latency_samples_s))
    kind = "web workers" if runtime.get("runner") == "browser" else "processes"
    processes = f"in {len(measurement.latency_samples_s)} fresh {kind}"
    lines = []
    timeless = functional_only(placement)
    if timeless:
        lines.append(f"Functional only, neither time nor memory: {timeless}.")
    elif not runs:
        pass
    elif dense:
        lines.append(
            f"Latency: {runs} timed inferences of each network {processes}, dense and slim in turns."
        )
        lines.append(
            "Latency, slim / dense: the median over pairs of neighbouring runs, not a ratio of medians."
        )
    else:
        lines.append(f"Latency: {runs} timed inferences {processes}.")
    if runs:
        lines.append(f"[low, high]: {CONFIDENCE * 100:.0f} % interval, from the spread between processes.")
    provider, threads = runtime.get("provider", NONE), runtime.get("threads", NONE)
    precision, runner = runtime.get("precision", NONE), runtime.get("runner", NONE)
    lines.append(f"Run by: {provider}, {precision}, threads: {threads}, runner: {runner}.")
    if any(runtime.get(key) for key in ("input", "inputs", "dims")):
        shapes = [f"{i['name']} of {'x'.join(map(str, i['shape']))}" for i in placement.get("inputs", ())]
        lines.append(f"Inputs, of the sizes asked for: {', '.join(shapes)}.")
    if placement.get("nodes"):
        nodes = ", ".join(f"{name} {count}" for name, count in placement["nodes"].items())
        proof = {
            "assignment": "onnxruntime's record of the assignment",
            "profile": "a profile of an inference",
        }
        source = placement.get("source", NONE)
        lines.append(f"Nodes by provider: {nodes}, from {proof.get(source, source)}.")
    lines += share_of_macs(placement)
    if placement["left_to_cpu"]:
        nodes = ", ".join(
            f"{node.get('name') or '?'} ({node['op_type']})" for node in placement["left_to_cpu"]
        )
        lines.append(f"Nodes left to the CPU: {nodes}.")
    if measurement.memory["method"]:
        lines.append(f"Memory: {measurement.memory['method']}.")
    for part, name in (("arena", "arena_memory"), ("device", "device_memory")):
        if measurement.memory[part]["method"]:
            text = METRICS[name].text
            lines.append(f"{text[0].upper()}{text[1:]}: {measurement.memory[part]['method']}.")
    if measurement.instructions["method"]:
        lines.append(f"Instructions: {measurement.instructions['method']}; the median of processes.")
        lines += [_counts(name, network) for name, network in networks if network]
    if runs:
        lines.append("Cold start: loading and the first inference, the file being in the system's cache.")
    for name, network in networks:
        if network:
            lines.append(f"File, {name}: {network.artifact.path.name}, sha256 {network.artifact.sha256}.")
    lines.append(f"Target: {measurement.target_name}, sha256 {measurement.target_sha256}.")
    return tuple(lines)


def _counts(name: str, network: Measurement) -> str:
    counts = ", ".join(format_quantity(count, "count") for count in network.instructions["repeats"])
    return f"Instructions, {name}, by process: {counts}."


def share_of_macs(placement: Mapping[str, Any]) -> list[str]:
    """One line on who does the arithmetic, or why that is not known."""
    shares = placement.get("macs_share")
    if shares:
        largest_first = sorted(shares.items(), key=lambda item: -item[1])
        return [
            "Multiply-adds by provider: "
            + ", ".join(f"{name} {format_quantity(share, 'fraction')}" for name, share in largest_first)
            + "."
        ]
    why = placement.get("macs_share_why")
    return [f"Multiply-adds by provider: not known. {why}"] if why else []


def _facts(facts: Mapping[str, object]) -> Table:
    return Table(("", ""), tuple(_fact(key, value) for key, value in facts.items()))


def _fact(key: str, value: object) -> tuple[str, str]:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return _words(key.removesuffix("_bytes")), format_quantity(value, "size")
    if isinstance(value, list | tuple):
        return _words(key), ", ".join(map(str, value))
    if isinstance(value, float):
        return _words(key), f"{value:.4g}"
    return _words(key), NONE if value is None else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")
