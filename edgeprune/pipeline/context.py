"""What the stages of one run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.pipeline.folder import Listener, RunFolder, Silent
from edgeprune.target import Target, load_target

if TYPE_CHECKING:
    from torch import device

    from edgeprune.data import Data
    from edgeprune.release import Release


@dataclass
class Context:
    """A run folder, who listens, and what is loaded once: the target and the data.

    Attributes:
        run: The run folder.
        listener: Is told what happens.
        download: Fetch a data set that is not there.
        further: Another target than the run's own, with its short name: its files carry the name.
        twins: Other run folders. What one of them has made of the same inputs is taken, not made again.
    """

    run: RunFolder
    listener: Listener = field(default_factory=Silent)
    download: bool = False
    further: tuple[str, Target] | None = None
    twins: tuple[Path, ...] = ()

    @cached_property
    def target(self) -> Target:
        """The run's target."""
        return load_target(self.run.settings.target) if self.further is None else self.further[1]

    def named(self, name: str) -> str:
        """A file's name, of a further target with its short name before the suffix."""
        if self.further is None:
            return name
        stem, _, suffix = name.rpartition(".")
        return f"{stem}.{self.further[0]}.{suffix}"

    @cached_property
    def release(self) -> Release | None:
        """The earlier release that the run is held against."""
        from edgeprune.release import load_release

        against = self.run.settings.against
        return None if against is None else load_release(against)

    @cached_property
    def data(self) -> Data:
        """The run's data, normalised as its network wants it."""
        from edgeprune.pipeline.host import data_of

        return data_of(self)

    @cached_property
    def device(self) -> device:
        """Where trainings run."""
        from edgeprune.pipeline.host import device_of

        return device_of(self.run.settings.device)
