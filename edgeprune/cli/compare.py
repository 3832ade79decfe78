"""The command that shows what moved between two measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import FILE, JSON, take
from edgeprune.errors import ReleaseError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeprune.comparison import Change
    from edgeprune.record import Record

STYLES = {"better": "green", "worse": "bold red", "cannot tell": "yellow", "not compared": "yellow"}


@click.command("compare")
@click.argument("before", type=FILE, metavar="A")
@click.argument("now", type=FILE, metavar="B")
@click.option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    help="Compare this alone, e.g. latency_p50; repeatable.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["worse", "change"]),
    help="Exit with 1 if a metric is worse, or has changed; with 3 if a --metric (without any: latency_p50)"
    " cannot be told.",
)
@take(JSON)
def compare(before: Path, now: Path, metrics: tuple[str, ...], fail_on: str | None, as_json: bool) -> None:
    """Show what moved from A to B beyond noise.

    A and B are each a release file, a measurement or a run folder.

    Times are compared over those of the dense network if both were measured
    beside the same one, so that the state of the machine cancels. A time that
    moved by less than 3 % has not changed. "no change" rules out one of 10 %.
    Times of another processor are not compared.
    """
    from edgeprune.comparison import changes, differences, has_common_dense
    from edgeprune.record import RECORDED
    from edgeprune.release import matched, records_in

    for name in metrics:
        if name not in RECORDED:
            raise UsageError(
                "could not compare", where="--metric", value=name, expected=f"one of {', '.join(RECORDED)}"
            )
    nows, befores = records_in(now), records_in(before)
    pairs = matched(nows, befores)
    if not pairs:
        raise ReleaseError(
            "could not compare",
            where=str(before),
            value=f"for {targets_of(befores)}",
            expected=f"a measurement run as in {now}, for {targets_of(nows)}",
        )
    found = [(one, other, changes(one, other, metrics)) for one, other in pairs]
    rows = [row for _, _, some in found for row in some]
    code = code_of(rows, fail_on, metrics)
    if as_json:
        parts = [
            {
                "before": about(other), "now": about(one), "common_dense": has_common_dense(one, other),
                "differences": list(differences(one, other)), "changes": [row_to_json(row) for row in some],
            }
            for one, other, some in found
        ]  # fmt: skip
        alone = [about(one) for one in nows if one not in [now for now, _ in pairs]]
        content = {"comparisons": parts, "without_partner": alone, "summary": summary(rows)}
        click.echo(json.dumps({**content, "exit_code": code}))
    else:
        tell(found, rows)
        if len(pairs) < len(nows):
            click.echo(f"{len(nows) - len(pairs)} of {len(nows)} in {now} have no partner in {before}")
    click.get_current_context().exit(code)


def code_of(rows: list[Change], fail_on: str | None, metrics: tuple[str, ...]) -> int:
    """The exit code: what was not told does not pass, of the metrics that matter."""
    if fail_on is None:
        return 0
    bad = {"worse"} if fail_on == "worse" else {"worse", "better"}
    if any(row.state in bad for row in rows):
        return 1
    matter = metrics or ("latency_p50",)
    told = {row.metric for row in rows}
    lacking = [row for row in rows if row.metric in matter and row.state in ("cannot tell", "not compared")]
    return 3 if lacking or not {*metrics} <= told else 0


def summary(rows: list[Change]) -> dict[str, list[str]]:
    """State -> the metrics of that state, each once."""
    states = ("worse", "better", "cannot tell", "not compared", "no change")
    return {state: list(dict.fromkeys(row.metric for row in rows if row.state == state)) for state in states}


def about(record: Record) -> dict[str, Any]:
    """What was measured where."""
    return {
        "file": record.artifact.path.name,
        "sha256": record.artifact.sha256,
        "target": record.target_name,
        "measurement_sha256": record.measurement_sha256,
    }


def row_to_json(row: Change) -> dict[str, Any]:
    """A row in SI units; what is not finite is null."""

    def number(value: Any) -> Any:
        if value is None or isinstance(value, float | int):
            return value if value is not None and math.isfinite(value) else None
        return {"value": value.value, "low": value.low, "high": value.high}

    return {
        "metric": row.metric, "before": number(row.before), "now": number(row.now),
        "change": number(row.change), "state": row.state, "why": row.why,
    }  # fmt: skip


def targets_of(records: tuple[Record, ...]) -> str:
    """The targets that records are for."""
    return ", ".join(dict.fromkeys(record.target_name for record in records))


def tell(found: list[tuple[Record, Record, tuple[Change, ...]]], rows: list[Change]) -> None:
    """Print a table for each pair, what differs besides, and a line that sums up."""
    from rich.console import Console

    from edgeprune.comparison import differences
    from edgeprune.metrics import METRICS
    from edgeprune.report.content import printable

    console = Console(highlight=False, markup=False)
    for now, before, some in found:
        names = dict.fromkeys(side.artifact.path.name for side in (before, now))
        console.print(printable(f"{' -> '.join(names)} on {now.target_name}"))
        console.print(change_table(some))
        reasons: dict[str, list[str]] = {}
        for row in some:
            if row.why:
                reasons.setdefault(f"{row.state}|{row.why}", []).append(METRICS[row.metric].text)
        for key, metrics in reasons.items():
            state, _, why = key.partition("|")
            console.print(printable(f"{state}: {', '.join(metrics)}: {why}"))
        for text in differences(now, before):
            console.print(printable(f"note: {text}"))
        console.print()
    moved = {state: metrics for state, metrics in summary(rows).items() if state in ("worse", "better")}
    texts = [
        f"{state}: {', '.join(METRICS[name].text for name in metrics)}"
        for state, metrics in moved.items()
        if metrics
    ]
    untold = any(row.state in ("cannot tell", "not compared") for row in rows)
    nothing = "no change beyond noise" + (", of what can be told" if untold else "")
    console.print("; ".join(texts) or nothing, style="bold")


def change_table(rows: tuple[Change, ...]) -> Table:
    """The rows for a terminal of 80 columns; what they say does not depend on colour."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from edgeprune.metrics import METRICS
    from edgeprune.report.content import printable

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in ("metric", "before", "now", "change", "verdict"):
        table.add_column(column, justify="left" if column in ("metric", "verdict") else "right")
    for row in rows:
        cells = [METRICS[row.metric].text, *(plain(side, row.metric) for side in (row.before, row.now))]
        cells += [change_text(row), row.state]
        texts = [Text(printable(cell)) for cell in cells]
        texts[-1].stylize(STYLES.get(row.state, ""))
        table.add_row(*texts)
    return table


def plain(value: Any, metric: str) -> str:
    """A figure without its interval."""
    from edgeprune.metrics import METRICS
    from edgeprune.units import format_quantity

    if value is None:
        return "-"
    return format_quantity(getattr(value, "value", value), METRICS[metric].quantity)


def change_text(row: Change) -> str:
    """A change for people: in percent with its interval, of accuracies in percentage points."""
    from edgeprune.metrics import METRICS, Estimate

    moved = row.change
    if moved is None:
        return "-"
    if isinstance(moved, Estimate):
        low, value, high = ((end - 1) * 100 for end in (moved.low, moved.value, moved.high))
        return f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]"
    if METRICS[row.metric].quantity == "fraction":
        return f"{0.0 - moved * 100:+.2f} pp"
    if not math.isfinite(moved):
        return "from 0"
    if moved == 1:
        return "same"
    return f"x {moved:.3g}" if moved >= 3 else f"{(moved - 1) * 100:+.2g} %"
