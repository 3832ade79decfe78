"""Where the bytes, multiply-adds and milliseconds of a network sit, and what a missed budget would take.

Device side: no torch.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprune.advice import Change, most_cut, shrink
from edgeprune.measurement import Measurement
from edgeprune.metrics import GATED, METRICS, Estimate
from edgeprune.onnx_nodes import Node, bytes_by_operator
from edgeprune.parts import Basis, Part, make_parts, share, total
from edgeprune.units import Quantity
from edgeprune.verdict import Verdict

_BASES: dict[str, Basis] = {
    "size": "size_bytes", "params": "size_bytes", "macs": "macs",
    "throughput": "time_s", "instructions": "time_s",
    "peak_memory": "memory_bytes", "arena_memory": "memory_bytes", "device_memory": "memory_bytes",
}  # fmt: skip
"""Metric -> what it goes with; latency's percentiles go with time."""
UNATTRIBUTED = 0.1  # of the time, above which it is said
ASYNCHRONOUS = (
    "CUDAExecutionProvider", "TensorrtExecutionProvider", "ROCMExecutionProvider",
    "MIGraphXExecutionProvider", "DmlExecutionProvider", "WebGpuExecutionProvider",
)  # fmt: skip
_OPTIONS = {"macs": "--max-macs-ratio", "params": "--max-params-ratio", "latency": "--max-latency-ratio"}


@dataclass(frozen=True)
class Known:
    """What is known of how a network was pruned: from a run folder, or nothing.

    Attributes:
        groups: Facts of ``edgeprune.group_facts``.
        scores: Of the units that the slim network has, by group.
        score_totals: Of all units of the dense network, by group.
        step: Widths are multiples of this.
        folder: The run folder as a command would name it; "" for a file alone.
        why_not: Why there are no groups, as a sentence; "" if there are.
    """

    groups: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    score_totals: Mapping[str, float] = field(default_factory=dict)
    step: int = 1
    folder: str = ""
    why_not: str = ""


@dataclass(frozen=True)
class OperatorRow:
    """All nodes of one operator; times are of kernels, which may fuse nodes of others."""

    op_type: str
    nodes: int
    size_bytes: int
    macs: int
    kernels: int
    time_s: float


@dataclass(frozen=True)
class GroupRow:
    """One channel group, or, where these are not known, one layer.

    Attributes:
        name: Of the group or layer.
        units: Kept and dense units; None of a layer.
        frozen_because: Why it can not shrink, or None.
        shares: Of the file's bytes, of the multiply-adds and of the time, or None where nothing tells.
    """

    name: str
    units: tuple[int, int] | None
    frozen_because: str | None
    shares: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Advice:
    """What a missed budget would take.

    Attributes:
        key: Of the budget.
        quantity: Unit of the figures.
        needed: What is to be saved, or None where that is not the question.
        of: What there is now.
        changes: Groups that would shrink.
        saves: What the changes save together, by the estimate.
        lines: What else there is to say, a sentence each.
    """

    key: str
    quantity: Quantity
    needed: float | None = None
    of: float | None = None
    changes: tuple[Change, ...] = ()
    saves: float = 0.0
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Where it sits, and what each missed budget would take.

    Attributes:
        file: Name of the ONNX file.
        size_bytes: Of the file.
        macs: Multiply-adds of one inference, or None.
        time_s: Of all kernels of an inference in the profile, or None.
        operators: Those with the largest share of bytes, multiply-adds or time first.
        groups: By channel group if these are known, else by layer; largest first.
        by_layer: ``groups`` are layers.
        missed: For each budget that did not pass.
        notes: What is not known, and why.
    """

    file: str
    size_bytes: int
    macs: int | None
    time_s: float | None
    operators: tuple[OperatorRow, ...]
    groups: tuple[GroupRow, ...]
    by_layer: bool
    missed: tuple[Advice, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON value, numbers in SI units."""
        return asdict(self)


