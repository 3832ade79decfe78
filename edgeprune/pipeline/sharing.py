"""A run of several processes: rank 0 has the run folder, the others get what they need of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeprune.errors import DataError
from edgeprune.launch import world
from edgeprune.pipeline.folder import RunFolder


@contextlib.contextmanager
def folder_of_rank(run: RunFolder) -> Iterator[RunFolder]:
    """On rank 0 the run folder itself; on the others a temporary one, which may be on another machine."""
    if world().first:
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="edgeprune-rank-") as place:
        yield replace(run, path=Path(place))


def hand_out(run: RunFolder, names: Iterable[str], patterns: Iterable[str]) -> None:
    """Copy files from rank 0's run folder to those of the others.

    Args:
        run: This rank's folder.
        names: Files to copy.
        patterns: As for ``glob``; what there is of them is copied as well.
    """
    here = world()
    if here.size == 1:
        return

    def read() -> dict[str, bytes]:
        extra = [path.name for pattern in patterns for path in run.path.glob(pattern)]
        return {name: run.file(name).read_bytes() for name in (*names, *extra)}

    files = here.from_first(read)
    if not here.first:
        for name, content in files.items():
            run.file(name).write_bytes(content)


def agree_on_data(context: Any) -> None:
    """Load the data on every rank and make sure that it is the same.

    Raises:
        DataError: It is not, e.g. on another machine.
    """
    here = world()
    if here.size == 1:
        return
    if here.local_rank == 0:
        _ = context.data  # one process of a machine may have to download it
    here.gather(None)
    found = here.gather(context.data.identity)
    other = [rank for rank, identity in enumerate(found) if identity != found[0]]
    if other:
        raise DataError(
            "could not share the work",
            where=f"the data of rank {', '.join(map(str, other))}",
            value="another than that of rank 0",
            expected="the same files on every machine",
            hint="Copy the data set to the same place on each machine.",
        )
