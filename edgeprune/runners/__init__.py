"""Where measurements happen. A runner is a file here and a row in RUNNERS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from edgeprune.errors import MeasurementError
from edgeprune.runners.adb import AdbRunner
from edgeprune.runners.local import LocalRunner
from edgeprune.runners.ssh import SshRunner
from edgeprune.target import Runtime

__all__ = ["RUNNERS", "AdbRunner", "LocalRunner", "Runner", "SshRunner", "runner_for"]


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

    def __exit__(self, *_: object) -> None: ...


RUNNERS: dict[str, Callable[[Runtime], Runner]] = {"local": LocalRunner, "ssh": SshRunner, "adb": AdbRunner}


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
