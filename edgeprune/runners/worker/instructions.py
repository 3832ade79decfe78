"""Instructions of one warm inference, counted by a program that plays the processor.

    callgrind   this job starts itself once more under valgrind, which is told by requests when to count
    qemu-user   this process runs on an emulated processor already, whose plugin is asked for its count

Both count the first thread alone, since what others do depends on the clock. What the asking itself costs is
measured and taken off.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from .common import Fault, Job, first_match, np
from .environment import emulator
from .latency import open_timed
from .session import warm_library

# What scripts/instruction_counter.c answers to: a number that no system call has.
QEMU_MARK = 0x65646765
# valgrind reads a request from a sequence that does nothing elsewhere: four rotations of rdi by 128 bits in
# all, then an exchange of rbx with itself; rax points to the request, rdx holds the answer. Made at run time,
# so that no compiler is needed: rax = first argument, rdx = second, sequence, rax = rdx, return.
VALGRIND_CALL = bytes.fromhex("4889f8 4889f2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")
CALLGRIND = int.from_bytes(b"CT", "big") << 16
DUMP, START = CALLGRIND, CALLGRIND + 4
ON_VALGRIND = 0x1001
NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE of personality(2)

WINDOWS = 3  # between four marks: nothing, the first warm inference, the second


def instructions(job: Job) -> Job:
    """Count the second warm inference of the model; the first still fills caches of the libraries."""
    if job.get("counted_by") == "callgrind":
        run_between(job, valgrind_marks())
        return {"vectors": vector_units()}
    player = emulator()
    if player is None:
        return by_callgrind(job)
    ask = qemu_counter(player)
    marks: list[int] = []
    run_between(job, lambda: marks.append(ask()))
    counts = [after - before for before, after in pairwise(marks)]
    return counted(counts, f"{player}, counting plugin", vector_units())


def run_between(job: Job, mark: Callable[[], None]) -> None:
    """Load the model and run it between marks."""
    warm_library()
    run, _ = open_timed(job, job["models"][0])
    gc.collect()
    gc.disable()
    mark()
    mark()
    for _ in range(WINDOWS - 1):
        run()
        mark()
    gc.enable()


def counted(counts: list[int], tool: str, vectors: str) -> Job:
    """The answer: the last window less the empty first one."""
    method = f"{tool}, {platform.machine()} ({vectors}), second warm inference, 1 thread"
    return {"count": counts[-1] - counts[0], "method": method}


def vector_units() -> str:
    """The widest vector instructions that libraries find here: the emulators lack what is newest."""
    core = getattr(np, "_core", None) or np.core
    found = getattr(getattr(core, "_multiarray_umath", None), "__cpu_features__", {})
    order = ("AVX512_SKX", "AVX512F", "AVX2", "AVX", "SSE42", "SVE", "ASIMDDP", "ASIMD", "NEON")
    return next((name for name in order if found.get(name)), "vector units unknown")


# --- qemu-user ----------------------------------------------------------------------------------------------


def qemu_counter(player: str) -> Callable[[], int]:
    """A function that asks the plugin for its count."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    call = ctypes.CDLL(None).syscall

    def ask() -> int:
        call(QEMU_MARK, writing)
        return int.from_bytes(os.read(reading, 8), sys.byteorder)

    try:
        ask()
    except BlockingIOError:
        message = f"run by {player} without the plugin that counts"
        hint = "`scripts/emulator` of edgeprune's repository builds an interpreter with it."
        raise Fault("environment", message, hint) from None
    return ask


# --- callgrind ----------------------------------------------------------------------------------------------


def by_callgrind(job: Job) -> Job:
    """Do the job once more under callgrind, and read what it wrote at each mark."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        message = f"on a {platform.machine()}, where this version cannot tell callgrind when to count"
        hint = (
            "Count on an x86-64 machine: `scripts/emulator aarch64 DIR` builds an emulated processor there."
        )
        raise Fault("environment", message, hint)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        message = "on a machine without valgrind, whose callgrind counts instructions"
        raise Fault("environment", message, "The package valgrind brings it: apt install valgrind.")
    # Programs that start from here on get the same addresses each time; where the system forbids that,
    # valgrind's own layout still leaves little to chance.
    ctypes.CDLL(None).personality(NO_RANDOM_ADDRESSES)
    with tempfile.TemporaryDirectory() as folder:
        options = ["--tool=callgrind", "--instr-atstart=no", "--separate-threads=yes"]
        out = Path(folder, "counts")
        # As this process was started, be it through a loader of its own, which sys.orig_argv leaves out.
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
        command = [valgrind, *options, f"--callgrind-out-file={out}", *map(os.fsdecode, words)]
        done = subprocess.run(
            command,
            input=json.dumps({**job, "counted_by": "callgrind"}),
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        answer = last_answer(done)
        # Each mark wrote a file; the first tells what went before it, and -01 is the first thread.
        files = [out.with_name(f"counts.{number}-01") for number in range(2, 2 + WINDOWS)]
        counts = [total(file) for file in files]
    version = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=False).stdout
    return counted(counts, f"callgrind of {version.strip()}", answer["vectors"])


def last_answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The answer of the job under callgrind.

    Raises:
        Fault: Its own, or that it gave none.
    """
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        message = f"without an answer under valgrind, which ended with status {done.returncode}: {last[:200]}"
        raise Fault("environment", message) from None
    if "error" in answer:
        told = answer["error"]
        fault = Fault(told["kind"], told["message"], told["hint"])
        fault.model = told["model"]
        raise fault
    return dict(answer)


def total(file: Path) -> int:
    """Instructions that one of callgrind's files tells."""
    told = first_match(str(file), r"(?m)^totals: (\d+)$")
    if not told:
        raise Fault(
            "environment", "on a machine whose callgrind wrote no totals", "Is valgrind 3.19 or newer?"
        )
    return int(told)


def valgrind_marks() -> Callable[[], None]:
    """A function that has callgrind write its counts and begin anew; counting starts here."""
    try:
        ask = ValgrindRequest()
    except OSError as reason:
        message = f"on a machine that runs no code made at run time ({reason.strerror})"
        raise Fault("environment", message) from None
    if not ask(ON_VALGRIND):
        raise Fault("worker", "asked for counts of callgrind, but not run by it")
    ask(START)

    def mark() -> None:
        ask(DUMP)

    return mark


class ValgrindRequest:
    """Asks the valgrind that runs this process; on a bare processor the answer to anything is 0."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.page.write(VALGRIND_CALL)
        self.start = ctypes.c_char.from_buffer(self.page)
        function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64)
        self.call = function(ctypes.addressof(self.start))
        self.request = (ctypes.c_uint64 * 6)()

    def __call__(self, code: int) -> int:
        """The answer to a request."""
        self.request[0] = code
        return int(self.call(ctypes.addressof(self.request), 0))
