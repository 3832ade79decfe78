"""Runs the worker on another machine over OpenSSH, on one connection per bench. Device side: no torch."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgeprune.errors import MeasurementError, TargetError
from edgeprune.external_data import files_of
from edgeprune.runners.board import Guard, as_job, in_shell, last_line, name_there, sha256_of
from edgeprune.runners.local import (
    PROBLEMS,
    TIMEOUT_S,
    WORKER,
    exchange,
    raise_too_long,
    read_answer,
    worker_environment,
    worker_job,
)
from edgeprune.target import Runtime

CONNECT_S = 15
COPY_S = 600.0
LOST = 255  # what ssh ends with if the fault is its own
# A host name, an alias or an address, with a user before it and, as a URI, a port behind it. ssh hands it to
# a shell where the user's configuration has a ProxyCommand: nothing that means something there gets through.
HOST = re.compile(r"(?:ssh://)?(?:[A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[:][\w.:\]%-]*", re.ASCII)
# Told from the other end's words, first match wins: (pattern, what is wrong, next step with {host}).
REASONS = (
    (
        r"Could not resolve hostname|Name or service not known",
        "unknown: no such name",
        "Check runtime.host in the target, or name the board by its address.",
    ),
    (
        r"IDENTIFICATION HAS CHANGED|[Hh]ost key .*has changed|Offending .* key in",
        "a machine whose host key has changed",
        "If the board was installed anew, forget its old key with `ssh-keygen -R` and log in once by hand; "
        "else somebody may sit in between.",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "a machine whose host key is not known here",
        "Log in once by hand, to see its key and accept it: `ssh {host}`.",
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "refusing the key",
        "Let a key in without a password: `ssh-copy-id {host}`; one with a passphrase goes into ssh-agent.",
    ),
    (
        r"Bad configuration option|Bad owner or permissions|terminating, \d+ bad configuration",
        "out of reach, since the ssh configuration has a fault ({last})",
        "Mend ~/.ssh/config until `ssh {host}` works.",
    ),
    (
        r"Connection refused|timed out|No route to host|Network is unreachable|Connection (?:reset|closed)",
        "out of reach ({last})",
        "Check that the board is on, in the same network, and runs an ssh server.",
    ),
)


class SshRunner:
    """Jobs on a Linux board, each in a fresh process of its own there.

    The worker and each model are copied once, into a private folder there that goes at the end: see
    ``Guard``.

    Attributes:
        runtime: How to run the models.
        timeout_s: A job that takes longer is ended.
    """

    def __init__(self, runtime: Runtime, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is reached before the first job.

        Raises:
            TargetError: The host is no host name.
        """
        self.runtime, self.timeout_s = runtime, timeout_s
        self.python = runtime.python or "python3"
        self.host = _checked_host(runtime.host)
        self._guard: Guard | None = None
        self._control = ""
        self._copied: dict[str, str] = {}

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        """Do one job; see ``Runner.run``."""
        problem = PROBLEMS[job]
        here = [Path(model).absolute() for model in models]
        shown = worker_job(self.runtime, job, [str(model) for model in here], options)
        try:
            folder = self._open(problem)
            there = [self._copy(problem, model) for model in here]
            request = shown | {"models": there}
            own = worker_environment(self.runtime, job, {})
            exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in own.items())
            worker = f"{_python_word(self.python)} {shlex.quote(f'{folder}/worker')}"
            script = f"unset PYTHONPATH PYTHONHOME; export {exports}; {worker}"
            stdout, stderr, status = exchange(
                self._ssh(as_job(folder, script)), request, os.environ, self.timeout_s
            )
        except BaseException as reason:
            self.close()  # ends what may still run there; a later job starts anew
            if isinstance(reason, subprocess.TimeoutExpired):
                raise_too_long(shown, self.timeout_s)
            raise
        if status == LOST:
            self._raise_lost(problem, stderr)
        if status in (126, 127):
            self._raise_no_python(problem, stderr)
        # The worker names a model by its path there.
        for model, path in zip(here, there, strict=True):
            stdout = stdout.replace(_in_json(path), _in_json(str(model)))
        name = f"{self.python} on {self.host}"
        return read_answer(shown, name, (stdout, stderr, status), self.runtime)

    def notes(self) -> list[str]:
        """None: the worker tells all that there is to tell of the board."""
        return []

    def close(self) -> None:
        """End what runs on the board and take everything away there; harmless if nothing is open."""
        guard, self._guard, self._copied = self._guard, None, {}
        try:
            if guard is not None:
                guard.close()
        finally:
            if self._control:
                shutil.rmtree(self._control, ignore_errors=True)
                self._control = ""

    def __enter__(self) -> SshRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- connection -----------------------------------------------------------------------------------------

    def _open(self, problem: str) -> str:
        """Connect and bring the worker over, once: the folder there."""
        if self._guard is not None:
            return self._guard.folder
        if shutil.which("ssh") is None:
            raise MeasurementError(
                problem,
                where="ssh",
                value="not on this machine",
                expected="the OpenSSH client",
                hint="Install openssh-client.",
            )
        self._control = _short_folder()
        self._guard = Guard(
            self._words("-M", "-S", f"{self._control}/s"),
            '"${TMPDIR:-/tmp}"',
            lambda status, stderr: self._raise_unreachable(problem, status, stderr),
            timeout_s=2.0 * CONNECT_S,
        )
        folder = self._guard.folder
        quoted = shlex.quote(folder + "/worker")
        self._put(problem, f"mkdir {quoted} && tar -xf - -C {quoted}", _packed_worker())
        return folder

    def _words(self, *options: str) -> list[str]:
        """The ssh command, without what it runs there. The user's own configuration stays in force."""
        settings = (
            "BatchMode=yes",  # never a prompt that hangs
            f"ConnectTimeout={CONNECT_S}",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RemoteCommand=none",
            "ControlPersist=no",
            "LogLevel=ERROR",
        )
        return ["ssh", "-T", *options, *(word for s in settings for word in ("-o", s)), "--", self.host]

    def _ssh(self, script: str) -> list[str]:
        """A command that runs a script there on the open connection, and never on a new one."""
        return [
            *self._words("-S", f"{self._control}/s", "-o", "ControlMaster=no", "-o", "ProxyCommand=false"),
            in_shell(script),
        ]

    # --- files ----------------------------------------------------------------------------------------------

    def _copy(self, problem: str, model: Path) -> str:
        """Bring a model over, once per content: its path there."""
        assert self._guard is not None
        if not model.is_file():
            return str(model)  # the worker says that it is not there
        files = files_of(model)
        content = sha256_of(files)
        if content not in self._copied:
            folder = f"{self._guard.folder}/{content}"
            for file in files:
                path = f"{folder}/{name_there(model, file)}"
                parent = shlex.quote(path.rpartition("/")[0])
                with file.open("rb") as opened:
                    self._put(problem, f"mkdir -p {parent} && cat > {shlex.quote(path)}", opened)
            self._copied[content] = f"{folder}/{name_there(model, model)}"
        return self._copied[content]

    def _put(self, problem: str, script: str, file: Any) -> None:
        """Feed a file to a script there."""
        assert self._guard is not None
        try:
            done = subprocess.run(
                self._ssh(as_job(self._guard.folder, script)),
                stdin=file if hasattr(file, "fileno") and not isinstance(file, io.BytesIO) else None,
                input=file.getvalue() if isinstance(file, io.BytesIO) else None,
                capture_output=True,
                timeout=COPY_S,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(
                problem,
                where=f"the connection to {self.host}",
                value=f"too slow: a copy did not end within {COPY_S:.0f} s",
            ) from None
        stderr = done.stderr.decode(errors="replace")
        if done.returncode == LOST:
            self._raise_lost(problem, stderr)
        if done.returncode:
            full = re.search(r"No space left|[Qq]uota exceeded", stderr)
            last = last_line(stderr) or f"exit status {done.returncode}"
            raise MeasurementError(
                problem,
                where=f"the temporary folder on {self.host}",
                value="full" if full else f"not to be written ({last})",
                hint="Free space there, or let TMPDIR there name a folder with room." if full else "",
            )

    # --- faults ---------------------------------------------------------------------------------------------

    def _raise_unreachable(self, problem: str, status: int | None, stderr: str) -> NoReturn:
        last = last_line(stderr)
        if status is not None and status != LOST:
            raise MeasurementError(
                problem,
                where=self.host,
                value=f"unable to make a temporary folder ({last or f'exit status {status}'})",
                hint="It takes a shell with mktemp, and room in /tmp or where TMPDIR there points.",
            )
        for pattern, value, hint in REASONS:
            if re.search(pattern, stderr):
                raise MeasurementError(
                    problem,
                    where=self.host,
                    value=value.format(last=last),
                    hint=hint.format(host=self.host),
                )
        raise MeasurementError(
            problem,
            where=self.host,
            value=f"out of reach ({last or 'no answer in time'})",
            hint=f"Try `ssh {self.host}` until it works without a question.",
        )

    def _raise_lost(self, problem: str, stderr: str) -> NoReturn:
        self.close()
        if "Session open refused" in stderr:
            raise MeasurementError(
                problem,
                where=f"the connection to {self.host}",
                value="limited to one session",
                expected="at least 2",
                hint="Set MaxSessions in its sshd_config to 2 or more.",
            )
        raise MeasurementError(
            problem,
            where=f"the connection to {self.host}",
            value=f"lost ({last_line(stderr) or 'no more answers'})",
            hint="What was copied goes by itself there. Measure again when the board is back.",
        )

    def _raise_no_python(self, problem: str, stderr: str) -> NoReturn:
        raise MeasurementError(
            problem,
            where="runtime.python",
            value=f"'{self.python}' ({last_line(stderr)})",
            expected=f"an interpreter on {self.host} that has numpy and onnxruntime",
            hint="Install Python 3.10 or later there, or name one by its path in the target.",
        )


def _checked_host(host: str | None) -> str:
    if host is None or not HOST.fullmatch(host):
        raise TargetError(
            "could not use the target file",
            where="runtime.host",
            value=repr(host),
            expected="a host name or user@host, of letters, digits, and . _ - :, not starting with '-'",
            hint="Give what is special to a board (port, key, jump host) a Host entry in ~/.ssh/config.",
        )
    return host


def _short_folder() -> str:
    """A private folder for the connection's socket, whose path may have about 100 characters."""
    where = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="ep-", dir=where if len(os.fsencode(where)) < 60 else "/tmp")


def _packed_worker() -> io.BytesIO:
    """The worker's folder as a tar file, without what Python left in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(WORKER.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                info = tarfile.TarInfo(path.relative_to(WORKER).as_posix())
                info.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(info, file)
    return packed


def _python_word(python: str) -> str:
    """An interpreter as a word for the shell there; relative paths start in the home folder."""
    home, slash, rest = python.partition("/")
    return f'"$HOME"/{shlex.quote(rest)}' if home == "~" and slash else shlex.quote(python)


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]
