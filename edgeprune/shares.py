"""How much of a network hangs on its channel groups: shares of params and MACs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_params, macs_by_weight, shell_of
from edgeprune.cutting import names_of, tensors_of


@dataclass(frozen=True)
class Portion:
    """What would go.

    Attributes:
        params: Entries of parameters.
        macs: Multiply-adds at batch 1.
        params_share: Of all params, 0 to 1.
        macs_share: Of all MACs, 0 to 1.
    """

    params: int
    macs: int
    params_share: float
    macs_share: float


class Shares:
    """Weighs channel groups against their network.

    Share of the params: entries of parameters (buffers are none) that would go if all units of the groups
    went, over all params. An entry that goes by its row and by its column counts once; what two groups share
    counts in each of them when they are weighed one by one.

    Share of the MACs: for each weight, the MACs of the products that read it, times the fraction of its
    entries that would go; over all MACs.

    Both say how much hangs on the groups and are upper bounds of a cut: in each group a unit stays at least.

    Args:
        model: The network that the groups are of; it is not changed.
        example: Input (N, C, H, W), or a tuple of inputs; only the first sample's shape matters.

    Attributes:
        params: Of the network.
        macs: Of the network.
        unbooked_macs: Those that read no parameter or buffer (attention, computed weights): in no share.

    Raises:
        ModelError: The network does not run without numbers.

    Example:
        >>> import torch
        >>> from edgeprune.groups import find_groups
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> example = torch.zeros(1, 3, 8, 8)
        >>> first, last = find_groups(net, example)
        >>> Shares(net, example).of([first])
        Portion(params=256, macs=8928, params_share=0.9846153846153847, macs_share=1.0)
    """

    def __init__(self, model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> None:
        shell = shell_of(model)
        tensors = tensors_of(shell)
        self._key = names_of(shell)  # a shared tensor counts once
        names = set(self._key.values())
        self._shape = {key: tuple(tensors[key].shape) for key in names}
        self._is_parameter = {key for key in names if isinstance(tensors[key], nn.Parameter)}
        self._macs, self.unbooked_macs = macs_by_weight(shell, example)
        self.params = count_params(shell)
        self.macs = sum(self._macs.values()) + self.unbooked_macs

    def of(self, groups: Iterable[ChannelGroup]) -> Portion:
        """What would go if all units of these groups went."""
        gone: dict[str, dict[int, set[int]]] = {}
        for group in groups:
            for member in group.members:
                if member.tensor not in self._key:
                    continue  # a channel select, which only the slim network has
                positions = gone.setdefault(self._key[member.tensor], {}).setdefault(member.axis, set())
                positions.update(position for unit in member.indices for position in unit)
        params = macs = 0
        for key, axes in gone.items():
            total = kept = 1
            for axis, length in enumerate(self._shape[key]):
                total *= length
                kept *= length - len(axes.get(axis, ()))
            params += total - kept if key in self._is_parameter else 0
            macs += self._macs.get(key, 0) * (total - kept) // total if total else 0
        return Portion(params, macs, params / max(self.params, 1), macs / max(self.macs, 1))

    def multiplies(self, key: str) -> bool:
        """Whether a tensor is a weight, that is: a product reads it."""
        return self._key.get(key) in self._macs
