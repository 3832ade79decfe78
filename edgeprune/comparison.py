"""What moved between two measurements of a network, beyond noise. Device side: no torch.

Two sessions on one machine differ although nothing was changed: caches, neighbours and clocks of that hour
move every time, and what a session's own processes tell of their spread does not hold it. So

    half width = sqrt(h_now^2 + h_before^2 + 1.96^2 (s_now^2 + s_before^2)), at least log(1 + MINIMAL_CLAIM)

in logs, h being half of each session's own interval over its processes and s the standard deviation between
sessions. Two sessions cannot tell s; ``SESSION_SPREAD`` holds what many sessions have shown
(scripts/bench_compare measures it). Tails are made by what else the machine did, and no constant holds that:
beside busy neighbours p90 spread by 60 % from session to session where the median kept within 1 %. There the
height of the session's own tail over its median adds to s.

If both networks were measured beside the same dense file, their times over the dense network's are compared:
what made the hour slow made the dense network slow too, and cancels. Otherwise, and if onnxruntime is another
(the dense network's own time has moved then), plain times are compared, whose s is several times as large.

Times, memory and instructions of another processor or of another way to run are not compared at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeprune.metrics import METRICS, Estimate
from edgeprune.record import RECORDED, Record
from edgeprune.statistics import CONFIDENCE, MINIMAL_CLAIM

State = Literal["no change", "better", "worse", "cannot tell", "not compared"]

# Metric -> standard deviation between sessions of log(time / dense network's time of the same processes).
SESSION_SPREAD = {
    "latency_p50": 0.008,
    "latency_p90": 0.015,
    "latency_p95": 0.02,
    "latency_p99": 0.03,
    "load_time": 0.03,
    "first_inference": 0.03,
    "cold_start": 0.03,
}
TAILS = ("latency_p90", "latency_p95", "latency_p99")
# The same of a time without anything to compare with, at least.
PLAIN_SPREAD = 0.05
# "no change" rules out a change as large as this; an interval that reaches further cannot tell.
NOTICEABLE = 0.10
# Metric -> factor up to which a figure without an interval has not changed. Provenance alone moves the size
# of a file by some bytes; parity errors are rounding.
EXACT_NOISE = {"size": 1.005, "parity_error": 10.0}
# Metric -> (bytes or instructions that a repeat may be off by, least factor that is a change).
REPEAT_NOISE = {"peak_memory": (100_000, 1 + MINIMAL_CLAIM), "instructions": (0, 1.005)}
# Above that nobody would measure: the machine must be quieter.
MOST_PROCESSES = 200
# So many more images must be right or wrong: fewer may be chance even if none moved the other way (sign test,
# 2^-5 < 5 %).
CHANCE_IMAGES = 6

_Z = 1.959964
_FLOOR = math.log1p(MINIMAL_CLAIM)
# What makes times, memory and instructions incomparable, and what says so.
_MACHINE = {"machine": "machine", "cpu": "processor", "emulator": "emulator"}
_WAY = ("runner", "provider", "provider_options", "threads", "input", "inputs", "dims")
# What is worth a line, although figures are compared.
_WORTH_TELLING = {
    "onnxruntime": "onnxruntime", "cores": "cores", "cpu_quota": "CPU quota", "governor": "clock governor",
    "platform": "system",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One metric, before and now.

    Attributes:
        metric: Its name.
        before: In SI units; None if it was not measured.
        now: The same.
        change: now / before; of accuracies before - now; None if they cannot be compared.
        state: ``"better"`` or ``"worse"`` if the interval leaves "unchanged" out; ``"no change"`` if it holds
            it and nothing as large as ``NOTICEABLE``; else ``"cannot tell"``.
        why: Why it is not compared, or cannot be told; else empty.
    """

    metric: str
    before: float | Estimate | None
    now: float | Estimate | None
    change: float | Estimate | None
    state: State
    why: str = ""


def change(metric: str, now: Record, before: Record) -> float | Estimate | None:
    """How a metric moved.

    Args:
        metric: One of ``RECORDED``.
        now: The later record.
        before: The earlier one.

    Returns:
        now / before, of accuracies before - now (a drop); with an interval if it is uncertain, never narrower
        than ``MINIMAL_CLAIM`` to either side for times. Infinite if something became of nothing. None if they
        cannot be compared: ``why_unknown`` says why.
    """
    if why_unknown(metric, now, before) is not None:
        return None
    if metric == "throughput":
        time = _of_times("latency_p50", now, before)
        return Estimate(1 / time.value, 1 / time.high, 1 / time.low, time.confidence, time.more_runs)
    if metric in SESSION_SPREAD:
        return _of_times(metric, now, before)
    new, old = (_value(side.values[metric]) for side in (now, before))
    if METRICS[metric].quantity == "fraction":
        return old - new
    if metric in REPEAT_NOISE and old > 0 and metric in now.repeats and metric in before.repeats:
        return _of_repeats(metric, now.repeats[metric], before.repeats[metric], new / old)
    return _ratio(new, old)


