"""Channel selects: norms that read only some channels of a stream that others read too.

In pre-activation ResNets and DenseNets a norm reads a stream that many layers share: a channel could only go
if every reader can do without it. With an index-select in front of it (one Gather in ONNX) a norm reads what
its own consumers need, and the stream stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgeprune.cutting import device_of
from edgeprune.errors import PlanError

SELECT = "channel_select"
"""Name of the buffer of a norm that selects channels."""


class ChannelSelect(nn.Module):
    """What a norm with a channel select is besides its own class.

    Attributes:
        channel_select: int64 (num_features,), the channels of the input that the norm reads.
        stream_channels: Channels of the input.
        plain: The norm's own class.
    """

    channel_select: Tensor
    stream_channels: int
    plain: ClassVar[type[nn.Module]]

    def selected(self, x: Tensor) -> Tensor:
        """(N, stream_channels, ...) -> (N, num_features, ...)."""
        return x.index_select(1, self.channel_select)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The norm of the selected channels."""
        return super().forward(self.selected(x), *args, **kwargs)

    def extra_repr(self) -> str:
        """The norm's own, and how much of the stream it reads."""
        return f"{super().extra_repr()}, reads {len(self.channel_select)} of {self.stream_channels} channels"

    def __reduce__(self) -> tuple[Any, ...]:
        """For copy and pickle, which would look for the class by its name."""
        return blank, (self.plain,), self.__getstate__()  # type: ignore[no-untyped-call]


KINDS: dict[type[nn.Module], type[ChannelSelect]] = {}
"""By class of norms, that of the same norms with a select."""


def selecting(kind: type[nn.Module]) -> type[ChannelSelect]:
    """The class of norms of a class that select channels: ``BatchNorm2d`` -> ``SelectBatchNorm2d``."""
    if kind not in KINDS:
        KINDS[kind] = type(f"Select{kind.__name__}", (ChannelSelect, kind), {"plain": kind})
    return KINDS[kind]


def blank(kind: type[nn.Module]) -> nn.Module:
    """A module of ``selecting(kind)`` that holds nothing yet."""
    made = selecting(kind)
    return made.__new__(made)


def add_selects(model: nn.Module, names: Iterable[str]) -> None:
    """Put a select of all channels in front of norms, in place: the network computes the same.

    The norms stay the same objects, with the same tensors and hooks; one buffer is added to each.

    Args:
        model: Network on any device, the meta device included.
        names: Names of its batch or instance norms.
    """
    for name in names:
        norm = model.get_submodule(name)
        assert isinstance(norm, _NormBase)
        held = (tensor.device for tensor in (norm.weight, norm.running_mean) if tensor is not None)
        norm.register_buffer(SELECT, torch.arange(norm.num_features, device=next(held, device_of(model))))
        vars(norm)["stream_channels"] = norm.num_features
        norm.__class__ = selecting(type(norm))  # type: ignore[assignment]


def can_select(module: nn.Module | None) -> TypeGuard[_NormBase]:
    """Whether a module is a norm that can be given a select."""
    return isinstance(module, _NormBase) and not isinstance(module, ChannelSelect)


def selects_of(model: nn.Module) -> set[str]:
    """State-dict keys of the selects in a network, each under all of its names."""
    modules = model.named_modules(remove_duplicate=False)
    return {f"{name}.{SELECT}" for name, module in modules if isinstance(module, ChannelSelect)}


def select_shape(model: nn.Module, key: str) -> tuple[int, ...] | None:
    """Shape of a select that a norm of ``model`` could get, by its state-dict key; None: it is none."""
    layer, _, name = key.rpartition(".")
    norm = module_at(model, layer)
    return (norm.num_features,) if name == SELECT and can_select(norm) else None


def module_at(model: nn.Module, name: str) -> nn.Module | None:
    """A module by one of its names, or None."""
    return dict(model.named_modules(remove_duplicate=False)).get(name)


def check_selects(model: nn.Module, names: Iterable[str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a network in which the norms that are to select channels are not as expected.

    Args:
        model: Network.
        names: Names of the norms.
        shapes: Expected shape of each select, by state-dict key.

    Raises:
        PlanError: A norm is not there, selects already, or has another width.
    """
    for name in names:
        key = f"{name}.{SELECT}"
        if select_shape(model, key) != shapes[key]:
            found = module_at(model, name)
            raise PlanError(
                "could not use the plan",
                where=name,
                value="not in the network" if found is None else str(found),
                expected=f"a batch or instance norm of {shapes[key][0]} channels, without a channel select",
                hint="A plan fits the dense network that it was made for, not a slim one or another width.",
            )
