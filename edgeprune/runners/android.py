"""An Android device behind adb: commands, files, and which one it is. Device side: no torch."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from edgeprune.errors import MeasurementError
from edgeprune.external_data import files_of
from edgeprune.runners.board import Guard, as_job, in_shell, last_line, name_there, sha256_of

PARENT = "/data/local/tmp"  # the one place from which adb's user may run a program
CONNECT_S = 30.0
COPY_S = 600.0
STATUS, NEXT = "edgeprune-status:", "edgeprune-next"
NOT_READY = {
    "unauthorized": "Unlock the device and accept this computer's key there.",
    "offline": "Unplug it, plug it in again, and see `adb devices`.",
    "no permissions": "Allow yourself to use it by a udev rule (Debian: android-sdk-platform-tools-common).",
}


class Phone:
    """A device, and after ``open`` a private folder on it that goes at the end; see ``Guard``.

    Attributes:
        problem: What cannot be done if it fails; the job of the moment.
    """

    def __init__(self, problem: str, serial: str | None) -> None:
        """Find it.

        Raises:
            MeasurementError: There is no adb, or no such device, or it is not ready.
        """
        self.problem = problem
        self._guard: Guard | None = None
        self._pushed: dict[str, str] = {}
        if shutil.which("adb") is None:
            raise MeasurementError(
                problem,
                where="adb",
                value="not on this machine",
                hint="Install adb (Debian: `apt install adb`; else Android's platform tools).",
            )
        self._adb = ["adb", "-s", find_device(problem, serial)]

    @property
    def folder(self) -> str:
        """Path of the folder there."""
        assert self._guard is not None, "open comes first"
        return self._guard.folder

    def open(self) -> None:
        """Make the folder."""
        self._guard = Guard(
            [*self._adb, "shell"],
            PARENT,
            self._raise_no_folder,
            timeout_s=CONNECT_S,
        )

    def close(self) -> None:
        """End what runs there and take the folder away; harmless if it is not open."""
        guard, self._guard, self._pushed = self._guard, None, {}
        if guard is not None:
            guard.close()

    def ask(self, commands: Sequence[str]) -> list[str]:
        """What each command prints; "" if it fails."""
        script = f"; echo; echo {NEXT}; ".join(f"{command} 2>/dev/null" for command in commands)
        output, _ = self.shell(script)
        parts = [part.strip() for part in output.split(f"{NEXT}\n")]
        return parts + [""] * (len(commands) - len(parts))

    def job(self, script: str, timeout_s: float) -> tuple[str, int]:
        """Run a script that ends when the folder goes, if not before: what it prints, and its exit status."""
        return self.shell(as_job(self.folder, script), timeout_s)

    def shell(self, script: str, timeout_s: float = CONNECT_S) -> tuple[str, int]:
        """Run a script: what it prints, and its exit status."""
        # adb itself fails with 1 as well, so that only the mark tells an end from a lost connection.
        whole = f"({script}) 2>&1; echo {STATUS}$?"
        said = run_adb(self.problem, [*self._adb, "shell", in_shell(whole)], timeout_s)
        output, mark, status = said.stdout.replace("\r\n", "\n").rpartition(STATUS)
        if not mark or not status.strip().isdigit():
            self._raise_lost(said.stderr or said.stdout)
        return output, int(status)

    def push(self, file: Path, name: str) -> str:
        """Copy a file into the folder: its path there."""
        path = f"{self.folder}/{name}"
        said = run_adb(self.problem, [*self._adb, "push", str(file), path], COPY_S)
        if said.returncode:
            words = said.stderr + said.stdout
            if not re.search(r"failed to copy|No space left|Permission denied", words):
                self._raise_lost(words)
            full = "No space left" in words
            raise MeasurementError(
                self.problem,
                where=f"{PARENT} on the device",
                value="full" if full else f"not to be written ({last_line(words)})",
                hint="Free space there." if full else "",
            )
        return path

    def push_model(self, model: Path) -> str:
        """Copy a model, once per content, into a folder of its own: its path there."""
        files = files_of(model)
        content = sha256_of(files)
        if content not in self._pushed:
            for file in files:
                name = f"{content}/{name_there(model, file)}"
                self.shell(f"mkdir -p {shlex.quote(self.folder + '/' + name.rpartition('/')[0])}")
                self.push(file, name)
            self._pushed[content] = f"{self.folder}/{content}/{name_there(model, model)}"
        return self._pushed[content]

    def _raise_no_folder(self, status: int | None, stderr: str) -> NoReturn:
        if status is not None and last_line(stderr).startswith("mktemp"):
            raise MeasurementError(
                self.problem,
                where=f"{PARENT} on the device",
                value=f"not to be written ({last_line(stderr)})",
                hint="Free space there.",
            )
        self._raise_lost(stderr)

    def _raise_lost(self, words: str) -> NoReturn:
        self.close()
        raise MeasurementError(
            self.problem,
            where="the connection to the device",
            value=f"lost ({last_line(words) or 'no more answers'})",
            hint="Check the cable and `adb devices`; what was pushed goes by itself there.",
        )


def find_device(problem: str, serial: str | None) -> str:
    """The serial of the device to use.

    Raises:
        MeasurementError: None is connected, several are and no serial is given, or it is not ready.
    """
    said = run_adb(problem, ["adb", "devices"], CONNECT_S)
    lines = said.stdout.replace("\r\n", "\n").partition("List of devices attached")[2].splitlines()
    # A state of several words: "no permissions (…); see …".
    states = {line.split("\t")[0]: line.partition("\t")[2].strip() for line in lines if "\t" in line}
    if said.returncode:
        value, hint = f"unable to start its server ({last_line(said.stderr)})", "Try `adb start-server`."
        raise MeasurementError(problem, where="adb", value=value, hint=hint)
    listed = ", ".join(f"{name} ({state})" for name, state in states.items()) or "none"
    if not states:
        raise MeasurementError(
            problem,
            where="the list of `adb devices`",
            value="empty",
            expected="a device",
            hint="Connect it with USB debugging turned on, and accept this computer there.",
        )
    ready = [name for name, state in states.items() if state == "device"]
    if serial is None and len(ready) > 1:
        raise MeasurementError(
            problem,
            where="the list of `adb devices`",
            value=listed,
            expected="one device",
            hint=f'Name one in the target: host = "{ready[0]}".',
        )
    if serial is None and len(ready) == 1:
        return ready[0]
    name = serial if serial is not None else next(iter(states))
    state = states.get(name)
    if state == "device":
        return name
    hint = next((hint for key, hint in NOT_READY.items() if (state or "").startswith(key)), "")
    raise MeasurementError(
        problem,
        where=f"the device {name}",
        value=f"in the state '{state}'" if state else f"not connected: `adb devices` lists {listed}",
        expected="a device that is ready",
        hint=hint or "See `adb devices`.",
    )


def run_adb(problem: str, words: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run adb to its end."""
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MeasurementError(
            problem,
            where=f"`adb {words[-2] if len(words) > 3 else words[-1]}`",
            value=f"still busy after {timeout_s:.0f} s",
            hint="The network may be too large for this device, or the connection hangs: see `adb devices`.",
        ) from None
