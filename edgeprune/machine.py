"""What this machine has: its processor, programs beside it, what is missing. Device side: no torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import MeasurementError
from edgeprune.runners.android import CONNECT_S, run_adb

# What of a processor decides how fast networks run on it, as Linux calls it.
FEATURES = {
    "sse4_2": "", "avx2": "", "fma": "", "f16c": "", "avx512f": "", "avx512_bf16": "",
    "avx_vnni": "int8", "avx512_vnni": "int8", "amx_int8": "int8", "amx_bf16": "",
    "asimd": "", "fphp": "", "asimdhp": "", "asimddp": "int8", "i8mm": "int8", "bf16": "",
    "sve": "", "sve2": "",
}  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")
HOST_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxsim", "safetensors", "scipy", "sklearn")
BROWSER_PACKAGES = ("segno", "cryptography")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """What the system tells of the processor.

    Attributes:
        features: Those of ``FEATURES`` that it has, in their order; empty where nothing tells.
        physical_cores: Cores that do not share their units with another thread; None where nothing tells.
        int8: Whether it multiplies bytes in one step, so that int8 networks are faster; None: unknown.
        thread_variables: Of the environment, those that decide on threads, as they are set.
    """

    features: tuple[str, ...]
    physical_cores: int | None
    int8: bool | None
    thread_variables: dict[str, str]


@dataclass(frozen=True)
class Missing:
    """Something that is not here.

    Attributes:
        what: Its name.
        needed_for: What it takes it for.
        command: What installs it.
    """

    what: str
    needed_for: str
    command: str


@dataclass(frozen=True)
class Devices:
    """Android devices.

    Attributes:
        adb: Path of adb, or None.
        found: Serial and state of each device as adb lists them, and its model if it says so.
        why_not: Why adb lists nothing, or "".
    """

    adb: str | None
    found: tuple[tuple[str, str, str], ...] = ()
    why_not: str = ""


def read_processor(cpuinfo: Path | None = None) -> Processor:
    """Ask the system for the processor; of another system than Linux little is known."""
    try:
        text = (cpuinfo or CPUINFO).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    words = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    has = set(words[1].split()) if words else set()
    features = tuple(name for name in FEATURES if name in has)
    cores = set(re.findall(r"^physical id\s*:\s*(\d+)\n(?:.*\n)*?core id\s*:\s*(\d+)$", text, re.MULTILINE))
    return Processor(
        features,
        len(cores) or None,
        any(FEATURES[name] == "int8" for name in features) if has else None,
        {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    )


def find_browsers() -> tuple[str, ...]:
    """Paths of the browsers on the PATH."""
    found = [shutil.which(name) for name in BROWSERS]
    return tuple(dict.fromkeys(path for path in found if path))


def find_devices() -> Devices:
    """Ask adb for its devices, if there is an adb."""
    adb = shutil.which("adb")
    if adb is None:
        return Devices(None, why_not="adb is not installed")
    try:
        said = run_adb("could not list the devices", [adb, "devices", "-l"], CONNECT_S)
    except MeasurementError:
        hint = "Restart it: `adb kill-server`."
        return Devices(adb, why_not=f"`adb devices` is still busy after {CONNECT_S:g} s. {hint}")
    except OSError as reason:
        return Devices(adb, why_not=f"{adb} does not start: {reason.strerror or reason}")
    if said.returncode:
        last = (said.stderr.strip().splitlines() or ["no message"])[-1]
        return Devices(adb, why_not=f"adb devices failed: {last[:200]}")
    found = []
    for line in said.stdout.splitlines():
        # "* daemon started successfully *" and the heading have no such form.
        match = re.match(
            r"(\S+)\s+(device|unauthorized|offline|recovery|sideload|no permissions)\b(.*)", line
        )
        if match:
            model = re.search(r"\bmodel:(\S+)", match[3])
            found.append((match[1], match[2], model[1] if model else ""))
    return Devices(adb, tuple(found), "" if found else "no device is connected")


def find_missing(browsers: Sequence[str]) -> tuple[Missing, ...]:
    """What is not here, and the command that installs it.

    Args:
        browsers: Those that were found.
    """
    mac = platform.system() == "Darwin"

    def system(package: str, cask: str) -> str:
        return f"brew install {cask}" if mac else f"sudo apt install {package}"

    found = []
    absent = [name for name in HOST_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        command = 'pip install "edgeprune[train]"'
        found.append(Missing(", ".join(absent), "training, pruning and export", command))
    absent = [name for name in BROWSER_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        command = 'pip install "edgeprune[browser]"'
        found.append(Missing(", ".join(absent), "phones by their browser", command))
    programs = (
        ("adb", "Android devices", system("adb", "--cask android-platform-tools")),
        ("ssh", "boards", system("openssh-client", "openssh")),
        ("valgrind", "counting instructions", system("valgrind", "valgrind")),
        ("npm", "onnxruntime-web for browsers", system("npm", "node")),
    )
    for name, use, command in programs:
        # valgrind, and what it counts with, is for x86-64 on Linux.
        here = name != "valgrind" or (not mac and platform.machine().lower() in ("x86_64", "amd64"))
        if here and shutil.which(name) is None:
            found.append(Missing(name, use, command))
    if not browsers:
        found.append(Missing("a browser", "measuring in one here", system("chromium", "--cask chromium")))
    return tuple(found)