def why_unknown(metric: str, now: Record, before: Record) -> str | None:
    """Why ``change`` is None, as one sentence; None if it is not."""
    for side, when in ((now, "now"), (before, "before")):
        if metric not in side.values:
            return f"Not measured {when}: {side.unmeasured.get(metric) or 'nobody asked for it.'}"
    fraction = METRICS[metric].quantity == "fraction"
    if fraction and _data_of(now).get("identity") != _data_of(before).get("identity"):
        return "It is the accuracy on other data than before."
    if metric in ("cpu_nodes", "partitions") or _is_of_the_machine(metric):
        return _other_way(now, before) or (
            _other_machine(now, before) if _is_of_the_machine(metric) else None
        )
    return None


def has_common_dense(now: Record, before: Record) -> bool:
    """Whether both were measured beside the same dense file by the same onnxruntime."""
    if now.baseline is None or before.baseline is None:
        return False
    return now.baseline.artifact.sha256 == before.baseline.artifact.sha256 and now.environment.get(
        "onnxruntime"
    ) == before.environment.get("onnxruntime")


def changes(now: Record, before: Record, metrics: Sequence[str] = ()) -> tuple[Change, ...]:
    """What became of each metric.

    Args:
        now: The later record.
        before: The earlier one.
        metrics: Of ``RECORDED``; default: all that one of the two has, but for throughput, which is the
            median latency once more.
    """
    default = [name for name in RECORDED if name != "throughput" and {name} & {*now.values, *before.values}]
    return tuple(_judged(name, now, before) for name in metrics or default)


def differences(now: Record, before: Record) -> tuple[str, ...]:
    """What else is not as it was, a sentence each: machine, versions, target, dense network."""
    found = [_other_machine(now, before), _other_way(now, before)]
    for key, text in _WORTH_TELLING.items():
        old, new = before.environment.get(key), now.environment.get(key)
        if old != new:
            found.append(f"Another {text}: {_shown(old)} before, {_shown(new)} now.")
    old, new = before.runtime.get("precision"), now.runtime.get("precision")
    if old != new:
        found.append(f"Another precision: {old} before, {new} now.")
    if now.target_sha256 != before.target_sha256:
        same = now.target_name == before.target_name
        names = "its file was edited" if same else f"{before.target_name} before, {now.target_name} now"
        found.append(f"Another target: {names}.")
    if has_common_dense(now, before):
        found.append(_hour(now, before))
    elif now.processes and before.processes:
        found.append(
            "Not measured beside the same dense file by the same onnxruntime: plain times are compared, with"
            " wide intervals. To tell small changes measure both files side by side: `edgeprune bench NOW"
            " --baseline BEFORE`."
        )
    return tuple(text for text in found if text)


def _hour(now: Record, before: Record) -> str | None:
    """By how much the machine was slower or faster, if by more than is ever claimed."""
    dense = [side.baseline.values.get("latency_p50") for side in (now, before) if side.baseline]
    if not all(isinstance(time, Estimate) for time in dense) or now.over_dense.keys().isdisjoint(
        SESSION_SPREAD
    ):
        return None
    moved = _value(dense[0]) / _value(dense[1])  # type: ignore[arg-type]
    if abs(math.log(moved)) <= _FLOOR:
        return None
    return f"The dense network took {(moved - 1) * 100:+.1f} %: that is the machine, and not in the changes."


def _judged(metric: str, now: Record, before: Record) -> Change:
    sides = before.values.get(metric), now.values.get(metric)
    moved, why = change(metric, now, before), why_unknown(metric, now, before)
    if moved is None:
        return Change(metric, *sides, None, "not compared", why or "")
    unchanged = 0.0 if METRICS[metric].quantity == "fraction" else 1.0
    low, high = _ends(metric, moved, now)
    if low <= unchanged <= high:
        if isinstance(moved, Estimate) and (high > 1 + NOTICEABLE or low < 1 / (1 + NOTICEABLE)):
            return Change(metric, *sides, moved, "cannot tell", _what_would_tell(moved))
        return Change(metric, *sides, moved, "no change")
    # A drop above 0 is worse, as a larger value of most metrics is.
    is_worse = (low > unchanged) != (metric == "throughput")
    return Change(metric, *sides, moved, "worse" if is_worse else "better")


def _ends(metric: str, moved: float | Estimate, now: Record) -> tuple[float, float]:
    """The interval of a change; of what has none, what may be chance."""
    if isinstance(moved, Estimate):
        return moved.low, moved.high
    if METRICS[metric].quantity == "fraction":
        images = _test_images(metric, now)
        noise = (CHANCE_IMAGES - 0.5) / images if images else 1e-12
        return moved - noise, moved + noise
    factor = EXACT_NOISE.get(metric, 1.0)
    return moved / factor, moved * factor


