"""Following a forward pass, operator by operator: which layers it uses, and what becomes of their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from edgeprune.cutting import tensors_of
from edgeprune.moments import Product, same_padding
from edgeprune.oracle import ASKS

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
LAYERS = {*CONVOLUTIONS, F.linear}
ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias")


@dataclass(frozen=True)
class Sum:
    """Where a layer's output is added to what came before the layer.

    Attributes:
        result: Number of the operator that adds.
        other: Number of the operator that made what is added.
    """

    result: int
    other: int


@dataclass(frozen=True)
class Site:
    """A layer's place in a forward pass.

    Attributes:
        number: Of its operator.
        weight: State-dict key.
        bias: State-dict key, or None.
        mean: State-dict key of the running mean of the batch norm that alone reads the layer, or None.
        norm: Number of that batch norm's operator, or None.
        sum: What the layer's output, or the norm's, is added to and is read by nothing else; or None.
    """

    number: int
    weight: str
    bias: str | None
    mean: str | None
    norm: int | None
    sum: Sum | None


class Steps(TorchFunctionMode):
    """Numbers the operators of a forward pass that make tensors, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See ``torch.overrides.TorchFunctionMode``."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ASKS or name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        number = self.number
        result = self.step(number, func, args, kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.number = number + 1
        return result

    def step(
        self, number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator; ``number`` is its own if it makes a tensor."""
        del number
        return func(*args, **kwargs)


class Follow(Steps):
    """Finds the sites of a network in a forward pass in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.keys = {id(tensor): key for key, tensor in reversed(tensors_of(model).items())}
        self.names: list[str] = []
        self._maker: Any = WeakIdKeyDictionary()
        self._readers: dict[int, list[int]] = {}
        self._operands: dict[int, list[tuple[int | None, torch.Size]]] = {}
        self._shape: dict[int, torch.Size] = {}
        self._layers: dict[int, tuple[str, str | None]] = {}
        self._norms: dict[int, str] = {}
        self._uses: Counter[str] = Counter()

    def step(
        self, number: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one operator and note who reads whom."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = [(self._maker.get(tensor), tensor.shape) for tensor in tensors]
        for key in {self.keys[id(tensor)] for tensor in tensors if id(tensor) in self.keys}:
            self._uses[key] += 1
        if func in LAYERS:
            given = named(ARGUMENTS, args, kwargs)
            weight, bias = (self.keys.get(id(given.get(name))) for name in ("weight", "bias"))
            if weight is not None and (bias is not None or given.get("bias") is None):
                self._layers[number] = (weight, bias)
        if func is F.batch_norm:
            given = named(NORM_ARGUMENTS, args, kwargs)
            mean = self.keys.get(id(given.get("running_mean")))
            if mean is not None:
                self._norms[number] = mean
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if made:
            for maker, _ in operands:
                if maker is not None:
                    self._readers.setdefault(maker, []).append(number)
            for tensor in made:
                self._maker[tensor] = number
            self.names.append(getattr(func, "__name__", ""))
            if len(made) == 1 and kwargs.get("alpha", 1) == 1:
                self._shape[number], self._operands[number] = made[0].shape, operands
        return result

    def sites(self) -> Iterator[Site]:
        """The layers that are used once, in order."""
        for number, (weight, bias) in self._layers.items():
            if self._uses[weight] > 1 or (bias is not None and self._uses[bias] > 1):
                continue
            reader = self._only_reader(number)
            mean = self._norms.get(reader) if reader is not None else None
            norm = reader if mean is not None and self._uses[mean] == 1 else None
            found = self._sum_of(number if norm is None else norm, number)
            yield Site(number, weight, bias, mean if norm is not None else None, norm, found)

    def _only_reader(self, number: int) -> int | None:
        readers = self._readers.get(number, [])
        return readers[0] if len(readers) == 1 else None

    def _sum_of(self, last: int, layer: int) -> Sum | None:
        """The addition of the output of ``last`` to what was made before ``layer``."""
        reader = self._only_reader(last)
        if reader is None or self.names[reader] not in ADDITIONS or reader not in self._shape:
            return None
        operands = self._operands[reader]
        others = [maker for maker, shape in operands if maker != last and shape == self._shape[reader]]
        whole = len(operands) == 2 and all(shape == self._shape[reader] for _, shape in operands)
        other = others[0] if whole and len(others) == 1 else None
        return Sum(reader, other) if other is not None and other < layer else None


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def product_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product:
    """What a convolution or linear layer is called with."""
    given = named(ARGUMENTS, args, kwargs)
    weight = given["weight"]
    if func is F.linear:
        return Product(weight)
    axes = CONVOLUTIONS[func]

    def each(value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        return values * axes if len(values) == 1 else values

    dilation = each(given.get("dilation", 1))
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        pairs = same_padding(weight.shape[2:], dilation) if padding == "same" else ((0, 0),) * axes
    else:
        pairs = tuple((size, size) for size in each(padding))
    return Product(weight, each(given.get("stride", 1)), pairs, dilation, given.get("groups", 1))


def product_of_module(layer: nn.Module) -> Product:
    """What a convolution or linear module is called with; it is not transposed."""
    if isinstance(layer, nn.Linear):
        return Product(layer.weight)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    assert not layer.transposed
    if isinstance(layer.padding, str):
        same = same_padding(layer.kernel_size, layer.dilation)
        pairs = same if layer.padding == "same" else ((0, 0),) * len(layer.kernel_size)
    else:
        pairs = tuple((int(size), int(size)) for size in layer.padding)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return Product(layer.weight, layer.stride, pairs, layer.dilation, layer.groups, mode)


def operand(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input of a convolution or linear layer."""
    given: Tensor = named(ARGUMENTS, args, kwargs)["input"]
    return given


def channels_first(func: Callable[..., Any], tensor: Tensor) -> Tensor:
    """(N, C, places) of a layer's input or output, or of a tensor of the same shape."""
    if func is F.linear:
        return tensor.reshape(len(tensor), -1, tensor.shape[-1]).transpose(1, 2)
    return tensor.flatten(2)
