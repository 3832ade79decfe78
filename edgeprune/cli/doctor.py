"""The command that says what this machine can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeprune.cli.options import FILE, JSON, take

PACKAGES = ("onnxruntime", "numpy", "torch", "torchvision", "onnx", "onnxsim")


@click.command("doctor")
@click.argument("model", type=FILE, required=False)
@click.option(
    "--target",
    "names",
    metavar="NAME",
    multiple=True,
    help="Ask this target's interpreter too: a shipped target's name or a .toml file; repeatable.",
)
@take(JSON)
def doctor(model: Path | None, names: tuple[str, ...], as_json: bool) -> None:
    """Say what this machine can do: packages, processor, providers.

    Every provider that an interpreter lists is made to run a trivial network: being listed proves nothing.
    Of the others it says what brings them, and of each whether its time means anything.

    With an ONNX file MODEL: what NNAPI and CoreML would take of it too, estimated from operator tables.
    """
    import platform
    import sys
    from dataclasses import asdict

    from edgeprune.availability import find_providers
    from edgeprune.runners import runner_for
    from edgeprune.target import Runtime, list_targets, load_target

    asked = {name: load_target(name) for name in names}
    versions = {package: _version(package) for package in PACKAGES}
    environment = runner_for(Runtime()).run("environment")
    local = [target.runtime.python for target in asked.values() if target.runtime.runner == "local"]
    providers = find_providers([None, *local])
    running = {(one.provider, one.python): one for one in providers if one.state == "runs"}
    targets = {name: load_target(path) for name, path in list_targets().items()} | asked
    serves = {
        name: running.get((target.runtime.provider, target.runtime.python))
        for name, target in targets.items()
        if target.runtime.runner == "local"
    }
    functional = [name for name, one in serves.items() if one and not one.time_is_real]
    able = {name: bool(serves.get(name)) and name not in functional for name in targets}
    partitions = _partitions(model) if model is not None else None
    if as_json:
        found = {"python": sys.version.split()[0], "platform": platform.platform(), "packages": versions,
                 "environment": environment, "providers": [asdict(one) for one in providers], "targets": able,
                 "functional_targets": functional, "partitions": partitions, "exit_code": 0}  # fmt: skip
        click.echo(json.dumps(found))
        return
    click.echo(f"python {sys.version.split()[0]} on {platform.platform()}")
    for package, number in versions.items():
        side = "" if package in ("onnxruntime", "numpy") else ' (pip install "edgeprune[train]")'
        click.echo(f"{package:<12} {number or f'not installed{side}'}")
    for key, value in environment.items():
        if key not in (*versions, "python", "platform", "providers"):
            click.echo(f"{key:<12} {value}")
    click.echo()
    _tell_providers(providers)
    click.echo()
    for name, here in able.items():
        text = "can be measured here" if here else "not on this machine as it is"
        text = "placement here, but no time: functional only" if name in functional else text
        click.echo(f"{name:<18} {text}")
    if partitions is not None:
        click.echo(f"\n{model}, {partitions['label']}:")
        for one in partitions["estimates"]:
            click.echo(f"{one['provider']:<22} {one['text']}")


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tell_providers(providers: Any) -> None:
    """A line for each provider, with what follows from it below."""
    for one in providers:
        where = f" in {one.python}" if one.python else ""
        name = one.provider.removesuffix("ExecutionProvider") or "interpreter"
        if one.state == "runs":
            click.echo(f"{name:<12} runs{where}; its time {'is real' if one.time_is_real else one.time}")
        elif one.state == "absent":
            click.echo(f"{name:<12} absent: {one.why}")
        else:
            click.echo(f"{name:<12} does not run{where}: {one.why}")


def _partitions(model: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from edgeprune.mobile import LABEL, estimate_partitions

    return {
        "label": LABEL,
        "estimates": [{**asdict(one), "text": one.text} for one in estimate_partitions(model)],
    }
