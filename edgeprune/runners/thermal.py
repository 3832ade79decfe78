"""How warm an Android device is, and whether it slows itself down. Device side: no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Android's names, in order of its numbers: PowerManager.THERMAL_STATUS_*.
STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
KINDS = {0: "CPU", 1: "GPU", 2: "battery", 3: "skin", 9: "NPU"}
LOW_BATTERY = 20  # percent, below which Android may save power
WARMED = 5.0  # degrees Celsius worth a word


@dataclass(frozen=True)
class Thermal:
    """What a device says of its heat.

    Attributes:
        status: 0 (not throttling) to 6; None if this Android does not tell.
        celsius: The hottest sensor of each kind.
        battery_percent: Charge; None if it has no battery.
        saves_power: Whether the battery saver is on.
    """

    status: int | None
    celsius: dict[str, float]
    battery_percent: int | None
    saves_power: bool

    def text(self) -> str:
        """For people."""
        parts = [f"{kind} {value:.1f} °C" for kind, value in sorted(self.celsius.items())]
        if self.status is not None:
            parts.insert(0, f"throttling: {_word(self.status)}")
        return ", ".join(parts) or "not told"


def read_thermal(service: str, battery: str, low_power: str) -> Thermal:
    """From what ``dumpsys thermalservice``, ``dumpsys battery``, ``settings get global low_power`` print."""
    status = re.search(r"Thermal Status: (\d+)", service)
    # Sensors are listed twice, as cached and as read now; the latter come last.
    now = service.rpartition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    celsius: dict[str, float] = {}
    for value, kind in re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=(\d+),", now):
        if int(kind) in KINDS and float(value) > 0:  # 0: a sensor that is not fitted
            name = KINDS[int(kind)]
            celsius[name] = max(celsius.get(name, float(value)), float(value))
    tenths = re.search(r"^\s*temperature: (-?\d+)", battery, re.MULTILINE)
    if tenths:
        celsius["battery"] = int(tenths[1]) / 10
    level = re.search(r"^\s*level: (\d+)", battery, re.MULTILINE)
    return Thermal(
        int(status[1]) if status else None,
        celsius,
        int(level[1]) if level else None,
        low_power.strip() == "1",
    )


def thermal_notes(before: Thermal, after: Thermal) -> list[str]:
    """What of the heat makes times doubtful."""
    notes = []
    for when, state in (("before", before), ("after", after)):
        if state.status:
            notes.append(
                f"The device was throttling {when} the measurement (status {state.status} of 6, "
                f"{_word(state.status)}): let it cool down, take it out of its case, and measure again."
            )
    if after.status is None:
        notes.append("This device does not say whether it throttles: look at the drift between processes.")
    for kind in sorted(before.celsius.keys() & after.celsius.keys()):
        was, now = before.celsius[kind], after.celsius[kind]
        if now - was >= WARMED:
            notes.append(
                f"The {kind} went from {was:.1f} to {now:.1f} °C: a device that is warm for longer is slower."
            )
    if before.saves_power or after.saves_power:
        notes.append("The battery saver is on, which slows the processor: turn it off and measure again.")
    if after.battery_percent is not None and after.battery_percent < LOW_BATTERY:
        notes.append(f"The battery is at {after.battery_percent} %: charge it, since devices slow down then.")
    return notes


def _word(status: int) -> str:
    return STATUSES[status] if status < len(STATUSES) else str(status)
