"""What the schemes share that look at a network and leave it as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.schemes.options import check_options
from edgeprune.schemes.scores import Scores
from edgeprune.training import Progress


@dataclass(frozen=True)
class LookingScheme(ABC):
    """A scheme that does not train: it has no checkpoint and no progress to report."""

    name: ClassVar[str]
    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_options(self)

    def fit(
        self,
        model: nn.Module,
        groups: tuple[ChannelGroup, ...],
        data: Data,
        *,
        checkpoint: Path | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Scores:
        """As ``score``."""
        del checkpoint, on_progress
        return self.score(model, groups, data)

    @abstractmethod
    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every group that is not frozen and that the method can judge."""
