"""Where measurements happen. A runner is a file here and a row in RUNNERS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from edgeprune.errors import MeasurementError
from edgeprune.runners.adb import AdbRunner
from edgeprune.runners.browser import BrowserRunner
from edgeprune.runners.local import LocalRunner
from edgeprune.runners.ssh import SshRunner
from edgeprune.target import Runtime

__all__ = [
    "RUNNERS", "AdbRunner", "BrowserRunner", "LocalRunner", "Runner", "SshRunner",
    "follow", "open_runner", "runner_for",
]  # fmt: skip

OnProgress = Callable[[int, int, str], None]


class Runner(Protocol):
    """Carries jobs of the worker (see ``worker``) to a device and brings the answers back.

    As a context it leaves nothing behind on the device.
    """

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job in a fresh process.

        Args:
            job: ``"environment"``, ``"placement"``, ``"latency"``, ``"memory"`` or
                ``"instructions"``.
            models: ONNX files on this machine; the runner brings them to the device.
            **options: What else the job takes.

        Returns:
            The worker's answer.

        Raises:
            ArtifactError: A file is at fault.
            MeasurementError: The provider, the interpreter, the device or the worker is.
        """
        ...

    def notes(self) -> list[str]:
        """What the device says that makes the figures doubtful, once all jobs are done."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None: ...


RUNNERS: dict[str, Callable[[Runtime], Runner]] = {
    "local": LocalRunner, "ssh": SshRunner, "adb": AdbRunner, "browser": BrowserRunner
}  # fmt: skip


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


def open_runner(runtime: Runtime, say: Callable[[str], None] | None = None, **serving: Any) -> Runner:
    """The runner that a target asks for: a context that ends what the runner has started.

    Args:
        runtime: The target's.
        say: Is told what a person has to do, as lines for a terminal.
        **serving: What ``BrowserRunner`` takes beside, for that runner alone.

    Raises:
        MeasurementError: This version has no such runner.
    """
    runner = runner_for(runtime)
    return BrowserRunner(runtime, say=say, **serving) if isinstance(runner, BrowserRunner) else runner


def follow(runner: Runner, on_progress: OnProgress) -> OnProgress:
    """``on_progress``, shown on the device too if it has a screen that we draw on."""
    if not isinstance(runner, BrowserRunner):
        return on_progress

    def on_both(done: int, total: int, text: str) -> None:
        runner.step(done, total, text)
        on_progress(done, total, text)

    return on_both
