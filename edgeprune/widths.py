"""How the latency of a convolution depends on its width on a device, and which multiple that suggests.

Pruning narrows a group: the layer that makes its channels and the layer that reads them. Measured is just
that, a chain whose outer widths stay while the inner one goes through all widths of a range:

    conv       3x3 convolution, ReLU, 3x3 convolution              c -> width -> c
    depthwise  1x1 convolution, ReLU, depthwise 3x3, ReLU, 1x1     c -> width -> width -> c

The rule for the multiple. A straight line goes through the latencies at the multiples of 32, so that what a
width costs anyway is taken out. The *price* of a multiple m is how far the widths that are multiples of m lie
above that line, as a ratio (geometric mean); each process gives one. From 1 (any width) upwards a larger
multiple takes the place of the one before only if its price is lower by more than ``MINIMAL_CLAIM``, with the
whole interval over processes: wider steps leave a plan less to choose from. If none is, none is suggested.
Device side: no torch, no onnx.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import MeasurementError, UsageError
from edgeprune.metrics import Estimate
from edgeprune.noise import machine_notes
from edgeprune.onnx_writer import model, node, value, weight
from edgeprune.runners import Runner, open_runner
from edgeprune.statistics import MINIMAL_CLAIM, median_estimate
from edgeprune.target import Target
from edgeprune.turns import time_in_turns

KINDS = ("conv", "depthwise")
MULTIPLES = (1, 2, 4, 8, 16, 32)
RULE = (
    "from 1 upwards, a multiple takes the place of the one before if its widths lie lower above the line "
    f"through the multiples of {MULTIPLES[-1]} by more than {MINIMAL_CLAIM:.0%}, with the whole interval"
)

PROBLEM = "could not measure widths"
RUNS = 10  # of each width in each process
SECONDS_PER_PROCESS = 20.0

OnProgress = Callable[[int, int, str], None]
_LOG = logging.getLogger(__name__)  # for what a person must do at a device


@dataclass(frozen=True)
class Curve:
    """Latency of one kind of layer against its width.

    Attributes:
        kind: One of ``KINDS``.
        input_width: Channels that go in and come out.
        size: Height and width of the images.
        widths: Measured widths, ascending.
        latency_s: Median of each process, by width (widths, processes).
        prices: By multiple: latency at its multiples over the straight line.
        multiple: The suggestion; 1 if no multiple is clearly better than any width.
    """

    kind: str
    input_width: int
    size: int
    widths: tuple[int, ...]
    latency_s: tuple[tuple[float, ...], ...]
    prices: dict[int, Estimate]
    multiple: int


@dataclass(frozen=True)
class WidthReport:
    """What widths cost on a target.

    Attributes:
        target_name: Name of the target.
        target_multiple: Its ``channel_multiple``.
        runtime: How the layers were run.
        environment: Versions, processor, load before the first run.
        curves: One per kind.
        multiple: The largest suggestion of all kinds (they divide each other); None: no multiple is clearly
            better.
        notes: What makes the figures doubtful.
    """

    target_name: str
    target_multiple: int
    runtime: dict[str, Any]
    environment: dict[str, Any]
    curves: tuple[Curve, ...]
    multiple: int | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        content = asdict(self)
        return {"channel_multiple": content.pop("multiple"), **content, "rule": RULE}


def measure_widths(
    target: Target,
    *,
    kinds: Sequence[str] = KINDS,
    first: int = 32,
    last: int = 96,
    input_width: int = 32,
    size: int = 28,
    processes: int = 10,
    on_progress: OnProgress | None = None,
) -> WidthReport:
    """Measure what a width costs on a target, and what multiple that suggests.

    All widths are timed in turns inside each of ``processes`` fresh processes.

    Args:
        target: The device.
        kinds: Among ``KINDS``.
        first: Smallest width.
        last: Largest width; between them there are at least two multiples of 32.
        input_width: Channels that go in and come out.
        size: Height and width of the images.
        processes: Fresh processes, at least 2.
        on_progress: Called with (steps done, steps in all, what comes next).

    Raises:
        UsageError: An argument is wrong.
        MeasurementError: The provider, the interpreter or the device is absent, or took no part.
    """
    _check(kinds, first, last, input_width, size, processes)
    if target.runtime.precision != "fp32":
        raise MeasurementError(
            PROBLEM, where="runtime.precision", value=f"'{target.runtime.precision}'", expected="'fp32'"
        )
    # The layers bring their own input shape; that of the target is its network's.
    runtime = replace(target.runtime, input=None, inputs={}, dims={})
    total, done = len(kinds) * (1 + processes), 0

    def step(text: str) -> None:
        nonlocal done
        if on_progress:
            on_progress(done, total, text)
        done += 1

    with open_runner(runtime, say=_LOG.warning) as runner:
        environment = runner.run("environment")
        notes = machine_notes(environment, runtime)
        widths = tuple(range(first, last + 1))
        curves = []
        for kind in kinds:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                paths = []
                for width in widths:
                    paths.append(Path(folder, f"{kind}-{width}.onnx"))
                    paths[-1].write_bytes(layer(kind, width, input_width, size))
                step(f"{kind}: placement")
                notes += _placement_notes(runner, kind, widths, paths)
                samples = time_in_turns(
                    runner, paths, processes=processes, runs=RUNS, seconds=SECONDS_PER_PROCESS,
                    on_step=lambda text, kind=kind: step(f"{kind}: {text}"),  # type: ignore[misc]
                )  # fmt: skip
            medians = np.array([[np.median(taken) for taken in by_process] for by_process in samples])
            curves.append(curve_of(kind, input_width, size, widths, medians))
        notes += runner.notes()
    largest = max(curve.multiple for curve in curves)
    return WidthReport(
        target.name,
        target.channel_multiple,
        asdict(runtime),
        environment,
        tuple(curves),
        largest if largest > 1 else None,
        tuple(notes),
    )


def layer(kind: str, width: int, input_width: int, size: int) -> bytes:
    """An ONNX file of one chain; see the module."""
    random = np.random.default_rng(0)

    def drawn(name: str, *shape: int) -> bytes:
        fan_in = int(np.prod(shape[1:]))  # keeps activations near 1: subnormal numbers would be slow
        return weight(name, random.standard_normal(shape, dtype=np.float32) / np.float32(fan_in**0.5))

    same = {"pads": (1, 1, 1, 1)}
    if kind == "conv":
        nodes = [
            node("Conv", ["x", "make"], "made", **same),
            node("Relu", ["made"], "active"),
            node("Conv", ["active", "read"], "y", **same),
        ]
        weights = [drawn("make", width, input_width, 3, 3), drawn("read", input_width, width, 3, 3)]
    else:
        nodes = [
            node("Conv", ["x", "make"], "made"),
            node("Relu", ["made"], "active"),
            node("Conv", ["active", "each"], "spread", group=width, **same),
            node("Relu", ["spread"], "again"),
            node("Conv", ["again", "read"], "y"),
        ]
        weights = [
            drawn("make", width, input_width, 1, 1),
            drawn("each", width, 1, 3, 3),
            drawn("read", input_width, width, 1, 1),
        ]
    shape = (1, input_width, size, size)
    return model(nodes, weights, value("x", shape), value("y", shape))


def curve_of(
    kind: str, input_width: int, size: int, widths: tuple[int, ...], medians: NDArray[np.float64]
) -> Curve:
    """Prices and suggestion of the module's rule.

    Args:
        kind: One of ``KINDS``.
        input_width: Channels around the inner width.
        size: Height and width of the images.
        widths: Measured widths, ascending.
        medians: Latencies (widths, processes) in seconds.
    """
    at = np.array(widths)
    aligned = at % MULTIPLES[-1] == 0
    above = np.empty_like(medians)
    for process in range(medians.shape[1]):
        column = medians[:, process]
        above[:, process] = np.log(column) - np.log(line_through(at, at[aligned], column[aligned]))
    # Only widths between the ends of the line: beyond them it says nothing.
    inside = (at >= at[aligned][0]) & (at <= at[aligned][-1])
    prices = {m: np.exp(above[inside & (at % m == 0)].mean(axis=0)) for m in MULTIPLES}
    chosen = MULTIPLES[0]
    for larger in MULTIPLES[1:]:
        if median_estimate(prices[chosen] / prices[larger]).low > 1 + MINIMAL_CLAIM:
            chosen = larger
    estimates = {m: median_estimate(found) for m, found in prices.items()}
    latencies = tuple(tuple(float(time) for time in row) for row in medians)
    return Curve(kind, input_width, size, widths, latencies, estimates, chosen)


def line_through(
    at: NDArray[np.int64], known: NDArray[np.int64], latencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The line from each known width to the next, at the widths ``at``."""
    return np.interp(at, known, latencies)


