"""Golden files: EDGEPRUNE_WRITE_GOLDEN=1 writes them anew, for `git diff tests/golden` to be read."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    """Compare with a golden file, or write it."""
    path = GOLDEN / name
    if os.environ.get("EDGEPRUNE_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} has changed: EDGEPRUNE_WRITE_GOLDEN=1 renews it"
