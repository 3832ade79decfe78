"""Taking over what another run has already made of the same inputs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from edgeprune.files import replacing, sha256_file
from edgeprune.pipeline.folder import RunFolder, is_run_folder, open_run

NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES}
"""Reasons of a file system for which a file is copied instead."""


def take_over(
    run: RunFolder, stage: str, inputs: str, outputs: tuple[str, ...], twins: Iterable[Path]
) -> str | None:
    """Take a stage's files and facts from another run, if one has made them of the same inputs.

    The files are hard links where the file system has them, else copies. No stage writes into a file: it puts
    a new one in its place, so that no run changes another's.

    Args:
        run: Takes.
        stage: Name of the stage.
        inputs: Hash of what decides its result.
        outputs: Files that it writes.
        twins: Folders of other runs; one that holds none, or is being written, is passed over.

    Returns:
        Name of the folder that it was taken from; None: there is none.
    """
    for path in twins:
        if path == run.path or not is_run_folder(path):
            continue
        other = open_run(path)
        entry = other.stages.get(stage)
        if entry is None or entry["inputs"] != inputs or set(entry["outputs"]) != set(outputs):
            continue
        if not all(other.file(name).is_file() for name in outputs):
            continue
        for name in outputs:
            link(other.file(name), run.file(name))
        # The other run may have been at work meanwhile, or somebody has written over its file.
        if any(sha256_file(run.file(name)) != sha256 for name, sha256 in entry["outputs"].items()):
            continue
        run.record(stage, inputs, outputs, other.facts(stage))
        return path.name
    return None


def link(source: Path, place: Path) -> None:
    """Make a file the same as another: a hard link, or a copy where the file system has none."""
    with replacing(place) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError as reason:
            if reason.errno not in NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
