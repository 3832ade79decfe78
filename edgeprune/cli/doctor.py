"""The command that says what this machine can do."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli.options import FILE, JSON, take

if TYPE_CHECKING:
    from edgeprune.machine import Devices, Missing, Processor
    from edgeprune.steadiness import Steadiness

PACKAGES = ("onnxruntime", "numpy", "torch", "torchvision", "onnx", "onnxsim")
WIDTH, LABEL = 80, 13


@click.command("doctor")
@click.argument("model", type=FILE, required=False)
@click.option(
    "--target",
    "names",
    metavar="NAME",
    multiple=True,
    help="Ask this target's interpreter too: a shipped target's name or a .toml file; repeatable.",
)
@click.option(
    "--noise/--no-noise",
    default=True,
    help="Time two copies of one network for 5 s, to say what a bench here is worth.  [default: noise]",
)
@take(JSON)
def doctor(model: Path | None, names: tuple[str, ...], noise: bool, as_json: bool) -> None:
    """Say what this machine can do: packages, processor, noise, providers, devices.

    Every provider that an interpreter lists is made to run a trivial network: being listed proves nothing.
    Of the others it says what brings them, and of each whether its time means anything. For whatever is
    missing it says what to install.

    With an ONNX file MODEL: what NNAPI and CoreML would take of it too, estimated from operator tables.
    """
    import platform
    import sys
    from dataclasses import asdict

    from edgeprune.availability import find_providers, install_command
    from edgeprune.machine import find_browsers, find_devices, find_missing, read_processor
    from edgeprune.runners import runner_for
    from edgeprune.steadiness import measure_steadiness
    from edgeprune.target import Runtime, list_targets, load_target

    asked = {name: load_target(name) for name in names}
    versions = {package: _version(package) for package in PACKAGES}
    runner = runner_for(Runtime())
    environment = runner.run("environment")
    # Before anything else keeps the machine busy.
    steadiness = measure_steadiness(runner, environment) if noise else None
    processor, browsers, devices = read_processor(), find_browsers(), find_devices()
    missing = find_missing(browsers)
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
    python = sys.version.split()[0]
    if as_json:
        brought = {
            (one.provider, one.state): install_command(one.provider) if one.state == "absent" else None
            for one in providers
        }
        quiet = None if steadiness is None else {**asdict(steadiness), "quiet": steadiness.quiet}
        found = {"python": python, "platform": platform.platform(), "packages": versions,
                 "environment": environment, "processor": asdict(processor), "noise": quiet,
                 "providers": [
                     asdict(one) | {"install": brought[one.provider, one.state]}
                     for one in providers
                 ], "targets": able,
                 "functional_targets": functional, "devices": asdict(devices), "browsers": browsers,
                 "missing": [asdict(one) for one in missing], "partitions": partitions,
                 "exit_code": 0}  # fmt: skip
        click.echo(json.dumps(found))
        return
    click.echo("\n".join(_wrapped("", f"python {python} on {platform.platform()}")))
    for package, number in versions.items():
        _tell(package, number or "not installed")
    click.echo()
    _tell_machine(environment, processor)
    if steadiness is not None:
        click.echo()
        _tell_noise(steadiness)
    click.echo()
    _tell_providers(providers)
    click.echo()
    _tell_devices(devices, browsers)
    click.echo()
    for name, here in able.items():
        text = "can be measured here" if here else "not on this machine as it is"
        text = "placement here, but no time: functional only" if name in functional else text
        click.echo(f"{name:<18} {text}")
    if partitions is not None:
        click.echo(f"\n{model}, {partitions['label']}:")
        for one in partitions["estimates"]:
            click.echo(f"{one['provider']:<22} {one['text']}")
    _tell_missing(missing)


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wrapped(label: str, text: str) -> list[str]:
    """A label in a column of its own and its text beside it, within 80 columns."""
    start = f"{label:<{LABEL}}" if label else ""
    indent = " " * len(start)
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    ) or [start.rstrip()]  # fmt: skip


def _tell(label: str, text: object) -> None:
    click.echo("\n".join(_wrapped(label, str(text))))


def _tell_machine(environment: dict[str, Any], processor: Processor) -> None:
    """The processor and what decides on its speed."""
    threads, cores = environment["cores"], processor.physical_cores
    count = f"{threads} for this process"
    count += f", of {cores} physical cores" if cores else ""
    quota = environment.get("cpu_quota")
    count += f"; a control group allows {quota:g}" if quota is not None else ""
    _tell("cpu", f"{environment.get('cpu') or 'unknown'}, {environment['machine']}")
    if processor.features:
        _tell("features", " ".join(processor.features))
    if processor.int8 is False:
        _tell(" ", "no instruction multiplies bytes: int8 saves bytes more than time")
    _tell("threads", count)
    for name, value in processor.thread_variables.items():
        _tell(" ", f"{name}={value}")
    governor = environment.get("governor")
    advice = "" if governor in (None, "performance") else ": sudo cpupower frequency-set -g performance"
    _tell("governor", f"{governor}{advice}" if governor else "not told (common in virtual machines)")
    load = environment.get("load_average")
    _tell("load", "not told" if load is None else f"{load:.2f} on average in the last minute")
    if environment.get("emulator"):
        _tell("emulator", f"{environment['emulator']} plays the processor: times mean nothing")


def _tell_noise(found: Steadiness) -> None:
    """What a bench here is worth, and why."""
    _tell("noise", "quiet: a bench can be trusted" if found.quiet else "NOISY: see below")
    low, high = found.ratio.low, found.ratio.high
    facts = [
        f"two copies of one network, {found.processes} fresh processes in {found.seconds:.1f} s: "
        f"ratio {found.ratio.value:.3f} [{low:.3f}, {high:.3f}] (1 is right)",
        f"plain times spread by {found.spread:.1%} from process to process",
        f"a bench would take about {found.wanted} processes for 3 % to either side",
    ]
    if found.steal_share is not None and found.others_cpus is not None:
        facts.append(f"steal {found.steal_share:.1%}, other work kept {found.others_cpus:.1f} cores busy")
    for fact in facts:
        click.echo("\n".join(_wrapped(" ", fact)))
    for reason in found.why_noisy:
        click.echo("\n".join(_wrapped("  noisy:", reason)))


def _tell_providers(providers: Any) -> None:
    """A line for each provider, with what follows from it below."""
    from edgeprune.availability import install_command

    for one in providers:
        where = f" in {one.python}" if one.python else ""
        name = one.provider.removesuffix("ExecutionProvider") or "interpreter"
        if one.state == "runs":
            _tell(name, f"runs{where}; its time {'is real' if one.time_is_real else one.time}")
        elif one.state == "absent":
            _tell(name, f"absent: {one.why}")
            if command := install_command(one.provider):
                click.echo(f"    {command}")
        else:
            _tell(name, f"does not run{where}: {one.why}")


def _tell_devices(devices: Devices, browsers: tuple[str, ...]) -> None:
    """What can be reached by adb, and the browsers here."""
    from edgeprune.report.content import printable
    from edgeprune.runners.android import NOT_READY

    if devices.why_not:
        _tell("adb", printable(devices.why_not))
    for serial, state, model in devices.found:
        hint = next((hint for key, hint in NOT_READY.items() if state.startswith(key)), "")
        text = "ready" if state == "device" else f"{state}. {hint}".rstrip()
        _tell("adb", printable(f"{serial}{f' ({model})' if model else ''}: {text}"))
    _tell("browsers", ", ".join(browsers) or "none on the PATH")


def _tell_missing(missing: tuple[Missing, ...]) -> None:
    """What installs what is not here."""
    if not missing:
        click.echo("\nNothing that edgeprune can use is missing, but for the providers above.")
        return
    click.echo("\nmissing")
    for one in missing:
        click.echo("\n".join(textwrap.wrap(f"{one.what}, for {one.needed_for}:", WIDTH, initial_indent="  ",
                                           subsequent_indent="  ")))  # fmt: skip
        click.echo(f"      {one.command}")


def _partitions(model: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from edgeprune.mobile import LABEL as ESTIMATED
    from edgeprune.mobile import estimate_partitions

    return {
        "label": ESTIMATED,
        "estimates": [{**asdict(one), "text": one.text} for one in estimate_partitions(model)],
    }
