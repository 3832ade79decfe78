"""The command that writes one ONNX file in another precision or format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeprune.cli.options import DATA, FILE, JSON, TARGET, take
from edgeprune.errors import UsageError

PRECISIONS = ("fp32", "fp16", "int8")


@click.command("convert")
@click.argument("model", type=FILE)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of the new file.  [default: the target's]")
@click.option("--provider", metavar="NAME", help="That will run it.  [default: the target's]")
@click.option("--ort-format", is_flag=True, help="Write it in onnxruntime's own format.")
@click.option("--tolerance", type=float, help="Largest difference.  [default: fp16 0.02, int8 0.5]")
@click.option("--save", type=FILE, metavar="FILE", help="The new file.  [default: beside MODEL]")
@click.option("--data", metavar="SPEC", help="Images, as of `run`; int8 needs them.  [default: none]")
@take(*TARGET, *DATA[1:-1], JSON)  # --device is for training
def convert(
    model: Path, precision: str | None, provider: str | None, ort_format: bool, tolerance: float | None,
    save: Path | None, target: str | None, download: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write MODEL, a float32 ONNX file, as fp16 or int8, or as ORT file.

    Images of --data calibrate int8 and measure the new file's accuracy; they are
    normalised as MODEL's sidecar says. In a run folder `edgeprune export` does
    this for both networks.
    """
    from edgeprune.artifact import load_artifact
    from edgeprune.ort_format import to_ort_format
    from edgeprune.target import load_target
    from edgeprune.variants import convert as make

    runtime = load_target(target or "local-cpu").runtime
    precision, provider = precision or runtime.precision, provider or runtime.provider
    if precision == "fp32" and not ort_format:
        raise UsageError(
            "could not convert",
            where="--precision",
            value="fp32",
            expected="fp16 or int8, or --ort-format",
            hint="The precision of the target counts if none is given.",
        )
    source = load_artifact(model)
    data = _data(source.provenance.get("normalization"), download, options)
    variant = "" if precision == "fp32" else f".{precision}"
    last = save or model.with_suffix(f"{variant}.{'ort' if ort_format else 'onnx'}")
    made = source
    if variant:
        first = last.with_suffix(".onnx") if ort_format else last
        made = make(source, first, precision=precision, provider=provider, data=data, tolerance=tolerance)
    if ort_format:
        made = to_ort_format(made, last, provider=provider, data=data)
    if as_json:
        facts = {"path": str(last), "precision": precision, "provider": provider, "sha256": made.sha256,
                 "size_bytes": made.size_bytes, "size_ratio": made.size_bytes / source.size_bytes,
                 "accuracy": made.accuracy, "parity_error": made.parity_error, "exit_code": 0}  # fmt: skip
        click.echo(json.dumps(facts))
        return
    tested = [f"{split} {share * 100:.2f} %" for split, share in made.accuracy.items()]
    size = f"{made.size_bytes:,} bytes ({made.size_bytes / source.size_bytes:.2f} of {model.name})"
    click.echo(", ".join([f"{last}: {size}", *tested]))


def _data(normalization: dict[str, list[float]] | None, download: bool, options: dict[str, Any]) -> Any:
    """The data set, if one is given, normalised as the network wants it."""
    if options["data"] is None:
        return None
    from edgeprune.data import Normalization, load_data

    known = {name: tuple(values) for name, values in (normalization or {}).items()}
    return load_data(
        options["data"],
        batch_size=options["batch_size"] or 128,
        seed=options["seed"] or 0,
        normalization=Normalization(**known),
        download=download,
        image_size=options["image_size"],
    )
