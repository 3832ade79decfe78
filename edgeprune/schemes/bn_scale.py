"""Network slimming's criterion on a network as it is: the size of the batch norm weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.scores import Scores, parameters_by_key, scaled_by_norms, score_by_norms


@dataclass(frozen=True)
class BNScale(LookingScheme):
    """Score of a unit: the largest |gamma| among the norm weights that scale it on its ways to its consumers.

    Source:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
        arXiv 1708.06519, section 3; code Eric-mingjie/network-slimming.

    Differs:
        - No sparse training: gamma is read from the network as it is.
        - A unit that several norms scale (a residual stream) has one score, their maximum; the authors leave
          such units alone. A unit that reaches a consumer without a norm is left out with its group.

    Example:
        >>> BNScale().fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    name: ClassVar[str] = "bn-scale"

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every group that norms scale; the data are not looked at."""
        del data
        gammas = parameters_by_key(model)
        return Scores(score_by_norms(scaled_by_norms(groups), gammas), facts={"options": asdict(self)})
