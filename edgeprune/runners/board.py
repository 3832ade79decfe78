"""A private folder on another machine, which goes when this side does. Device side: no torch.

A small shell there makes the folder, waits, and takes it away with all that still runs in it: when its
input ends, which is what it sees when this process ends in whatever way or the connection breaks, or when no
sign of life came for ``SILENCE_S``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NoReturn

from edgeprune.files import sha256_file

SILENCE_S = 300  # then the folder goes; more than a laptop's short sleep, or a stopped process, takes
SIGN_OF_LIFE_S = 20.0
GOODBYE_S = 20.0
FOLDER = "edgeprune-folder:"
GONE = "edgeprune-gone"

# One line without single quotes, so that it goes through any login shell as one word. Each job puts its
# process id into pids/: it leads a process group, if the server made one, and what it starts has the folder
# in its environment, so that all of it can be ended.
_GUARD = (
    "umask 077; trap : HUP INT TERM PIPE; "
    'command -v timeout >/dev/null 2>&1 || timeout() {{ shift; "$@"; }}; '
    'd=$(mktemp -d {parent}/edgeprune.XXXXXXXXXX) || exit 93; mkdir "$d/pids" || exit 93; '
    'echo; echo "' + FOLDER + '$d"; '  # what a login shell said before may lack the end of its line
    'while timeout {silence} sh -c "read -r sign"; do :; done; '
    'for p in "$d"/pids/*; do n=${{p##*/}}; '
    'kill -9 "-$n" 2>/dev/null || kill -9 "$n" 2>/dev/null; done; '
    # Twice: a process that is just being started still has the environment of the one that starts it.
    'for i in 1 2; do for p in $(grep -lsF "TMPDIR=$d" /proc/[0-9]*/environ); do p=${{p#/proc/}}; '
    'kill -9 "${{p%/environ}}" 2>/dev/null; done; [ $i = 2 ] || sleep 0.1; done; '
    'rm -rf "$d" 2>/dev/null || {{ sleep 1; rm -rf "$d"; }}; '
    '[ -e "$d" ] || echo ' + GONE
)


def last_line(text: str) -> str:
    """The last line of a text, short."""
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""


def in_shell(script: str) -> str:
    """A script as one command line for a login shell of any kind, in whose place it runs."""
    return f"exec sh -c {shlex.quote(script)}"


def as_job(folder: str, script: str) -> str:
    """A script that the guard ends if it still runs when the folder goes; its exit status stays.

    What libraries leave in the temporary folder goes with ours: onnxruntime 1.31 leaves a file.
    """
    there = shlex.quote(folder)
    pid = f"{there}/pids/$$"
    return f"export TMPDIR={there}; echo > {pid} || exit 93; {script}; s=$?; rm -f {pid}; exit $s"


def sha256_of(files: Sequence[Path]) -> str:
    """Of what files hold, one after the other."""
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()


def name_there(model: Path, file: Path) -> str:
    """What a file of a model is called in the model's folder on the device; data files keep their names."""
    if file != model:
        return file.relative_to(model.parent).as_posix()
    return "model.ort" if model.suffix == ".ort" else "model.onnx"


class Guard:
    """The shell that holds the folder.

    Attributes:
        folder: Path there.
        failed: Raises the error that tells why there is none, from the exit status (None: silent for too
            long) and stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        parent: str,
        failed: Callable[[int | None, str], NoReturn],
        *,
        timeout_s: float,
        silence_s: float = SILENCE_S,
    ) -> None:
        """Start it.

        Args:
            command: What runs the words after it on the other machine.
            parent: Where the folder is made, as shell text.
            failed: See the class.
            timeout_s: For the folder to be there.
            silence_s: After which the folder goes.
        """
        script = in_shell(_GUARD.format(parent=parent, silence=silence_s))
        self.failed = failed
        self.folder = ""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._out = b""
        # In a session of its own: Ctrl-C must not end it before it has cleaned up, and nothing can prompt.
        self._process = subprocess.Popen(
            [*command, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._closing = threading.Event()
        try:
            line = self._line(FOLDER, timeout_s)
            if line is None:
                status = self._process.poll()
                self._process.kill()
                self._process.wait()
                failed(status, self.stderr())
        except BaseException:
            self.close()
            raise
        self.folder = line
        threading.Thread(target=self._live, daemon=True).start()

    @property
    def is_there(self) -> bool:
        """Whether the connection still stands."""
        return self._process.poll() is None

    def stderr(self) -> str:
        """What was said on stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def close(self) -> bool:
        """End all jobs and take the folder away; whether that was confirmed."""
        self._closing.set()
        if self._stderr.closed:
            return False
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        gone = False
        try:
            gone = bool(self.folder) and self._line(GONE, GOODBYE_S) is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=GOODBYE_S if gone else 1.0)
        finally:
            self._process.kill()
            with contextlib.suppress(OSError), self._process:
                pass
            self._stderr.close()
        return gone

    def _line(self, mark: str, timeout_s: float) -> str | None:
        """The rest of the line on stdout that starts with a mark; None if it ends or none comes in time."""
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while True:
            *lines, _ = self._out.split(b"\n")
            found = [line for line in lines if line.startswith(mark.encode())]
            if found:
                return found[-1].decode(errors="replace").strip().removeprefix(mark)
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                return None
            data = os.read(stream, 4096)
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=1.0)
                return None
            self._out += data

    def _live(self) -> None:
        """Give signs of life until the end."""
        assert self._process.stdin is not None
        while not self._closing.wait(SIGN_OF_LIFE_S):
            try:
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError):
                return
