"""What makes a measurement doubtful, in words, each with what to do about it. Device side: no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from edgeprune.target import Runtime

BUSY_SHARE = 0.5  # load average per core before the first run
DRIFT = 0.05  # first third of the processes against the last
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
    return notes


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
