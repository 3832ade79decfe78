"""Choosing what goes: one global threshold on the scores, found so that the slim network fits its budgets."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeprune.budget_search import Cost, Limit, note_search, round_up
from edgeprune.channel_select import select_shape
from edgeprune.channels import ChannelGroup
from edgeprune.constants import Need, find_constants
from edgeprune.cost import as_inputs, count_macs_meta, count_params, shell_of
from edgeprune.cutting import shared, tensors_of
from edgeprune.errors import PlanError
from edgeprune.latency_budget import Candidate
from edgeprune.onnx_export import export
from edgeprune.plan import Plan, PlannedGroup
from edgeprune.probe import LatencyProbe, OnProgress, check_latency_budget
from edgeprune.surgery import oracle_inputs, slim, slim_structure
from edgeprune.target import Target

PROBLEM = "could not make a plan"
UNREACHED = "could not reach the budget"

Constants = Literal["auto", "fold", "carrier", "off"]

SIZE_PROBES = 8
"""Most exports in the search for a file size."""


@dataclass(frozen=True)
class Options:
    """Widths that a plan may choose; see ``make_plan``."""

    channel_multiple: int = 1
    min_channels: int = 1
    keep: tuple[str, ...] = ()
    constants: Constants = "auto"
    min_share: float = 0.0


def make_plan(
    dense: nn.Module,
    groups: tuple[ChannelGroup, ...],
    scores: Mapping[str, Tensor],
    example: Tensor | tuple[Tensor, ...],
    *,
    max_macs_ratio: float | None = None,
    max_params_ratio: float | None = None,
    max_size_bytes: int | None = None,
    max_latency_ratio: float | None = None,
    target: Target | None = None,
    channel_multiple: int | None = None,
    min_channels: int = 1,
    keep: Iterable[str] = (),
    constants: Constants = "auto",
    min_share: float = 0.0,
    on_progress: OnProgress | None = None,
) -> Plan:
    """Find the smallest threshold on the scores at which the slim network fits every budget.

    Units with a score above the threshold stay. Without a budget the threshold is 0: only units that are
    removable for free go.

    Args:
        dense: Network that was scored; it is not changed.
        groups: Its channel groups.
        scores: As returned by a scheme's ``fit``; a group without scores is kept whole.
        example: Input (N, C, H, W), or a tuple of inputs.
        max_macs_ratio: Multiply-adds, slim / dense.
        max_params_ratio: Parameters, slim / dense.
        max_size_bytes: Size of the exported ONNX file; found by exporting candidates.
        max_latency_ratio: Latency on ``target``, slim / dense, below 1; found by measuring candidates there
            (see ``edgeprune.latency_budget``). The whole interval of a full measurement keeps to it.
        target: Where latency is measured.
        channel_multiple: Widths are rounded up to a multiple of this (at most the dense width). None: the
            target's if one is given, else 1.
        min_channels: At least this many units of a group stay.
        keep: Names of groups to keep whole; ``*`` and ``?`` match as in a shell.
        constants: What to do with constant channels (gamma exactly 0, see ``edgeprune.constants``):
            ``"auto"`` and ``"carrier"`` keep what they contribute exactly, with a carrier channel where a
            padded convolution needs one; with ``"fold"`` no carrier is made, and what would need one is not
            removable for free; ``"off"`` drops the constants, which changes the function.
        min_share: At least this share of a group's units stays, in 0..1.
        on_progress: Called with (measurements done, most measurements, what comes next).

    Raises:
        PlanError: A name, score or option is wrong, or a budget can not be reached (it says what can).
        MeasurementError: Latency can not be measured, or the device is too noisy to tell.
    """
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    if channel_multiple is None:
        channel_multiple = 1 if target is None else target.channel_multiple
    options = Options(channel_multiple, min_channels, keep, constants, min_share)
    for name, limit in (
        ("max_macs_ratio", max_macs_ratio),
        ("max_params_ratio", max_params_ratio),
        ("max_size_bytes", max_size_bytes),
    ):
        number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 < limit < math.inf):
            raise PlanError(PROBLEM, where=name, value=limit, expected="a number above 0")
    check_latency_budget(max_latency_ratio, target)
    chooser = Chooser(dense, groups, scores, example, options)
    limits = []
    if max_macs_ratio is not None:
        macs = max(1, chooser.dense_cost.macs)
        limits.append(Limit("max_macs_ratio", max_macs_ratio, lambda cost: cost.macs / macs))
    if max_params_ratio is not None:
        params = max(1, chooser.dense_cost.params)
        limits.append(Limit("max_params_ratio", max_params_ratio, lambda cost: cost.params / params))
    threshold = chooser.threshold(limits)
    facts: dict[str, Any] = {}
    if max_size_bytes is not None:
        threshold, facts["size_bytes"] = chooser.search_size(limits, max_size_bytes)
    if max_latency_ratio is not None and target is not None:
        threshold, facts = chooser.search_latency(threshold, max_latency_ratio, target, on_progress)
    return chooser.finished(threshold, limits, **facts)


class Chooser:
    """Turns thresholds into plans and knows what they cost."""

    def __init__(
        self,
        dense: nn.Module,
        groups: tuple[ChannelGroup, ...],
        scores: Mapping[str, Tensor],
        example: Tensor | tuple[Tensor, ...],
        options: Options,
    ) -> None:
        self.dense, self.groups, self.example, self.options = dense, groups, example, options
        scores = {name: torch.as_tensor(score) for name, score in scores.items()}
        self._check(scores)
        whole = {group.name for group in groups for name in options.keep if fnmatchcase(group.name, name)}
        self.free = [
            group
            for group in groups
            if group.frozen_because is None and group.name in scores and group.name not in whole
        ]
        self.values = {group.name: scores[group.name].tolist() for group in self.free}
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(dense).items()}
        named = {member.tensor: None for group in self.free for member in group.members}
        self.selects = {key: key.rpartition(".")[0] for key in named if key not in self.shapes}
        for key in self.selects:
            shape = select_shape(dense, key)
            if shape is None:
                rule = "tensors of the network, as find_groups found them"
                raise PlanError(PROBLEM, where="the groups", value=f"with {key}", expected=rule)
            self.shapes[key] = shape
        self.inputs = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in as_inputs(example))
        self.constant: dict[str, dict[int, Need]] = {}
        if options.constants != "off":
            batches = oracle_inputs(dense, Plan((), self.inputs, {}), example)
            self.constant = find_constants(dense, self.free, batches)
        self._forbid_carriers()
        self.ranked = {
            name: sorted(range(len(values)), key=lambda unit: (-values[unit], unit))
            for name, values in self.values.items()
        }
        values = (value for values in self.values.values() for value in values)
        self.thresholds: list[float] = sorted({0.0, *values})
        self.shell = shell_of(dense)
        self.dense_cost = Cost(count_macs_meta(self.shell, example), count_params(dense))
        self._costs: dict[float, Cost] = {}
        self._sizes: dict[float, int] = {}  # bytes of candidates that were exported

    def _check(self, scores: dict[str, Tensor]) -> None:
        options = self.options
        sizes = {group.name: group.size for group in self.groups}
        for name in ("channel_multiple", "min_channels"):
            value = getattr(options, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PlanError(PROBLEM, where=name, value=value, expected="a whole number of at least 1")
        share = options.min_share
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise PlanError(PROBLEM, where="min_share", value=share, expected="a number in 0..1")
        if options.constants not in ("auto", "fold", "carrier", "off"):
            rule = "auto, fold, carrier or off"
            raise PlanError(PROBLEM, where="constants", value=options.constants, expected=rule)
        for pattern in options.keep:
            if not any(fnmatchcase(name, pattern) for name in sizes):
                rule = f"the name of a group: {', '.join(sizes)}"
                raise PlanError(PROBLEM, where="keep", value=pattern, expected=rule)
        for name, score in scores.items():
            if name not in sizes:
                rule = f"groups among {', '.join(sizes)}"
                raise PlanError(PROBLEM, where="scores", value=name, expected=rule)
            sound = score.isfinite().all() and (score >= 0).all()
            if tuple(score.shape) != (sizes[name],) or not bool(sound):
                raise PlanError(
                    PROBLEM,
                    where=f"the scores of {name}",
                    value=f"of shape {tuple(score.shape)}, smallest {score.min() if score.numel() else None}",
                    expected=f"{sizes[name]} finite numbers of at least 0",
                )

    def _forbid_carriers(self) -> None:
        """What needs a carrier, where there is none, counts as any other unit: not removable for free."""
        for name, needs in self.constant.items():
            if self.options.constants != "fold" and any(need.carries for need in needs.values()):
                continue
            for unit in [unit for unit, need in needs.items() if need.carrier]:
                del needs[unit]
                self.values[name][unit] = max(self.values[name][unit], torch.finfo(torch.float32).tiny)

    def _rounded(self, group: ChannelGroup, wanted: int) -> int:
        """Units to keep so that the producer's width is a multiple of what the device likes."""
        width = max(1, len(group.members[0].indices[0]))
        step = self.options.channel_multiple // math.gcd(self.options.channel_multiple, width)
        floor = max(self.options.min_channels, math.ceil(self.options.min_share * group.size))
        return min(group.size, math.ceil(max(wanted, floor) / step) * step)

    def _planned(self, group: ChannelGroup, threshold: float) -> PlannedGroup:
        ranked, values = self.ranked[group.name], self.values[group.name]
        needs = self.constant.get(group.name, {})
        needy = {unit for unit, need in needs.items() if need.carrier}
        able = {unit for unit, need in needs.items() if need.carries}
        wanted = sum(value > threshold for value in values)
        keep = set(ranked[: self._rounded(group, wanted)])
        carrier = None
        if needy - keep:
            # A constant unit that stays anyway can carry the others; else one more has to stay.
            carrier = min(next(units for units in (able & keep, able & needy, able) if units))
            if carrier not in keep:
                others = [unit for unit in ranked if unit != carrier]
                keep = {carrier, *others[: self._rounded(group, wanted + 1) - 1]}
        constant = tuple(sorted(set(needs) - keep))
        if not needy - keep:
            carrier = None  # nothing is left to carry
        return PlannedGroup(
            group.name, group.size, tuple(sorted(keep)), group.members, constant, carrier,
            group.inexact_because,
        )  # fmt: skip

    def plan(self, threshold: float) -> Plan:
        """The plan that keeps the units with scores above ``threshold``."""
        planned = [self._planned(group, threshold) for group in self.free]
        planned = [group for group in planned if len(group.keep) < group.size]
        # A carrier emits another constant than before: what it contributed moves as well.
        moved = [(g.name, unit) for g in planned for unit in (*g.constant, g.carrier) if unit is not None]
        needs = [self.constant[name][unit] for name, unit in moved]
        biases = {layer for need in needs for layer in need.biases}
        members = [member for group in planned for member in group.members]
        shapes = {member.tensor: self.shapes[member.tensor] for member in members}
        means = [member.mean_after for member in members if member.mean_after is not None]
        shapes |= {mean: self.shapes[mean] for mean in means}
        selects = tuple(norm for key, norm in self.selects.items() if key in shapes)
        return Plan(tuple(planned), self.inputs, shapes, tuple(sorted(biases)), selects)

    def cost(self, threshold: float) -> Cost:
        """Cost of the slim network, counted on a copy without storage."""
        if threshold not in self._costs:
            shell, plan = shared(self.shell), self.plan(threshold)
            slim_structure(shell, plan)
            gone = sum(self.values[group.name][unit] for group in plan.groups for unit in group.removed)
            everything = sum(map(sum, self.values.values()))
            kept = 1 - gone / everything if everything else 1.0
            self._costs[threshold] = Cost(count_macs_meta(shell, self.example), count_params(shell), kept)
        return self._costs[threshold]

    def threshold(self, limits: list[Limit]) -> float:
        """The smallest threshold that meets all limits, by bisection.

        Raises:
            PlanError: No threshold does.
        """
        low, high = 0, len(self.thresholds) - 1
        for limit in limits:
            least = self.cost(self.thresholds[high])
            if not limit.met(least):
                raise self._unreached(limit.name, limit.most, round_up(limit.measure(least)))
        while low < high:
            middle = (low + high) // 2
            if all(limit.met(self.cost(self.thresholds[middle])) for limit in limits):
                high = middle
            else:
                low = middle + 1
        return self.thresholds[high]

    def _unreached(self, name: str, asked: float, reachable: str) -> PlanError:
        options = self.options
        reasons = [f"{group.name} ({group.frozen_because})" for group in self.groups if group.frozen_because]
        whole = [g.name for g in self.groups if g.frozen_because is None and g not in self.free]
        hint = f"It has min_channels={options.min_channels}, channel_multiple={options.channel_multiple}"
        hint += f", min_share={options.min_share:g}" if options.min_share else ""
        for text, names in (("frozen", reasons), ("kept whole", whole)):
            hint += f"; {text}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""
        rule = f"at least {reachable}, the smallest that can be reached"
        return PlanError(UNREACHED, where=name, value=asked, expected=rule, hint=f"{hint}.")

    def search_size(self, limits: list[Limit], max_size_bytes: int) -> tuple[float, int]:
        """A small threshold at which the ONNX file fits too; its overhead is learned from real exports.

        Returns:
            The threshold and the file's bytes.

        Raises:
            PlanError: No threshold meets all limits.
        """
        size_of = self._sizes

        def exported(threshold: float) -> int:
            if threshold not in size_of:
                with tempfile.TemporaryDirectory() as folder:
                    network = slim(self.dense, self.plan(threshold))
                    size_of[threshold] = export(network, self.example, Path(folder) / "probe.onnx").size_bytes
            return size_of[threshold]

        best = self.thresholds[-1]
        smallest, least = exported(best), self.cost(best).params
        if smallest > max_size_bytes:
            raise self._unreached("max_size_bytes", max_size_bytes, str(smallest))
        # The file is the weights and a little else: predict, export, correct, until the choice stands.
        bytes_per_param = 4.0
        for _ in range(SIZE_PROBES):
            most = least + (max_size_bytes - smallest) / bytes_per_param
            threshold = self.threshold([*limits, Limit("params", most, lambda cost: cost.params)])
            known = threshold in size_of
            if exported(threshold) <= max_size_bytes:
                best = min(best, threshold)
            more = self.cost(threshold).params - least
            if known or not more:
                break
            bytes_per_param = max(1.0, (exported(threshold) - smallest) / more)
        return best, exported(best)

    def search_latency(
        self, least: float, limit: float, target: Target, on_progress: OnProgress | None
    ) -> tuple[float, dict[str, Any]]:
        """A small threshold, at least ``least``, at which the network is fast enough on a target.

        Returns:
            The threshold, and what was measured.

        Raises:
            PlanError: No threshold reaches it.
            MeasurementError: Nothing can be measured, or the device is too noisy to tell.
        """
        dense = max(1, self.dense_cost.macs)

        def candidate(threshold: float) -> Candidate:
            return Candidate(threshold, self.cost(threshold).macs / dense)

        def at_most(ratio: float) -> Candidate:
            return candidate(self.threshold([Limit("macs", ratio, lambda cost: cost.macs / dense)]))

        ends = candidate(least), candidate(self.thresholds[-1])
        with LatencyProbe(self.dense, self.example, target, self.plan, on_progress) as probe:
            return probe.search(limit, *ends, at_most)

    def finished(self, threshold: float, limits: list[Limit], **facts: Any) -> Plan:
        """The plan of a threshold, with its facts."""
        plan, cost = self.plan(threshold), self.cost(threshold)
        trials = facts.get("latency", {}).get("trials", ())
        if limits or self._sizes or trials:
            facts["search"] = note_search(self.dense_cost, self._costs, self._sizes, trials)
        facts |= {
            "threshold": threshold,
            "dense_macs": self.dense_cost.macs,
            "slim_macs": cost.macs,
            "dense_params": self.dense_cost.params,
            "slim_params": cost.params,
            "budgets": {limit.name: limit.most for limit in limits},
            "options": {**vars(self.options), "keep": list(self.options.keep)},
        }
        return replace(plan, facts=facts)
