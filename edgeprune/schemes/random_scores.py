"""Random scores: the floor that every scheme must beat."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable


@dataclass(frozen=True)
class Random(LookingScheme):
    """Uniform scores in (0, 1], which depend on the seed and the group's name alone.

    Source:
        The control of every pruning comparison, e.g. Mittal et al. 2018, arXiv 1801.10447.

    Example:
        >>> Random(seed=1).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    seed: int = option(0, "seed of the scores", at_least=0)

    name: ClassVar[str] = "random"

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every group that is not frozen; nothing but the groups is looked at."""
        del model, data
        scores = {}
        for group in movable(groups):
            number = int.from_bytes(hashlib.sha256(f"{self.seed} {group.name}".encode()).digest()[:7])
            drawn = torch.rand(group.size, generator=torch.Generator().manual_seed(number))
            scores[group.name] = 1 - drawn  # torch draws from [0, 1), and 0 would mean removable for free
        return Scores(scores, facts={"options": asdict(self)})
