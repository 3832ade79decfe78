"""The stages that write both networks as the target runs them: in its precision, and as ORT files."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from edgeprune.artifact import load_artifact
from edgeprune.ort_format import to_ort_format
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.host import facts_of
from edgeprune.pipeline.stages import variant_of
from edgeprune.variants import check_precision, convert

NETWORKS = ("dense", "slim")


def has_variants(context: Context) -> bool:
    """Whether the target wants another precision than float32."""
    return context.target.runtime.precision != "fp32"


def has_ort_files(context: Context) -> bool:
    """Whether ORT files are asked for."""
    return context.run.settings.ort_format


def check(context: Context) -> None:
    """Refuse a precision that the target's provider cannot run before anything is trained for it."""
    if has_variants(context):
        check_precision(context.target.runtime.precision, context.target.runtime.provider)


def identity_of_variants(context: Context) -> Any:
    """What the target runs, the data, and who converts."""
    runtime = context.target.runtime
    tools = {package: version(package) for package in ("onnx", "onnxruntime")}
    return [runtime.precision, runtime.provider, context.data.identity, tools]


def convert_both(context: Context) -> dict[str, Any]:
    """Write both networks in the target's precision, each compared with its float32 file."""
    run, runtime = context.run, context.target.runtime
    facts: dict[str, Any] = {"precision": runtime.precision, "provider": runtime.provider}
    for name in NETWORKS:
        made = convert(
            load_artifact(run.file(f"{name}.onnx")),
            run.file(f"{name}{variant_of(context)}.onnx"),
            precision=runtime.precision,
            provider=runtime.provider,
            data=context.data,
            tolerance=run.settings.variant_tolerance,
        )
        facts[name] = facts_of(made)
    return facts


def write_ort_files(context: Context) -> dict[str, Any]:
    """Write both networks, in the target's precision, as ORT files."""
    run, variant = context.run, variant_of(context)
    return {
        name: facts_of(
            to_ort_format(
                load_artifact(run.file(f"{name}{variant}.onnx")),
                run.file(f"{name}{variant}.ort"),
                provider=context.target.runtime.provider,
                data=context.data,
            )
        )
        for name in NETWORKS
    }
