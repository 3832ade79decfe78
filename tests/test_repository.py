from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeprune.repository import commit_of


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-C", str(folder)]
    return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout


def test_commit_and_dirt(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    (repository / "sub").mkdir(parents=True)
    assert commit_of(repository) is None
    git(repository, "init", "-q")
    assert commit_of(repository) is None  # no commit yet
    for name in ("code.py", "release.json"):
        (repository / name).write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "x")
    head = git(repository, "rev-parse", "HEAD").strip()
    (repository / "new.txt").write_text("a run's files are no change of the code")
    assert commit_of(repository / "sub") == {"commit": head, "dirty": False}
    release = repository / "release.json"
    release.write_text("2")
    assert commit_of(repository) == {"commit": head, "dirty": True}
    assert commit_of(repository / "sub", ignore=release) == {"commit": head, "dirty": False}
    (repository / "code.py").write_text("2")
    assert commit_of(repository, ignore=release) == {"commit": head, "dirty": True}
    assert commit_of(repository, ignore=tmp_path / "elsewhere.json") == {"commit": head, "dirty": True}


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    assert commit_of(tmp_path) is not None
    monkeypatch.setenv("PATH", "")
    assert commit_of(tmp_path) is None
