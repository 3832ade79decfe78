"""The command that measures what a width costs on a device."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgeprune.cli.options import FILE, JSON, POSITIVE, TARGET, take


@click.command("widths")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["conv", "depthwise"]),
    multiple=True,
    help="Layers to measure; repeatable.  [default: both]",
)
@click.option("--from", "first", type=POSITIVE, default=32, show_default=True, help="Smallest width.")
@click.option("--to", "last", type=POSITIVE, default=96, show_default=True, help="Largest width.")
@click.option("--input-width", type=POSITIVE, default=32, show_default=True, help="Channels around it.")
@click.option(
    "--size", type=click.IntRange(3), default=28, show_default=True, help="Height and width of the images."
)
@click.option("--draw", type=FILE, metavar="FILE", help="Draw it too, as an .svg file.")
@click.option("--processes", type=click.IntRange(2), help="Fresh processes to time in.  [default: 10]")
@take(*TARGET, JSON)
def widths(
    kinds: tuple[str, ...],
    first: int,
    last: int,
    input_width: int,
    size: int,
    draw: Path | None,
    target: str | None,
    processes: int | None,
    as_json: bool,
) -> None:
    """Measure what the width of a convolution costs on a device.

    \b
    conv       3x3 convolution, ReLU, 3x3 convolution
    depthwise  1x1 convolution, depthwise 3x3, 1x1 convolution

    The inner width goes through all widths from --from to --to, timed in turns
    inside fresh processes. Suggested is a channel_multiple for the target: from
    1 upwards, one takes the place of the one before if its widths are clearly
    cheaper (by more than 3 %, with the whole interval). "No multiple is clearly
    better" is an answer too.
    """  # noqa: D301 (click's mark for text that is not to be re-wrapped)
    from edgeprune.cli.display import Display
    from edgeprune.errors import UsageError
    from edgeprune.files import write_text
    from edgeprune.report import widths_svg, widths_text
    from edgeprune.target import load_target
    from edgeprune.widths import KINDS, measure_widths

    if draw is not None and draw.suffix != ".svg":
        raise UsageError(
            "could not draw", where="--draw", value=draw.name, expected="a name that ends in .svg"
        )
    with Display() as display:
        found = measure_widths(
            load_target(target or "local-cpu"), kinds=kinds or KINDS, first=first, last=last,
            input_width=input_width, size=size, processes=processes or 10, on_progress=display.step,
        )  # fmt: skip
    if draw is not None:
        write_text(draw, widths_svg(found))
    if as_json:
        drawn = {"drawing": str(draw)} if draw is not None else {}
        click.echo(json.dumps({**found.to_json(), **drawn, "exit_code": 0}))
        return
    click.echo(widths_text(found))
    if draw is not None:
        click.echo(f"drawing: {draw}")
