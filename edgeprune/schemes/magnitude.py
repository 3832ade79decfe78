"""Group magnitude: the norm of the weights that produce a unit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edgeprune.channel_select import SELECT
from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.schemes.looking import LookingScheme
from edgeprune.schemes.options import option
from edgeprune.schemes.scores import Scores, movable


@dataclass(frozen=True)
class Magnitude(LookingScheme):
    """Score of a unit: L1 or L2 norm of all convolution and linear weights that produce it.

    ===================  ==========================================  ===========
    symbol               meaning                                     shape
    ===================  ==========================================  ===========
    w_u                  weights of every producing layer's rows of   (weights,)
                         unit u, end to end
    s_u = ||w_u||_p      score                                       (units,)
    s_u / mean_v s_v     score with ``normalize="mean"``             (units,)
    ===================  ==========================================  ===========

    Norms grow with the number of weights and differ by layer, so one threshold over all groups would empty
    the layers with few inputs first. Divided by the group's mean, a score says how a unit stands among the
    units that it is cut with, and one threshold makes sense.

    Source:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, section 3.1 (L1 of a
        convolution's rows); the norm over a whole group as in Fang et al. 2023, "DepGraph",
        arXiv 2301.12900, section 3.3, with the mean of the group as its scale.

    Differs:
        - Only the producing weights count, not the consumers' columns nor the norms; of units that a channel
          select picks from a stream, which no weight produces, the consumers' columns count.
        - Scores of different layers are compared (the authors prune each layer by its own share).

    Example:
        >>> Magnitude(p=2).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    p: Literal[1, 2] = option(1, "1 for the L1 norm, 2 for the L2 norm")
    normalize: Literal["mean", "none"] = option("mean", "divide by the mean of the group, or not")

    name: ClassVar[str] = "magnitude"

    def score(self, model: nn.Module, groups: tuple[ChannelGroup, ...], data: Data) -> Scores:
        """Score the units of every group that weights produce, or read; the data are not looked at."""
        del data
        state = model.state_dict()
        scores = {}
        for group in movable(groups):
            powers = self._powers(group, "out", state)
            if powers is None and group.members[0].tensor.endswith(f".{SELECT}"):
                powers = self._powers(group, "in", state)
            if powers is None:
                continue
            score = powers if self.p == 1 else powers.sqrt()
            if self.normalize == "mean" and score.sum() > 0:
                score = score / score.mean()
            # Weights of 0 make a unit constant, not absent: only a norm weight of 0 is known to be free.
            scores[group.name] = score.float().clamp_min(torch.finfo(torch.float32).tiny)
        return Scores(scores, facts={"options": asdict(self)})

    def _powers(self, group: ChannelGroup, role: str, state: dict[str, Tensor]) -> Tensor | None:
        """Per unit the sum of |w|^p of weights of a role, in float64; None if the group has none."""
        total = None
        for member in group.members:
            weight = state.get(member.tensor)  # None: a select, which the dense network does not have
            if member.role != role or member.norm is not None or weight is None or weight.ndim < 2:
                continue
            others = [axis for axis in range(weight.ndim) if axis != member.axis]
            norms = torch.linalg.vector_norm(weight.detach(), self.p, dim=others, dtype=torch.float64).cpu()
            places = torch.tensor([place for indices in member.indices for place in indices])
            units = torch.tensor([unit for unit, indices in enumerate(member.indices) for _ in indices])
            if total is None:
                total = torch.zeros(group.size, dtype=torch.float64)
            total.index_add_(0, units, norms.pow(self.p)[places])
        return total