def _what_would_tell(moved: Estimate) -> str:
    if moved.more_runs and moved.more_runs > MOST_PROCESSES:
        return "The interval is too wide: other work disturbed a measurement; end it and measure again."
    if moved.more_runs:
        return f"The interval is too wide; about {moved.more_runs} processes each would narrow it."
    return "The interval is too wide, and more processes would not narrow it."


def _of_times(metric: str, now: Record, before: Record) -> Estimate:
    """Of a time: over the common dense network's if there is one, else plain."""
    common = has_common_dense(now, before) and all(metric in side.over_dense for side in (now, before))
    new, old = (side.over_dense[metric] if common else side.values[metric] for side in (now, before))
    assert isinstance(new, Estimate)
    assert isinstance(old, Estimate)
    sampled = math.hypot(_half(new), _half(old))
    between = _Z * math.hypot(_spread(metric, now, common), _spread(metric, before, common))
    half = max(math.hypot(sampled, between), _FLOOR)
    value = new.value / old.value
    return Estimate(
        value,
        value * math.exp(-half),
        value * math.exp(half),
        CONFIDENCE,
        _more(sampled, between, now, before),
    )


def _spread(metric: str, record: Record, common: bool) -> float:
    """Standard deviation between sessions like this one, in logs."""
    known = SESSION_SPREAD[metric] if common else max(PLAIN_SPREAD, 2 * SESSION_SPREAD[metric])
    if metric not in TAILS:
        return known
    sides = [side.values for side in (record, record.baseline) if side is not None]
    heights = [
        math.log(_value(values[metric]) / _value(values["latency_p50"]))
        for values in sides
        if metric in values
    ]
    return math.hypot(known, max(heights))


def _more(sampled: float, between: float, now: Record, before: Record) -> int | None:
    """Processes of each session with which its own part of the interval would no longer matter."""
    least = max(_FLOOR, between)
    if math.hypot(sampled, between) <= 1.1 * least:
        return None
    # Down to where it adds a tenth to what no number of processes takes away.
    wanted = math.sqrt((1.1 * least) ** 2 - between**2)
    # Rounded up to tens: it is no more exact than that.
    return 10 * math.ceil(min(now.processes, before.processes) * (sampled / wanted) ** 2 / 10)


def _half(estimate: Estimate) -> float:
    return math.log(estimate.high / estimate.value)


def _of_repeats(metric: str, now: Sequence[float], before: Sequence[float], value: float) -> Estimate:
    """Of a figure that hardly varies: from all repeats of both, and what a repeat may be off by."""
    off, least = REPEAT_NOISE[metric]
    low = max(min(now) - off / 2, 0) / max(max(before) + off / 2, 1)
    high = (max(now) + off / 2) / max(min(before) - off / 2, 1)
    return Estimate(value, min(low, value / least), max(high, value * least), CONFIDENCE)


def _ratio(new: float, old: float) -> float:
    if old == 0:
        return 1.0 if new == 0 else math.inf
    return new / old


def _value(value: float | Estimate) -> float:
    return value.value if isinstance(value, Estimate) else value


def _data_of(record: Record) -> dict[str, Any]:
    """What the sidecar says of the data; empty if nothing."""
    facts = record.artifact.provenance.get("data")
    return facts if isinstance(facts, dict) else {}


def _test_images(metric: str, record: Record) -> float:
    """Images that an accuracy is a share of; 0: nobody knows."""
    images, classes = _data_of(record).get("images"), _data_of(record).get("classes")
    count = images.get("test") if isinstance(images, dict) else None
    # Somebody else's file may tell anything of its data.
    if not isinstance(count, int) or not isinstance(classes, int | None) or min(count, classes or 0) < 0:
        return 0.0
    return float(count / classes if metric.startswith("worst_class") and classes else count)


def _is_of_the_machine(metric: str) -> bool:
    return (
        metric in SESSION_SPREAD
        or metric in REPEAT_NOISE
        or metric in ("throughput", "arena_memory", "device_memory")
    )


def _other_machine(now: Record, before: Record) -> str | None:
    for key, text in _MACHINE.items():
        old, new = before.environment.get(key), now.environment.get(key)
        if old != new:
            return f"Another {text}: {_shown(old)} before, {_shown(new)} now."
    return None


def _other_way(now: Record, before: Record) -> str | None:
    other = [key for key in _WAY if before.runtime.get(key) != now.runtime.get(key)]
    if not other:
        return None
    old, new = (", ".join(_shown(side.runtime.get(key)) for key in other) for side in (before, now))
    return f"Run in another way: {', '.join(other)} {old} before, {new} now."


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
