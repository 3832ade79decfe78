"""What is said of a sweep."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from edgeprune.files import write_text
from edgeprune.pipeline.sweeping.choice import SMALLEST, STATES, Measured, Outcome, front_points, misses
from edgeprune.pipeline.sweeping.folder import POINTS
from edgeprune.pipeline.sweeping.points import SweepPlan
from edgeprune.report.markdown import sweep_markdown
from edgeprune.report.sweeps import SweepReport, sweep_html
from edgeprune.units import format_quantity
from edgeprune.verdict import format_measured


def write_pages(path: Path, plan: SweepPlan, outcome: Outcome) -> None:
    """Write ``sweep.html`` and ``sweep.md``."""
    report = report_of(path, plan, outcome)
    write_text(path / "sweep.html", sweep_html(report))
    write_text(path / "sweep.md", sweep_markdown(report))


def report_of(path: Path, plan: SweepPlan, outcome: Outcome) -> SweepReport:
    """Everything that is said."""
    measurement = next((one.measurement for one in outcome.points if one.measurement), None)
    where = measurement.target_name if measurement else plan.settings.target
    ran = [one for one in outcome.points if one.measurement]
    failed = [one for one in outcome.points if one.failure]
    notes = [f"The smallest is the one of fewest {SMALLEST}; the front is for who wants another."]
    if ran and not any(one.verdicts for one in ran):
        notes.append("The target has no budgets: nothing was gated.")
    state = "passed" if outcome.best else STATES[3] if outcome.exit_code == 3 else "failed"
    show = [outcome.best] if outcome.best else [outcome.closest] if outcome.closest else []
    return SweepReport(
        title=f"{plan.settings.model} on {plan.settings.data}: {len(outcome.points)} plans on {where}",
        outcome=sentence(outcome),
        state=state,
        points=front_points(outcome),
        ratio_of=plan.ratio_of,
        failures=tuple((one.point.name, one.failure.text) for one in failed if one.failure),
        misses=tuple((one.point.name, misses(one)) for one in ran if misses(one)),
        notes=tuple(notes),
        commands=(
            command_of(path, plan),
            *(shlex.join(["edgeprune", "gate", str(path / POINTS / one.point.name)]) for one in show),
        ),
    )


def sentence(outcome: Outcome) -> str:
    """Which point is released, or what is nearest to it."""
    failures = sum(one.failure is not None for one in outcome.points)
    also = f" {failures} of {len(outcome.points)} points failed to run." if failures else ""
    if outcome.best:
        measured = outcome.best.measurement
        assert measured is not None
        facts = [format_measured(measured.value("size"), "size")]
        ratio, accuracy = measured.value("latency_ratio"), measured.value("accuracy")
        facts += [f"latency {format_measured(ratio, 'ratio')} of dense"] if ratio is not None else []
        facts += [f"accuracy {format_measured(accuracy, 'fraction')}"] if accuracy is not None else []
        return f"{outcome.best.point.name} is the smallest that passes all budgets: {', '.join(facts)}.{also}"
    if outcome.closest is None:
        return "No point could be run."
    return f"No point passes all budgets. {nearest(outcome.closest)}{also}"


def nearest(one: Measured) -> str:
    """Who came closest, and by how much it missed."""
    worst = (
        "something was not measured"
        if math.isinf(one.missed_by)
        else f"at worst {format_quantity(one.missed_by, 'fraction')} over a limit"
        if one.missed_by
        else "undecided"
    )
    return f"{one.point.name} came closest ({worst}): {'; '.join(misses(one))}."


def command_of(path: Path, plan: SweepPlan) -> str:
    """The command line that makes a sweep."""
    words = shlex.split(plan.settings.command(str(path)))
    options: list[Any] = ["--ratios", ",".join(map(str, plan.ratios))]
    options += ["--ratio-of", plan.ratio_of] if plan.ratio_of != "macs" else []
    options += ["--schemes", ",".join(plan.schemes)]
    for scheme, values in plan.scheme_options.items():
        for key, value in values.items():
            options += ["--scheme-option", f"{scheme}:{key}={value}" if scheme else f"{key}={value}"]
    return shlex.join(["edgeprune", "sweep", *words[2:-2], *options, *words[-2:]])
