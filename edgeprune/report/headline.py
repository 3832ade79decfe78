"""What comes first: one sentence, and its figures apart. Device side: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.measurement import Measurement
from edgeprune.metrics import Estimate
from edgeprune.units import format_quantity
from edgeprune.verdict import format_measured


@dataclass(frozen=True)
class KeyFigure:
    """A figure to be read at a glance.

    Attributes:
        name: What it is.
        value: Large.
        detail: What stands behind it.
    """

    name: str
    value: str
    detail: str


def key_figures(measurement: Measurement) -> tuple[KeyFigure, ...]:
    """Speed, size, work, memory and accuracy: what slim has against dense, or what the one network has."""
    found = []
    ratio, latency = measurement.value("latency_ratio"), measurement.value("latency_p50")
    if isinstance(ratio, Estimate) and measurement.baseline:
        times = [1 / ratio.value, 1 / ratio.high, 1 / ratio.low]
        value, low, high = (_ratio(one) for one in times)
        dense = measurement.baseline.value("latency_p50")
        both = f"{_plain(latency, 'time')} instead of {_plain(dense, 'time')}"
        clear = not ratio.low <= 1 <= ratio.high
        name = "as fast" if clear else "as fast: no clear difference"
        found.append(KeyFigure(name, f"{value}\N{MULTIPLICATION SIGN}", f"[{low}, {high}], {both}"))
    elif latency is not None:
        found.append(KeyFigure("median latency", _plain(latency, "time"), "for an inference"))
    for metric, name, quantity in (
        ("size", "ONNX file", "size"),
        ("macs", "multiply-adds", "count"),
        ("peak_memory", "peak memory", "size"),
    ):
        slim, share = measurement.value(metric), measurement.value(f"{metric}_ratio")
        if slim is None:
            continue
        if measurement.baseline and isinstance(share, int | float):
            dense = measurement.baseline.value(metric)
            change = (
                "as dense" if share == 1 else f"{(share - 1) * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")
            )
            found.append(
                KeyFigure(name, change, f"{_short(slim, quantity)} instead of {_short(dense, quantity)}")
            )
        else:
            found.append(KeyFigure(name, _short(slim, quantity), "in all" if metric == "size" else ""))
    accuracy = measurement.value("accuracy")
    if isinstance(accuracy, int | float):
        drop = measurement.value("accuracy_drop")
        detail = "of the test images"
        if isinstance(drop, int | float):
            detail = f"{format_quantity(-drop, 'drop', signed=True)} against dense"
            detail = detail.replace("-", "\N{MINUS SIGN}")
        found.append(KeyFigure("test accuracy", _plain(accuracy, "fraction"), detail))
    return tuple(found)


def _plain(value: float | Estimate | None, quantity: str) -> str:
    """A value without its interval."""
    centre = value.value if isinstance(value, Estimate) else value
    return format_measured(centre, quantity).replace(" ", "\N{NO-BREAK SPACE}")  # type: ignore[arg-type]


def _short(value: float | Estimate | None, quantity: str) -> str:
    """Counts in millions, so that two of them stand on a line."""
    if quantity == "count" and isinstance(value, int | float) and value >= 1e5:
        return f"{value / 1e6:.3g}\N{NO-BREAK SPACE}M"
    return _plain(value, quantity)


def headline(measurement: Measurement) -> str:
    """How much faster and smaller, at what accuracy, in one sentence."""
    claims = (_speed(measurement), _size(measurement), _accuracy(measurement))
    said = [claim for claim in claims if claim]
    name = "The slim network" if measurement.baseline else "The network"
    return f"{name} {', '.join(said[:-1])}{' and ' if len(said) > 1 else ''}{said[-1]}."


def _speed(measurement: Measurement) -> str:
    ratio = measurement.value("latency_ratio")
    if not isinstance(ratio, Estimate):
        latency = measurement.value("latency_p50")
        if latency is None:
            return _instructions(measurement)
        return f"takes {format_measured(latency, 'time')} for an inference"
    value, low, high = ratio.value, ratio.low, ratio.high
    if high < 1.0:
        value, low, high = 1 / value, 1 / high, 1 / low
        text = f"is {_ratio(value)} times as fast as the dense one"
    elif low > 1.0:
        text = f"is slower than the dense one, taking {_ratio(value)} times as long"
    else:
        text = (
            f"takes {_ratio(value)} times as long as the dense one, which is no difference that can be told"
        )
    return f"{text} ({ratio.confidence * 100:.0f} % interval {_ratio(low)} to {_ratio(high)})"


def _instructions(measurement: Measurement) -> str:
    """What an inference costs where it was not timed."""
    count, ratio = measurement.value("instructions"), measurement.value("instructions_ratio")
    if count is None:
        return ""
    text = f"takes {format_measured(count, 'count')} instructions for an inference"
    return text if ratio is None else f"{text}, {format_measured(ratio, 'ratio')} of what the dense one takes"


def _size(measurement: Measurement) -> str:
    slim, ratio = measurement.value("size"), measurement.value("size_ratio")
    if measurement.baseline is None or not isinstance(ratio, int | float):
        return f"has {format_measured(slim, 'size')}"
    dense = format_measured(measurement.baseline.value("size"), "size")
    change = f"{abs(1 - ratio) * 100:.1f} % {'smaller' if ratio <= 1 else 'larger'}"
    return f"is {change} ({format_measured(slim, 'size')} instead of {dense})"


def _accuracy(measurement: Measurement) -> str:
    slim = measurement.artifact.accuracy
    dense = measurement.baseline.artifact.accuracy if measurement.baseline else {}
    split = next((split for split in ("test", "val") if split in slim), None)
    if split is None:
        return ""
    images = "test images" if split == "test" else "validation images"
    text = f"classifies {format_quantity(slim[split], 'fraction')} of the {images} correctly"
    if split not in dense:
        return text
    lost = format_quantity(abs(dense[split] - slim[split]), "drop")
    side = "less" if slim[split] < dense[split] else "more"
    return (
        f"{text}, {lost} {side} than the dense one"
        if slim[split] != dense[split]
        else f"{text}, as the dense one"
    )


def _ratio(value: float) -> str:
    return format_quantity(value, "ratio")
