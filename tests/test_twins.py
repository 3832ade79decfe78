"""Taking over what another run has made: links, copies where there are none, and nothing that has changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeprune.files import write_text
from edgeprune.pipeline.folder import RunFolder, open_run
from edgeprune.pipeline.settings import Settings
from edgeprune.pipeline.twins import take_over


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """A run that has made ``a.txt`` of the inputs ``in``, and one that has nothing."""
    one, two = (RunFolder(tmp_path / name, Settings("m")) for name in ("one", "two"))
    one.path.mkdir()
    one.file("a.txt").write_text("made")
    one.record("stage", "in", ("a.txt",), {"found": 1})
    two.path.mkdir()
    return one, two


def test_files_and_facts_are_taken_as_they_are(runs: tuple[RunFolder, RunFolder]) -> None:
    one, two = runs
    twins = (two.path, two.path.with_name("none"), one.path)
    assert take_over(two, "stage", "in", ("a.txt",), twins) == "one"
    assert open_run(two.path).stages == one.stages
    assert two.file("a.txt").stat().st_ino == one.file("a.txt").stat().st_ino
    assert two.is_current("stage", "in", ("a.txt",))
    # Who writes anew puts a file in its place: the other run's stays.
    write_text(two.file("a.txt"), "other")
    assert one.file("a.txt").read_text() == "made"
    assert not [path for path in two.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("stage", "inputs", "outputs"),
    [("other", "in", ("a.txt",)), ("stage", "else", ("a.txt",)), ("stage", "in", ("a.txt", "b.txt"))],
)
def test_only_the_same_of_the_same_is_taken(
    runs: tuple[RunFolder, RunFolder], stage: str, inputs: str, outputs: tuple[str, ...]
) -> None:
    one, two = runs
    assert take_over(two, stage, inputs, outputs, (one.path,)) is None
    assert list(two.path.iterdir()) == []


def test_a_file_that_somebody_has_changed_or_taken_away_is_not_taken(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    one, two = runs
    one.file("a.txt").write_text("changed")
    assert take_over(two, "stage", "in", ("a.txt",), (one.path,)) is None
    assert "stage" not in two.stages
    one.file("a.txt").unlink()
    assert take_over(two, "stage", "in", ("a.txt",), (one.path,)) is None


def test_a_file_system_without_links_gets_copies(
    runs: tuple[RunFolder, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = runs

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert take_over(two, "stage", "in", ("a.txt",), (one.path,)) == "one"
    assert two.file("a.txt").read_text() == "made"
    assert two.file("a.txt").stat().st_ino != one.file("a.txt").stat().st_ino

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        take_over(two, "stage", "in", ("a.txt",), (one.path,))