def explain(
    measurement: Measurement,
    verdicts: Sequence[Verdict],
    nodes: tuple[Node, ...],
    profile: Mapping[str, Any] | str,
    known: Known,
) -> Explanation:
    """Say where it sits and what would have to shrink.

    Args:
        measurement: Of the slim file.
        verdicts: On it.
        nodes: Of the file.
        profile: The worker's answer, or why there is none, as a sentence.
        known: What a run folder tells.
    """
    artifact = measurement.artifact
    kernels = [] if isinstance(profile, str) else profile["kernels"]
    macs_by_node = artifact.provenance.get("macs_by_node") or {}
    parts = make_parts(nodes, macs_by_node, kernels, known.groups)
    notes = [f"No times: {profile}"] if isinstance(profile, str) else []
    if not macs_by_node:
        notes.append("No multiply-adds by node: no sidecar of `edgeprune export` tells them.")
    notes += _notes_on_time(parts, measurement.runtime.get("provider", ""))
    if known.why_not:
        notes.append(known.why_not)
    rows = _group_rows(parts, known.groups) if known.groups else _layer_rows(parts)
    return Explanation(
        file=artifact.path.name,
        size_bytes=artifact.size_bytes,
        macs=artifact.macs,
        time_s=total(parts, "time_s") or None,
        operators=_operator_rows(nodes, macs_by_node, kernels),
        groups=rows,
        by_layer=not known.groups,
        missed=tuple(_advice(v, measurement, parts, known) for v in verdicts if _is_missed(v)),
        notes=tuple(notes),
    )


def _notes_on_time(parts: Sequence[Part], provider: str) -> list[str]:
    """What makes the times of a profile say less than they seem to."""
    time = total(parts, "time_s")
    if not time:
        return []
    notes = []
    if provider in ASYNCHRONOUS:
        notes.append(
            f"{provider} computes while the profile goes on: these times are those of handing it its work, "
            "and shares of them may mislead."
        )
    unknown = [part for part in parts if not part.layer and part.time_s]
    share_unknown = total(unknown, "time_s") / time
    if share_unknown > UNATTRIBUTED:
        names = ", ".join(part.name for part in sorted(unknown, key=lambda part: -part.time_s)[:3])
        notes.append(
            f"{share_unknown:.0%} of the time is in kernels that belong to no layer of the file ({names}): "
            "changes of layout, or what the provider has fused."
        )
    return notes


def _is_missed(verdict: Verdict) -> bool:
    return verdict.state in ("failed", "cannot tell") and verdict.measured is not None


# --- where it sits ----------------------------------------------------------------------------------------


def _operator_rows(
    nodes: tuple[Node, ...], macs_by_node: Mapping[str, int], kernels: Sequence[Mapping[str, Any]]
) -> tuple[OperatorRow, ...]:
    size, count = bytes_by_operator(nodes), Counter(node.op_type for node in nodes)
    macs: Counter[str] = Counter()
    for node in nodes:
        macs[node.op_type] += macs_by_node.get(node.name, 0)
    times: dict[str, float] = {}
    for kernel in kernels:
        times[kernel["op_type"]] = times.get(kernel["op_type"], 0.0) + kernel["time_s"]
    run = Counter(kernel["op_type"] for kernel in kernels)
    rows = [
        OperatorRow(kind, count[kind], size[kind], macs[kind], run[kind], times.get(kind, 0.0))
        for kind in {**count, **times}
    ]
    time, whole, products = (
        max(sum(column), 1e-12) for column in (times.values(), size.values(), macs.values())
    )
    weight = {row: max(row.time_s / time, row.size_bytes / whole, row.macs / products) for row in rows}
    return tuple(sorted(rows, key=lambda row: (-weight[row], row.op_type)))


def _group_rows(parts: Sequence[Part], groups: Sequence[Mapping[str, Any]]) -> tuple[GroupRow, ...]:
    rows = [
        GroupRow(
            group["name"], (group["kept"], group["size"]), group["frozen_because"],
            (share(parts, "size_bytes", group), group["macs_share"], share(parts, "time_s", group)),
        )
        for group in groups
    ]  # fmt: skip
    return tuple(sorted(rows, key=_weight))


def _layer_rows(parts: Sequence[Part]) -> tuple[GroupRow, ...]:
    bases: tuple[Basis, ...] = ("size_bytes", "macs", "time_s")
    whole = [total(parts, basis) for basis in bases]
    layers: dict[str, list[Part]] = {}
    for part in parts:
        layers.setdefault(part.layer or "(no layer)", []).append(part)
    rows = []
    for name, own in layers.items():
        size, macs, time = (
            total(own, basis) / all_ if all_ else None for basis, all_ in zip(bases, whole, strict=True)
        )
        rows.append(GroupRow(name, None, None, (size, macs, time)))
    return tuple(sorted(rows, key=_weight))


def _weight(row: GroupRow) -> float:
    return -max(value or 0.0 for value in row.shares)


# --- what would have to shrink ----------------------------------------------------------------------------


