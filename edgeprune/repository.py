"""The git commit that a user's folder is at. Device side: no torch."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

SECONDS = 10.0


def commit_of(folder: Path | None = None, *, ignore: Path | None = None) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether files under git differ from it.

    Args:
        folder: A folder inside a repository; None: the working folder.
        ignore: A file whose own change does not count, e.g. the release file.

    Returns:
        ``commit`` in hex and ``dirty``; None outside of a repository, before its first commit, or without
        git. Nothing is said of the folder's path or of the repository's address.
    """
    folder = Path.cwd() if folder is None else folder
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return None
    paths = [] if ignore is None else ["--", ":/", f":(exclude){ignore.resolve()}"]
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", *paths)
    if changed is None and paths:  # the file lies outside of the repository
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None if it fails or is not there. It takes no lock, so that it disturbs nobody."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