def _placement_notes(runner: Runner, kind: str, widths: Sequence[int], paths: list[Path]) -> list[str]:
    """Prove at both ends of the range and at an odd width that the provider takes the layers.

    Raises:
        MeasurementError: It takes none of a file's nodes.
    """
    notes = []
    odd = next(place for place, width in enumerate(widths) if width % 2)
    for place in sorted({0, odd, len(paths) - 1}):
        left = runner.run("placement", [paths[place]])["left_to_cpu"]
        if left:
            kinds = ", ".join(sorted({one["op_type"] for one in left}))
            notes.append(f"{kind}, width {widths[place]}: the provider left {kinds} to the CPU.")
    return notes


def _check(kinds: Sequence[str], first: int, last: int, input_width: int, size: int, processes: int) -> None:
    if not kinds or not set(kinds) <= set(KINDS):
        expected = f"one or more of {', '.join(KINDS)}"
        raise UsageError(PROBLEM, where="kinds", value=", ".join(kinds) or "empty", expected=expected)
    counts = {
        "first": (first, 1),
        "input_width": (input_width, 1),
        "size": (size, 3),
        "processes": (processes, 2),
    }
    for name, (count, least) in counts.items():
        if count < least:
            raise UsageError(PROBLEM, where=name, value=count, expected=f">= {least}")
    step = MULTIPLES[-1]
    if last // step - -(-first // step) < 1:
        raise UsageError(
            PROBLEM,
            where="the range of widths",
            value=f"{first} to {last}",
            expected=f"one that holds two multiples of {step}",
            hint=f"The line that widths are held against goes through them, e.g. {step} to {3 * step}.",
        )