def _advice(verdict: Verdict, measurement: Measurement, parts: Sequence[Part], known: Known) -> Advice:
    about, key = GATED[verdict.metric], verdict.budget.key
    root = about.basis or about.name.removesuffix("_ratio")
    if "accuracy" in root:
        return Advice(key, about.quantity, lines=_for_accuracy(verdict, measurement, known))
    basis = "time_s" if root.startswith("latency") else _BASES.get(root)
    wrong_way = verdict.budget.is_max == (root == "throughput")
    if basis is None or wrong_way:
        line = f"Nothing is known on where {METRICS.get(root, about).text} comes from."
        return Advice(key, about.quantity, lines=(line,))
    source = "latency_p50" if basis == "time_s" and root != "instructions" else root
    of, quantity = _point(measurement.value(source)), METRICS[source].quantity
    if basis == "time_s" and root == "instructions" and not total(parts, "time_s"):
        basis = "macs"
    share_needed = _share_needed(verdict)
    whole = total(parts, basis)
    if of is None or not whole:
        line = "How it is spread over the network is not known; see the notes."
        return Advice(key, quantity, of=of, lines=(line,))
    # Where parts do not add up to the measured value, their shares of it are what is known.
    scale = of / whole if root not in ("size", "macs") and basis != "memory_bytes" else 1.0
    needed = share_needed * of
    if not known.groups:
        line = "Which channel groups would have to shrink only a run folder tells."
        return Advice(key, quantity, needed, of, lines=(line,))
    found = shrink(parts, basis, needed / scale, known.groups, known.scores, known.step)
    changes = tuple(Change(c.group, c.before, c.after, c.saves * scale) for c in found.changes)
    lines = [] if found.enough else [f"No more can go at widths of {known.step}: {_other_ways(root)}"]
    if found.enough and known.folder:
        lines += _command(root, measurement, share_needed, of - needed, known.folder)
    return Advice(key, quantity, needed, of, changes, found.saves * scale, tuple(lines))


def _other_ways(root: str) -> str:
    if root == "size":
        return "fp16 or int8 would save more, or a smaller network."
    if root.endswith("memory"):
        return "what is left is mostly onnxruntime's own; a smaller input would help."
    return "a smaller network or a smaller input would be needed."


def _share_needed(verdict: Verdict) -> float:
    """Share of the measured value that has to go, so that the interval's bad end meets the limit."""
    budget, measured = verdict.budget, verdict.measured
    point = _point(measured) or 0.0
    bad = point
    if isinstance(measured, Estimate):
        bad = measured.high if budget.is_max else measured.low
        bad = bad if math.isfinite(bad) and bad > 0 else point
    ratio = budget.limit / bad if budget.is_max else bad / budget.limit
    return max(0.0, 1 - ratio)


def _point(value: float | Estimate | None) -> float | None:
    return value.value if isinstance(value, Estimate) else value


def _command(root: str, measurement: Measurement, share_needed: float, left: float, folder: str) -> list[str]:
    """The command that plans again for it, where an option says just that."""
    if root == "size":
        if measurement.runtime.get("precision", "fp32") != "fp32":
            return []
        return [f'Plan again: edgeprune run --out {shlex.quote(folder)} --max-size "{int(left // 1000)} kB"']
    base = "latency" if root.startswith("latency") or root == "throughput" else root
    now = _point(measurement.value(f"{base}_ratio")) if base in _OPTIONS else None
    if now is None:
        return []
    ratio = math.floor(now * (1 - share_needed) * 1000) / 1000
    command = f"edgeprune run --out {shlex.quote(folder)} {_OPTIONS[base]} {ratio:g}"
    return [f"Plan again: {command}"] if ratio > 0 else []


def _for_accuracy(verdict: Verdict, measurement: Measurement, known: Known) -> tuple[str, ...]:
    """The converse: what to give back. Scores say little of accuracy, so nothing is promised."""
    lines = []
    absolute = GATED[verdict.metric].quantity == "fraction"
    dense = measurement.baseline.value(verdict.metric) if measurement.baseline and absolute else None
    if isinstance(dense, float) and dense < verdict.budget.limit:
        lines.append("The dense network misses it too: train that one better first.")
    kept = most_cut(known.groups, known.scores, known.score_totals)[:5]
    facts = {group["name"]: group for group in known.groups}
    for name, part in kept:
        group = facts[name]
        lines.append(f"{name} keeps {group['kept']} of {group['size']} units, {part:.0%} of its score.")
    if kept:
        lines.append("Give these back first: --keep GROUP, or a larger --max-…-ratio for all.")
    lines.append("More epochs of fine-tuning (--finetune-epochs) may win it back as well.")
    return tuple(lines)
