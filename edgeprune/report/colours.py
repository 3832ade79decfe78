"""The colours of pages and plots, light and dark. Device side: no torch."""

from __future__ import annotations

COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2024", "#e6e8eb"),
    "soft": ("#5b6069", "#a0a6ae"),
    "line": ("#d9dce1", "#3a4048"),
    "paper": ("#ffffff", "#15181b"),
    "panel": ("#f5f6f8", "#1e2226"),
    "dense": ("#8d4a00", "#f0a35e"),
    "slim": ("#0b62a8", "#6cb6ff"),
    "good": ("#14713d", "#63cf8e"),
    "bad": ("#b3261e", "#ff8f86"),
    "open": ("#7a5900", "#e6c15c"),
    "alike": ("#e8892f", "#965005"),
    "unlike": ("#4c9be8", "#1c63a8"),
}
"""By name, for a light and a dark page. In CSS ``ink`` is ``var(--ink)``.

``ink``, ``soft`` and the states are for text on ``paper`` and ``panel``; ``dense`` and ``slim`` are the two
networks; ``alike`` and ``unlike`` fill cells under ``ink``; ``line`` only parts things.
"""


def variables(scheme: str) -> str:
    """The CSS variables of ``"light"`` or ``"dark"``."""
    place = ("light", "dark").index(scheme)
    return " ".join(f"--{name}: {pair[place]};" for name, pair in COLOURS.items())
