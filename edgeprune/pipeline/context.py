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


@dataclass
class Context:
    """A run folder, who listens, and what is loaded once: the target and the data.

    Attributes:
        run: The run folder.
        listener: Is told what happens.
        download: Fetch a data set that is not there.
        twins: Other run folders. What one of them has made of the same inputs is taken, not made again.
    """

    run: RunFolder
    listener: Listener = field(default_factory=Silent)
    download: bool = False
    twins: tuple[Path, ...] = ()

    @cached_property
    def target(self) -> Target:
        """The run's target."""
        return load_target(self.run.settings.target)

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
