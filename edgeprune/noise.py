"""What makes a measurement doubtful, in words, each with what to do about it. Device side: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from edgeprune.metrics import Estimate
from edgeprune.statistics import MIN_PROCESSES, MINIMAL_CLAIM
from edgeprune.target import Runtime

BUSY_SHARE = 0.5  # load average per core before the first run
DRIFT = 0.05  # first third of the processes against the last
STEAL = 0.02  # of the time that processors wanted to run
THROTTLED = 0.01  # of the time
OUTLIER_FACTOR = 2.0  # times the median of its process
OUTLIER_SHARE = 0.01
MEMORY_SPREAD_BYTES = 10**6
IN_BROWSER = (
    "Measured in a browser: each process is a fresh web worker, with threads and memory of its own, but all "
    "are in one page, so the interval may be too narrow: measure again after closing the browser."
)


def machine_notes(environment: dict[str, Any], runtime: Runtime) -> list[str]:
    """What of the machine makes times doubtful.

    Args:
        environment: The worker's answer, taken before anything ran.
        runtime: How the networks are run.
    """
    notes = [IN_BROWSER] if runtime.runner == "browser" else []
    load, cores, governor = environment["load_average"], environment["cores"], environment["governor"]
    if load is not None and load > BUSY_SHARE * cores:
        notes.append(f"The load average was {load:.1f} on {cores} cores: end other work and measure again.")
    if governor not in (None, "performance"):
        notes.append(f"The CPU governor is '{governor}': set it to 'performance' for steady clocks.")
    if runtime.threads > cores:
        notes.append(
            f"{runtime.threads} threads share {cores} cores: set runtime.threads to {cores} or less."
        )
    quota = environment.get("cpu_quota")
    if quota is not None and quota < runtime.threads:
        notes.append(
            f"A control group allows {quota:g} CPUs, fewer than the threads ({runtime.threads}): "
            "lift the limit of the container or service, or set runtime.threads to fit."
        )
    return notes


def disturbance_notes(environment: dict[str, Any]) -> list[str]:
    """What came between while the networks were timed, from the counters that the workers read."""
    notes = []
    steal, others = environment.get("steal_share"), environment.get("others_cpus")
    throttled, thermal = environment.get("throttled_share"), environment.get("thermal_events")
    if steal is not None and steal > STEAL:
        notes.append(
            f"The hypervisor gave {steal:.1%} of the processor's time to other machines: "
            "measure on a host of its own, or when its neighbours are quiet."
        )
    if others is not None and others > BUSY_SHARE * environment["cores"]:
        notes.append(
            f"Other processes kept {others:.1f} of {environment['cores']} cores busy during the timed runs: "
            "end them and measure again."
        )
    if throttled is not None and throttled > THROTTLED:
        notes.append(
            f"A control group's CPU quota held the timed runs up for {throttled:.1%} of the time: "
            "lift the limit of the container or service."
        )
    if thermal:
        notes.append(
            f"The processor slowed itself down for heat {thermal:g} times during the timed runs: "
            "cool it better, or let it rest, and measure again."
        )
    return notes


def width_notes(
    estimate: Estimate | None, processes: int, stopped: str, budget_seconds: float | None
) -> list[str]:
    """That an interval is wider than it could be, or from too few processes, and what would mend it.

    Args:
        estimate: What decided when it was enough.
        processes: How many were timed.
        stopped: ``"narrow"``, ``"budget"`` or ``"processes"``: what ended it.
        budget_seconds: The limit of time, if there was one.
    """
    few = processes < MIN_PROCESSES
    wanted = None if estimate is None else estimate.more_runs
    if stopped == "narrow" or not (few or wanted):
        return []
    if stopped == "budget":
        why, mend = f"the {budget_seconds:g} s were spent", "allow more time"
    else:
        why, mend = "no more were asked for", "ask for more"
    what = f"Only {processes} processes were timed" if few else f"{processes} processes were timed"
    wide = "" if wanted is None else f", and the interval is wider than {MINIMAL_CLAIM:.0%} to either side"
    # Fewer than that say little of their own spread, and less of how many it takes.
    need = f"at least {MIN_PROCESSES} processes" if few else f"about {wanted} processes would do"
    return [f"{what}, since {why}{wide}: {mend} ({need}) or end other work."]


def latency_notes(name: str, samples_by_process: Sequence[Sequence[float]]) -> list[str]:
    """Drift from process to process, which is how throttling looks, and runs that were disturbed."""
    notes = []
    medians = [median(samples) for samples in samples_by_process]
    third = len(medians) // 3
    drift = median(medians[-third:]) / median(medians[:third]) - 1 if third else 0.0
    if abs(drift) > DRIFT:
        notes.append(
            f"{name}: latency went {'up' if drift > 0 else 'down'} by {abs(drift):.0%} from the first to the "
            "last processes: let the device cool down, end other work, and measure again."
        )
    count = sum(len(samples) for samples in samples_by_process)
    slow = sum(
        sample > OUTLIER_FACTOR * middle
        for middle, samples in zip(medians, samples_by_process, strict=True)
        for sample in samples
    )
    if slow > OUTLIER_SHARE * count:
        notes.append(
            f"{name}: {slow / count:.1%} of the runs took over {OUTLIER_FACTOR:g} times the median: "
            "something else used the processor, and the high percentiles show that; end it and measure again."
        )
    return notes


def memory_notes(name: str, peaks_bytes: Sequence[int]) -> list[str]:
    """Peaks of several processes that should agree."""
    spread = max(peaks_bytes) - min(peaks_bytes) if peaks_bytes else 0
    if spread <= MEMORY_SPREAD_BYTES:
        return []
    return [
        f"{name}: peak memory differs by {spread / 1e6:.1f} MB between processes: "
        "take it as no more exact than that."
    ]


def placement_notes(name: str, provider: str, left_to_cpu: Sequence[dict[str, str]]) -> list[str]:
    """Nodes that the provider did not take, which cost copies to and fro."""
    if not left_to_cpu:
        return []
    kinds = Counter(node["op_type"] for node in left_to_cpu)
    listed = ", ".join(f"{count} {op_type}" for op_type, count in kinds.most_common())
    return [
        f"{name}: {provider} left {len(left_to_cpu)} nodes to the CPU ({listed}): "
        "the measurement names them under placement."
    ]
