"""Which groups a forward pass treats alike: of these one stands for all when something fails."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.cutting import tensors_of
from edgeprune.labels import Choice

PLAIN = (bool, int, float, str, tuple, type(None))
"""Attributes of these types may say how a module's forward pass goes."""


def kinds_of(
    model: nn.Module, groups: Iterable[ChannelGroup], choices: dict[str, list[Choice]]
) -> dict[str, Hashable]:
    """By name of a group that nodes with policies touch, its kind.

    Groups are of one kind if the same lines of code, on modules of the same classes and settings, do the same
    to tensors of the same shapes, at the same places.

    Args:
        model: Network.
        groups: Groups.
        choices: Per group's name, what touches it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(model).items()}
    said: dict[str, Hashable] = {}

    def settings(name: str) -> Hashable:
        """Class and settings of a module and of those that it is in."""
        if name not in said:
            module = modules.get(name)
            plain = (
                sorted((key, repr(value)) for key, value in vars(module).items() if isinstance(value, PLAIN))
                if module is not None
                else ()
            )
            outer = settings(name.rpartition(".")[0]) if name else None
            said[name] = (type(module), tuple(plain), outer)
        return said[name]

    kinds: dict[str, Hashable] = {}
    for group in groups:
        touching = choices[group.name]
        if not touching:
            continue
        if any(choice.code is None for choice in touching):
            kinds[group.name] = group.name
            continue
        members = tuple(
            (
                member.tensor.rpartition(".")[2], shapes[member.tensor], member.axis, member.role,
                member.indices, settings(member.tensor.rpartition(".")[0]),
            )
            for member in group.members
        )  # fmt: skip
        nodes = tuple((choice.code, choice.policies, settings(choice.module)) for choice in touching)
        kinds[group.name] = (group.size, members, nodes, group.inexact_because is None)
    return kinds
