"""What else happened on the machine while something was timed, from counters that the kernel keeps."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from .common import Job, first_match

ROOT = Path("/")


def cpu_quota() -> float | None:
    """Processors' worth of time that the control groups of this process allow; None: no limit is known."""
    limits = []
    for folder in control_groups():
        # Version 2 keeps "quota period" or "max period" in one file, version 1 has a file for each.
        both = re.match(r"(\d+) (\d+)", _text(folder / "cpu.max"))
        apart = (_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
        quota, period = both.groups() if both else apart
        with contextlib.suppress(ValueError, ZeroDivisionError):
            share = int(quota) / int(period)
            limits += [share] if share > 0 else []
    return min(limits, default=None)


def control_groups() -> Iterator[Path]:
    """Folders of the control groups that this process is in, each with those above it."""
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = ROOT / "sys/fs/cgroup" / controllers
        inner = Path(path.lstrip("/"))
        # Inside a container its own group is the mount's root, whatever the path says.
        yield from dict.fromkeys(mount / part for part in (inner, *inner.parents))


class Disturbance:
    """Counts from its making on. What the system does not tell is None."""

    def __init__(self) -> None:
        self.before = _counters()

    def so_far(self) -> Job:
        """Shares and counts since the start.

        ``steal_share``: of the time that the machine's processors wanted to run, what the hypervisor gave to
        others. ``others_cpus``: processors that other processes kept busy, on average. ``throttled_share``:
        of the time, how long the control group's quota held this process up. ``thermal_events``: times that
        the processor was slowed down for heat.
        """
        after = _counters()
        gone = {name: after[name] - start for name, start in self.before.items() if name in after}
        shares: Job = dict.fromkeys(("steal_share", "others_cpus", "throttled_share"))
        wall_s = max(gone["wall_s"], 1e-9)
        if "busy_s" in gone:
            wanted_s = gone["busy_s"] + gone["steal_s"]
            shares["steal_share"] = gone["steal_s"] / wanted_s if wanted_s > 0 else 0.0
            shares["others_cpus"] = max(0.0, (gone["busy_s"] - gone["own_s"]) / wall_s)
        if "throttled_s" in gone:
            shares["throttled_share"] = gone["throttled_s"] / wall_s
        return {**shares, "thermal_events": gone.get("thermal_events")}


def _counters() -> dict[str, float]:
    """Counters by name, without those that this system does not have."""
    counters = {"wall_s": time.monotonic(), "own_s": time.process_time()}
    line = first_match(str(ROOT / "proc/stat"), r"cpu +([\d ]+)").split()
    if len(line) >= 8:
        user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in line[:8])
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        counters["busy_s"] = (user + nice + system + irq + softirq) / ticks_per_s
        counters["steal_s"] = steal / ticks_per_s
    throttled = [time_s for time_s in map(_throttled_s, control_groups()) if time_s is not None]
    if throttled:
        counters["throttled_s"] = max(throttled)
    cores = (ROOT / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [int(text) for text in map(_text, cores) if text.isdigit()]
    if counts:
        counters["thermal_events"] = sum(counts)
    return counters


def _throttled_s(folder: Path) -> float | None:
    for pattern, per_s in ((r"throttled_usec (\d+)", 1e6), (r"throttled_time (\d+)", 1e9)):
        found = re.search(pattern, _text(folder / "cpu.stat"))
        if found:
            return int(found[1]) / per_s
    return None


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""
