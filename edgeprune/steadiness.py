"""How steady a machine is: two copies of one network, timed as a bench does it. Device side: no torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgeprune.metrics import Estimate
from edgeprune.noise import disturbance_notes, machine_notes
from edgeprune.onnx_writer import model, node, value, weight
from edgeprune.runners import Runner
from edgeprune.statistics import ENOUGH_PROCESSES, MINIMAL_CLAIM, ratio_estimate
from edgeprune.target import Runtime

SECONDS = 5.0
SECONDS_PER_PROCESS = 0.15
PROCESSES_OF_BENCH = 30  # that `edgeprune bench` starts at most unless told otherwise
SPREAD = 0.10  # of the median time from process to process: a plain time would be no more exact
OFF = 0.03  # two copies of one network should not differ by more
_LEAST = 3

Pair = tuple[float, float]


@dataclass(frozen=True)
class Steadiness:
    """What a bench on this machine would be worth.

    Attributes:
        processes: Fresh processes that were timed.
        seconds: That it took.
        ratio: Latency of a network over that of its copy: the truth is 1.
        spread: Of the median latency from process to process: largest less smallest, over the median.
        wanted: Fresh processes that a bench would take until the interval of a ratio is as narrow as is ever
            claimed, 3 % to either side.
        steal_share: Of the processor's time, what the hypervisor gave to others; None where nothing tells.
        others_cpus: Processors that other work kept busy, on average; None where nothing tells.
        why_noisy: What is wrong, each with what to do; empty for a quiet machine.
    """

    processes: int
    seconds: float
    ratio: Estimate
    spread: float
    wanted: int
    steal_share: float | None
    others_cpus: float | None
    why_noisy: tuple[str, ...]

    @property
    def quiet(self) -> bool:
        """Whether a bench can be trusted as it comes."""
        return not self.why_noisy


def measure_steadiness(
    runner: Runner, environment: Mapping[str, Any], seconds: float = SECONDS
) -> Steadiness:
    """Time two copies of a small network against each other in fresh processes, for about so many seconds.

    Args:
        runner: Runs jobs of the worker on the machine in question.
        environment: The worker's answer to ``environment``.
        seconds: For all processes; three are timed in any case.

    Raises:
        MeasurementError: onnxruntime does not run there.
    """
    started = time.monotonic()
    pairs: list[list[Pair]] = []
    machines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder, name) for name in ("one.onnx", "other.onnx")]
        for copy in copies:
            copy.write_bytes(small_network())
        longest = 0.0
        while len(pairs) < _LEAST or time.monotonic() - started + longest <= seconds:
            begun = time.monotonic()
            answer = runner.run("latency", copies, runs=10_000, min_runs=10, seconds=SECONDS_PER_PROCESS)
            one, other = (found["samples_ns"] for found in answer["models"])
            pairs.append([(a / 1e9, b / 1e9) for a, b in zip(one, other, strict=True)])
            machines.append(answer["machine"])
            longest = max(longest, time.monotonic() - begun)
    return judge(pairs, machines, environment, time.monotonic() - started)


def judge(
    pairs_by_process: Sequence[Sequence[Pair]],
    machines: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    seconds: float,
) -> Steadiness:
    """What samples of two copies say of a machine.

    Args:
        pairs_by_process: For each process its pairs of times, in seconds.
        machines: For each process what disturbed it, as the worker's ``latency`` tells.
        environment: The worker's answer to ``environment``, from before.
        seconds: That all this took.
    """
    ratio = ratio_estimate(pairs_by_process)
    times = [median(one for one, _ in pairs) for pairs in pairs_by_process]
    spread = (max(times) - min(times)) / median(times)
    wanted = max(ENOUGH_PROCESSES, ratio.more_runs or 0)
    disturbed = {
        name: _middle([machine.get(name) for machine in machines])
        for name in ("steal_share", "others_cpus", "throttled_share")
    }
    heat = [machine["thermal_events"] for machine in machines if machine.get("thermal_events")]
    facts = {**environment, **disturbed, "thermal_events": sum(heat) or None}
    why = [*machine_notes(facts, Runtime()), *disturbance_notes(facts)]
    if spread > SPREAD:
        why.append(
            f"The same network took {spread:.0%} longer in one process than in another: plain latencies "
            "are no more exact than that. Measure ratios against a baseline, and end other work."
        )
    if ratio.low > 1 + OFF or ratio.high < 1 - OFF:
        why.append(
            f"Two copies of one network differ by a factor of {ratio.value:.3f}: no ratio of this machine "
            "can be trusted. End other work and try again."
        )
    if wanted > PROCESSES_OF_BENCH:
        why.append(
            f"A ratio to {MINIMAL_CLAIM:.0%} would take about {wanted} processes, and bench starts "
            f"{PROCESSES_OF_BENCH}: end other work, or give --processes {wanted}."
        )
    return Steadiness(
        len(pairs_by_process), seconds, ratio, spread, wanted,
        disturbed["steal_share"], disturbed["others_cpus"], tuple(why),
    )  # fmt: skip


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def small_network() -> bytes:
    """Three convolutions of 3x3 on 1x32x32x32: about a millisecond on one core."""
    kernel = np.random.default_rng(0).standard_normal((32, 32, 3, 3), dtype=np.float32) / np.float32(17)
    names = ["x", "a", "b", "y"]
    nodes = [
        node("Conv", [before, f"w{after}"], after, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        for before, after in pairwise(names)
    ]
    weights = [weight(f"w{name}", kernel) for name in names[1:]]
    shape = [1, 32, 32, 32]
    return model(nodes, weights, value("x", shape), value("y", shape))
