"""The model card: what a file is, for those who use it, from its sidecar and its measurement. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeprune.artifact import normalization_of
from edgeprune.measurement import Measurement
from edgeprune.metrics import METRICS
from edgeprune.report.content import Table, printable
from edgeprune.report.markup import block, bullets, literal, table
from edgeprune.units import format_quantity
from edgeprune.verdict import format_measured

CLASSES = 20
"""At most so many classes have a row of their own: those that lost most."""
FIGURES = (
    "size", "params", "macs", "latency_p50", "latency_p95", "throughput", "cold_start", "peak_memory",
    "instructions",
)  # fmt: skip
OWN_SECTION = {
    "data", "normalization", "macs_by_node", "versions", "parity", "git", "role", "source", "precision",
}  # fmt: skip

Facts = dict[str, Any]


def model_card(measurement: Measurement, *, command: str | None = None) -> str:
    """Describe a measured file for its users, as Markdown.

    Args:
        measurement: Of the file, beside its dense network if there was one.
        command: The command line that made the file, without places of this machine.

    Returns:
        Markdown with the same bytes for the same measurement. What nobody knows is left out; the licence is
        left to the user, and the card says so.
    """
    name, facts = measurement.artifact.path.name, measurement.artifact.provenance
    sections = [
        (f"# {literal(name)}", [_what_it_is(measurement)]),
        ("## Use", _use(measurement)),
        ("## Data", _data(facts)),
        ("## Accuracy", _accuracy(measurement)),
        ("## Size and speed", _figures(measurement)),
        ("## How it was made", _making(facts, command)),
        ("## Hashes", _hashes(measurement)),
        ("## Limits", _limits(measurement)),
        (
            "## Licence",
            ["Not stated here: it is for you to say, with that of the weights and of the data."],
        ),
    ]  # fmt: skip
    parts = [part for title, lines in sections if (found := list(lines)) for part in (title, *found)]
    return "\n\n".join(parts) + "\n"


def _what_it_is(measurement: Measurement) -> str:
    one, dense = measurement.artifact, measurement.baseline
    facts = one.provenance
    source, scheme = _table_in(facts, "source").get("name"), _table_in(facts, "scheme").get("scheme")
    classes = _table_in(facts, "data").get("classes")
    precision = _table_in(facts, "precision").get("name")
    text = "An ONNX network" + (f" in {precision}" if precision else "")
    text += f" that tells {classes} classes of images apart" if classes and one.accuracy else ""
    text += f", made of `{literal(source)}`" if source else ""
    if facts.get("role") == "slim":
        text += " by removing channels" + (f" (scheme `{literal(scheme)}`)" if scheme else "")
    if dense is None:
        return f"{text}."
    ratios = [
        (measurement.value(f"{key}_ratio"), word) for key, word in (("size", "bytes"), ("macs", "MACs"))
    ]
    told = [f"{value:.3g} of its {word}" for value, word in ratios if isinstance(value, float)]
    ratio = measurement.value("latency_ratio")
    if ratio is not None:
        told.append(f"{format_measured(ratio, 'ratio')} of its latency")
    return f"{text}. Of the dense network it has {', '.join(told)}." if told else f"{text}."


def _use(measurement: Measurement) -> Iterator[str]:
    inputs = measurement.placement.get("inputs", [])
    lines = [
        f"Input `{literal(one['name'])}`: {literal(one['type'])}, shape ({literal(one['shape'])[1:-1]})."
        for one in inputs
    ]
    facts = measurement.artifact.provenance
    told = normalization_of(facts)
    if told:
        mean, std = (", ".join(f"{value:g}" for value in side) for side in told)
        lines.append(
            "Images are (N, C, H, W) with values 0 to 1, then normalised by channel: (x - mean) / std, with"
            f" mean ({mean}) and std ({std})."
        )
    if "dynamic_batch" in facts:
        lines.append(f"The batch size is {'open' if facts['dynamic_batch'] else 'fixed'}.")
    if lines:
        yield bullets(lines, printable)


def _data(facts: Facts) -> Iterator[str]:
    data = _table_in(facts, "data")
    if not data:
        return
    images = _table_in(data, "images")
    lines = [
        f"`{literal(data.get('name'))}`, identity `{literal(data.get('identity'))}` (images, labels, split)."
    ]
    if images:
        counts = ", ".join(f"{split} {_count(count)}" for split, count in images.items())
        lines.append(
            f"Images: {counts}. Choices were made on the validation split; the test split is for reports."
        )
    yield bullets(lines, printable)


def _accuracy(measurement: Measurement) -> Iterator[str]:
    sides = [one.artifact for one in (measurement, measurement.baseline) if one is not None]
    if not sides[0].accuracy:
        return
    names = [side.path.name for side in sides]
    rows = [
        (f"{text}, {split}", *(_share(getattr(side, key).get(split)) for side in sides))
        for key, text in (("accuracy", "top-1"), ("accuracy_top5", "top-5"))
        for split in getattr(sides[0], key)
    ]
    yield "Measured by onnxruntime on the very file."
    yield table(Table(("", *names), tuple(rows)), literal)
    by_class = [side.accuracy_by_class.get("test", {}) for side in sides]
    lost = {key: by_class[-1].get(key, share) - share for key, share in by_class[0].items()}
    order = sorted(lost, key=lambda key: (-lost[key], by_class[0][key]))
    if order:
        shown = order[:CLASSES]
        yield "By class (test)" + (
            ", those that lost most first:" if len(sides) > 1 else ", the worst first:"
        )
        classes = [(key, *(_share(side.get(key)) for side in by_class)) for key in shown]
        yield table(Table(("class", *names), tuple(classes)), literal)
        if len(order) > CLASSES:
            yield f"The other {len(order) - CLASSES} classes are in the sidecar."


def _figures(measurement: Measurement) -> Iterator[str]:
    sides = [one for one in (measurement, measurement.baseline) if one is not None]
    rows = []
    for name in FIGURES:
        values = [side.value(name) for side in sides]
        if values[0] is not None:
            quantity = METRICS[name].quantity
            rows.append((METRICS[name].text, *(format_measured(value, quantity) for value in values)))
    yield table(Table(("", *(side.artifact.path.name for side in sides)), tuple(rows)), literal)
    facts, how = measurement.environment, measurement.runtime
    place = [facts.get("cpu"), facts.get("machine"), f"{how.get('threads')} thread(s)", how.get("provider")]
    text = ", ".join(literal(part) for part in place if part)
    yield (
        f"On {literal(measurement.target_name)}: {text}, onnxruntime {literal(facts.get('onnxruntime'))}."
        " Brackets hold 95 % intervals over processes. On another device these figures say nothing."
    )


def _making(facts: Facts, command: str | None) -> Iterator[str]:
    if command:
        yield block(command, "console")
    rows = [("network", _said(facts["source"]))] if facts.get("source") else []
    rows += [
        (key.replace("_", " "), _said(value))
        for key, value in facts.items()
        if key not in OWN_SECTION and not key.endswith("sha256")
    ]
    parity = _table_in(facts, "parity")
    if parity:
        rows.append(
            (
                "checked against",
                _said({key: parity[key] for key in ("against", "tolerance", "real_images") if key in parity}),
            )
        )
    for key in ("git", "versions"):
        if facts.get(key):
            rows.append((key, _said(facts[key])))
    if rows:
        yield table(Table(("", ""), tuple(rows)), literal)


def _hashes(measurement: Measurement) -> Iterator[str]:
    one, dense = measurement.artifact, measurement.baseline
    rows = [(one.path.name, one.sha256)]
    rows += [
        (key.removesuffix("_sha256").replace("_", " "), value)
        for key, value in one.provenance.items()
        if key.endswith("sha256")
    ]
    if dense is not None:
        rows.append((dense.artifact.path.name, dense.artifact.sha256))
    shown = tuple((literal(name), f"`{literal(value)}`") for name, value in rows)
    yield table(Table(("", "SHA-256"), shown), str)
    yield f"`edgeprune verify {literal(one.path.name)}` re-checks file, weights and plan."


def _limits(measurement: Measurement) -> Iterator[str]:
    lines = ["What it does on other images than those named above is not known."]
    error = measurement.artifact.parity_error
    if error is not None:
        against = (
            "the float32 file" if "precision" in measurement.artifact.provenance else "the torch network"
        )
        lines.append(
            f"Its outputs differ from {against}'s by up to {format_quantity(error, 'error')} of the largest."
        )
    lines += [f"While it was measured: {note}" for note in measurement.notes]
    yield bullets(lines, printable)


# --- Markdown -----------------------------------------------------------------------------------------------


def _table_in(facts: Facts, key: str) -> Facts:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> str:
    """A sidecar that somebody else wrote may tell anything."""
    return f"{value:,}" if isinstance(value, int) else literal(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.2f} %"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    return "no" if value is None or value is False else "yes" if value is True else str(value)
