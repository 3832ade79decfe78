"""Where measurements happen. A runner is a file here and a row in RUNNERS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from edgeprune.errors import MeasurementError
from edgeprune.runners.browser import BrowserRunner
from edgeprune.runners.local import LocalRunner
from edgeprune.target import Runtime

__all__ = ["RUNNERS", "BrowserRunner", "LocalRunner", "Runner", "follow", "open_runner", "runner_for"]

OnProgress = Callable[[int, int, str], None]


class Runner(Protocol):
    """Carries jobs of the worker (see ``worker``) to a device and brings the answers back."""

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job in a fresh process.

        Args:
            job: ``"environment"``, ``"placement"``, ``"latency"`` or ``"memory"``.
            models: ONNX files on this machine; the runner brings them to the device.
            **options: What else the job takes.

        Returns:
            The worker's answer.

        Raises:
            ArtifactError: A file is at fault.
            MeasurementError: The provider, the interpreter, the device or the worker is.
        """
        ...


RUNNERS: dict[str, Callable[[Runtime], Runner]] = {"local": LocalRunner, "browser": BrowserRunner}


def runner_for(runtime: Runtime) -> Runner:
    """The runner that a target asks for.

    Raises:
        MeasurementError: This version has no such runner.
    """
    if runtime.runner not in RUNNERS:
        raise MeasurementError(
            "could not reach the device",
            where="runtime.runner",
            value=f"'{runtime.runner}', which is not in this version",
            expected=f"one of: {', '.join(RUNNERS)}",
            hint='Measure on the device itself with runner = "local", where edgeprune needs no torch.',
        )
    return RUNNERS[runtime.runner](runtime)


def open_runner(
    runtime: Runtime, say: Callable[[str], None] | None = None, **serving: Any
) -> AbstractContextManager[Runner]:
    """The runner that a target asks for, as a context that ends what the runner has started.

    Args:
        runtime: The target's.
        say: Is told what a person has to do, as lines for a terminal.
        **serving: What ``BrowserRunner`` takes beside, for that runner alone.

    Raises:
        MeasurementError: This version has no such runner.
    """
    runner = runner_for(runtime)
    return (
        BrowserRunner(runtime, say=say, **serving)
        if isinstance(runner, BrowserRunner)
        else nullcontext(runner)
    )


def follow(runner: Runner, on_progress: OnProgress) -> OnProgress:
    """``on_progress``, shown on the device too if it has a screen that we draw on."""
    if not isinstance(runner, BrowserRunner):
        return on_progress

    def on_both(done: int, total: int, text: str) -> None:
        runner.step(done, total, text)
        on_progress(done, total, text)

    return on_both
