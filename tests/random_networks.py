"""Random networks for the property test: a printable specification, a strategy for it, a module that runs it.

A specification is a list of operations over a pool of feature maps. Each operation is a kind, the map that it
reads (0 is the newest) and four numbers that pick its options, so any list is a network: what does not fit
the map that it finds (chunks of an odd number of channels ...) is left out when the module is built. That
lets hypothesis drop and shrink operations freely.
A counter-example prints as ``Spec(...)`` and can be pasted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

WIDTHS = (4, 6, 8, 12, 3, 2, 5, 9, 10)
MOST_CHANNELS, LARGEST_SIDE, MOST_FEATURES = 24, 16, 400
SHAPES = ((1, 3, 8, 8), (1, 2, 8, 8))
"""Shapes of the inputs."""


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: Name of a function of this file that ``kind`` has marked.
        back: Map that it reads: 0 is the newest, 1 the one before ...
        numbers: Pick its options.
    """

    kind: str
    back: int
    numbers: tuple[int, int, int, int]

    def __repr__(self) -> str:
        return f"Op({self.kind!r}, {self.back}, {self.numbers})"


@dataclass(frozen=True)
class Spec:
    """A network.

    Attributes:
        ops: Operations in order.
        heads: Last operations; their results are the outputs.
        form: What the network returns: ``"tensor"`` (of the first head), ``"tuple"`` or ``"dict"``.
        inputs: 1 or 2.
        seed: Of the weights.
    """

    ops: tuple[Op, ...]
    heads: tuple[Op, ...]
    form: str = "tensor"
    inputs: int = 1
    seed: int = 0


class UnfitError(Exception):
    """The operation does not fit the map that it finds."""


Run = Callable[["Part", Tensor, "Pool", tuple[int, ...]], Any]
KINDS: dict[str, Run] = {}
HEADS: dict[str, Run] = {}
WEIGHTS: dict[str, int] = {}


def kind(weight: int = 1, *, head: bool = False) -> Callable[[Run], Run]:
    """Mark a function as a kind of operation that is drawn ``weight`` times as often as the rarest ones."""

    def put(run: Run) -> Run:
        (HEADS if head else KINDS)[run.__name__] = run
        WEIGHTS[run.__name__] = weight
        return run

    return put


class Part(nn.Module):
    """Layers and hard-coded sizes of one operation, made in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}
        self.built = False

    def get(self, name: str, make: Callable[[], nn.Module | nn.Parameter]) -> Any:
        """The layer or parameter of this name."""
        if name not in self._modules and name not in self._parameters:
            made = make()
            setattr(self, name, made.eval() if isinstance(made, nn.Module) else made)
        return getattr(self, name)

    def size(self, name: str, computed: int, *, hard: bool) -> int:
        """A size: as computed, or as it was in the first forward pass."""
        return self.sizes.setdefault(name, computed) if hard else computed

    def fit(self, condition: bool) -> None:
        """In the first forward pass, leave the operation out unless it fits."""
        if not (condition or self.built):
            raise UnfitError

    def divisor(self, number: int, channels: int) -> int:
        """A divisor of the dense channels, neither 1 nor all."""
        if "divisor" not in self.sizes:
            divisors = [d for d in range(2, channels) if channels % d == 0]
            self.fit(bool(divisors))
            self.sizes["divisor"] = int(pick(number, *divisors))
        return self.sizes["divisor"]


class Pool:
    """Live feature maps (N, C, H, W) and vectors (N, C), newest last."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.maps = list(inputs)
        self.vectors: list[Tensor] = []

    def map(self, back: int) -> Tensor:
        return self.maps[-1 - back % len(self.maps)]

    def vector(self, x: Tensor) -> Tensor:
        return self.vectors[-1] if self.vectors else x.mean((2, 3))

    def put(self, result: Any) -> None:
        for tensor in (result,) if isinstance(result, Tensor) else result:
            (self.maps if tensor.dim() == 4 else self.vectors).append(tensor)


class RandomNet(nn.Module):
    """The network of a specification, in evaluation mode with no norm the identity."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.names = [f"{op.kind}{number}" for number, op in enumerate((*spec.ops, *spec.heads))]
        for name in self.names:
            setattr(self, name, Part())
        self.unfit: set[str] | None = None
        torch.manual_seed(spec.seed)
        self.eval()
        with torch.no_grad():
            left_out: set[str] = set()
            self.run(tuple(torch.randn(shape) for shape in self.shapes), left_out)
            self.unfit = left_out
        for name in left_out:
            delattr(self, name)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return SHAPES[: self.spec.inputs]

    def run(self, inputs: tuple[Tensor, ...], left_out: set[str]) -> list[Tensor]:
        """The outputs; in the first forward pass, note what is left out."""
        first = self.unfit is None
        pool = Pool(tuple(x.clone() for x in inputs))  # in-place operations must not change the inputs
        outputs: list[Tensor] = []
        for name, op in zip(self.names, (*self.spec.ops, *self.spec.heads), strict=True):
            if name in left_out:
                continue
            is_head = op.kind in HEADS
            run = (HEADS if is_head else KINDS)[op.kind]
            try:
                part = getattr(self, name)
                result = run(part, pool.map(op.back), pool, op.numbers)
                if first:
                    check_size(result)
                    part.built = True
            except (UnfitError, RuntimeError, ValueError):
                if not first or is_head:
                    raise
                left_out.add(name)
                continue
            if is_head:
                outputs.append(result)
            else:
                pool.put(result)
        return outputs

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.run(inputs, self.unfit or set())
        if self.spec.form == "tensor":
            return outputs[0]
        return tuple(outputs) if self.spec.form == "tuple" else {"first": outputs[0], "rest": outputs[1:]}


def check_size(result: Any) -> None:
    """Refuse what is empty, large, or no longer moderate."""
    for tensor in (result,) if isinstance(result, Tensor) else result:
        if tensor.dim() == 4:
            sound = 0 < tensor.shape[1] <= MOST_CHANNELS and min(tensor.shape[2:]) > 0
            sound &= max(tensor.shape[2:]) <= LARGEST_SIDE
        else:
            sound = tensor.dim() == 2 and 0 < tensor.shape[1] <= MOST_FEATURES
        if not sound or not float(tensor.abs().max()) < 1e6:
            raise UnfitError


def specs() -> st.SearchStrategy[Spec]:
    """Random networks of a stem and 3 to 12 operations."""
    number = st.integers(0, 11)
    numbers = st.tuples(number, number, number, number)
    back = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 5])

    def ops(kinds: dict[str, Run]) -> st.SearchStrategy[Op]:
        names = [name for name in kinds for _ in range(WEIGHTS[name])]
        return st.builds(Op, st.sampled_from(names), back, numbers)

    stem = st.builds(Op, st.just("conv_norm"), st.just(0), numbers)
    return st.builds(
        lambda stem, ops, *rest: Spec((stem, *ops), *rest),
        stem,
        st.lists(ops(KINDS), min_size=3, max_size=12),
        st.lists(ops(HEADS), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["tensor", "tuple", "dict"]),
        st.sampled_from([1, 1, 1, 2]),
        st.integers(0, 99),
    )


def pick(number: int, *choices: Any) -> Any:
    return choices[number % len(choices)]


def like(m: Part, y: Tensor, x: Tensor, *, channels: bool = True) -> Tensor:
    """``y`` brought to the shape of ``x``."""
    if channels and ("short" in m._modules or y.shape[1] != x.shape[1]):
        y = m.get("short", lambda: nn.Conv2d(y.shape[1], x.shape[1], 1, bias=False))(y)
    return y if y.shape[2:] == x.shape[2:] else F.interpolate(y, size=x.shape[2:])


def norm_2d(channels: int) -> nn.BatchNorm2d:
    """A batch norm that is not the identity."""
    norm = nn.BatchNorm2d(channels)
    for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(vector, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


def norm_1d(channels: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels)
    for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(vector, 0.5, 1.5)
    return norm


def vector_of(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape) + 0.5)


SMOOTH = (
    F.relu, F.silu, torch.sigmoid, F.hardswish, F.elu, torch.tanh, F.gelu, F.softplus, torch.cos,
    lambda x: x + 1, lambda x: -x, lambda x: F.relu6(x) - 0.5, F.hardsigmoid, lambda x: x * x, F.mish,
    lambda x: x.clamp(0.1, 2), lambda x: x.abs(), F.leaky_relu,
)  # fmt: skip


# ---- layers


@kind(8)
def conv_norm(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    kernel, width = pick(n[1], 3, 1), pick(n[0], *WIDTHS)
    stride = pick(n[2], 1, 1, 2)
    y = m.get("conv", lambda: nn.Conv2d(x.shape[1], width, kernel, stride, kernel // 2, bias=n[3] % 4 == 3))(
        x
    )
    y = m.get("norm", lambda: norm_2d(width))(y)
    return pick(n[3], F.relu, lambda y: y, F.silu, F.relu_, F.hardswish)(y)


@kind(5)
def conv(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    kernel = pick(n[1], 3, 1)
    stride, dilation = pick(n[3], (1, 1), (2, 1), (1, 2))
    mode = pick(n[2], "zeros", "reflect", "replicate", "circular")
    return m.get(
        "conv",
        lambda: nn.Conv2d(
            x.shape[1], pick(n[0], *WIDTHS), kernel, stride, dilation * (kernel // 2), dilation,
            bias=n[1] % 4 < 2, padding_mode=mode,
        ),
    )(x)  # fmt: skip


@kind(3)
def grouped(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    groups = m.divisor(n[0], x.shape[1])
    width = groups * pick(n[1], 1, 2, 3)
    kernel = pick(n[2], 3, 1)
    return m.get(
        "conv",
        lambda: nn.Conv2d(x.shape[1], width, kernel, padding=kernel // 2, groups=groups, bias=n[3] < 6),
    )(x)


@kind(3)
def depthwise(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, mode = x.shape[1], pick(n[1], "zeros", "replicate")
    y = m.get(
        "conv",
        lambda: nn.Conv2d(
            channels, channels * pick(n[0], 1, 1, 2), 3, padding=pick(n[3], 1, 1, 0), groups=channels,
            padding_mode=mode, bias=n[1] < 6,
        ),
    )(x)  # fmt: skip
    return F.relu(m.get("norm", lambda: norm_2d(y.shape[1]))(y)) if n[2] % 2 else y


@kind(2)
def transposed(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, (kernel, stride, padding) = x.shape[1], pick(n[1], (3, 1, 1), (2, 2, 0), (4, 2, 1), (3, 2, 0))

    def make() -> nn.Module:
        groups = (lambda: 1, lambda: m.divisor(n[3], channels), lambda: channels)[n[2] % 3]()
        width = pick(n[0], *WIDTHS) if groups == 1 else groups * pick(n[0], 1, 2)
        return nn.ConvTranspose2d(channels, width, kernel, stride, padding, groups=groups, bias=n[3] < 6)

    return m.get("conv", make)(x)


@kind(2)
def shared(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Any:
    width = x.shape[1] if n[0] % 2 else pick(n[1], *WIDTHS)
    layer = m.get("conv", lambda: nn.Conv2d(x.shape[1], width, 3, padding=1, bias=False))
    norm = m.get("norm", lambda: norm_2d(width)) if n[2] % 2 else lambda y: y
    if n[0] % 2:
        return norm(layer(F.relu(norm(layer(x)))))
    other = pool.map(n[1])
    return norm(layer(x)), norm(layer(like(m, other, x)))


@kind(1)
def odd_layers(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Linear over channels last, 1-D over the flat image, 3-D of one slice."""
    del pool
    channels, width, which = x.shape[1], pick(n[0], *WIDTHS), n[1] % 4
    if which == 0:
        return m.get("linear", lambda: nn.Linear(channels, width))(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if which == 1:
        y = m.get("conv", lambda: nn.Conv1d(channels, width, 3, padding=1))(x.flatten(2))
        return y.view(x.shape[0], -1, *x.shape[2:])
    if which == 2:
        y = m.get("conv", lambda: nn.Conv3d(channels, width, (1, 3, 3), padding=(0, 1, 1)))
        return y(x.unsqueeze(2)).squeeze(2)
    weight = m.get("conv", lambda: nn.Conv2d(channels, width, 1)).weight
    return F.conv2d(x, weight - weight.mean() if n[2] % 2 else weight * 2)


# ---- norms, parameters, activations


@kind(3)
def norm(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, which = x.shape[1], n[0] % 6
    if which == 0:
        return m.get("norm", lambda: norm_2d(channels))(x)
    if which == 1:
        statistics = n[1] % 3 > 0
        return m.get(
            "norm", lambda: nn.BatchNorm2d(channels, affine=not statistics, track_running_stats=statistics)
        )(x)
    if which == 2:
        m.fit(x.shape[2] > 2)
        return m.get("norm", lambda: nn.InstanceNorm2d(channels, affine=n[1] % 2 == 0))(x)
    if which == 3:
        return m.get("prelu", lambda: nn.PReLU(channels if n[1] % 3 else 1))(x)
    scale = m.get("scale", lambda: vector_of(*pick(n[1], (1, channels, 1, 1), (channels, 1, 1), (1,))))
    if which == 4:
        return x * scale
    return x * scale + m.get("shift", lambda: vector_of(channels))[:, None, None]


@kind(1)
def mixing_norm(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, which = x.shape[1], n[0] % 4
    if which == 0:
        return m.get("norm", lambda: nn.GroupNorm(m.divisor(n[1], channels) if n[1] % 2 else 1, channels))(x)
    if which == 1:
        return m.get("norm", lambda: nn.GroupNorm(channels, channels, affine=n[1] % 2 == 0))(x)
    if which == 2:
        norm = m.get("norm", lambda: nn.LayerNorm(channels, elementwise_affine=n[1] % 2 == 0))
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.layer_norm(x, x.shape[2:]) if n[1] % 2 else F.local_response_norm(x, 3)


@kind(6)
def activation(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del m, pool
    return pick(n[0] + 12 * (n[1] % 2), *SMOOTH)(x)


@kind(1)
def in_place(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    which = n[0] % 4
    if which == 0:
        return F.relu_(x)
    if which == 1:
        return x.sigmoid_()
    if which == 2:
        x += like(m, pool.map(n[1]), x)
        return x
    return x.mul_(m.get("scale", lambda: vector_of(x.shape[1], 1, 1)))


# ---- joins


@kind(7)
def add(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    y = like(m, pool.map(n[0]), x)
    return pick(n[1], torch.add, torch.add, torch.mul, torch.sub)(x, y)


@kind(2)
def join_by_value(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    y = like(m, pool.map(n[0]), x)
    return pick(
        n[1],
        torch.maximum, torch.minimum, lambda x, y: torch.where(x > y, x, -y), torch.max,
        lambda x, y: torch.lerp(x, y, 0.25), lambda x, y: torch.stack([x, y]).sum(0),
        lambda x, y: torch.stack([x, y], 1).mean(1), lambda x, y: torch.stack([x, y], 1).amax(1),
        lambda x, y: torch.addcmul(x, x, y), lambda x, y: x.masked_fill(y > 0, 0.5),
        lambda x, y: x * (y.abs() + 1).reciprocal(), lambda x, y: x / (1 + y * y),
    )(x, y)  # fmt: skip


@kind(2)
def weighted_add(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    y, channels = like(m, pool.map(n[0]), x), x.shape[1]
    shape = pick(n[1], (1, channels, 1, 1), (1,), (channels, 1, 1))
    a, b = m.get("a", lambda: vector_of(*shape)), m.get("b", lambda: vector_of(*shape))
    if n[2] % 3 == 0:
        return x * a + y * b
    if n[2] % 3 == 1:
        return (x + y) * (a + b)
    return x * (a / (a + b)) + y * a.sigmoid()


@kind(6)
def concat(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    others = [pool.map(number) for number in n[: 1 + n[3] % 2]]
    pieces = [x, *(like(m, y, x, channels=False) for y in others)]
    return torch.cat(pieces[::-1] if n[2] % 2 else pieces, 1)


@kind(2)
def concat_of_itself(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del m, pool
    return pick(
        n[0],
        lambda: torch.cat([x, -x], 1), lambda: torch.cat([x, x], 1), lambda: x.repeat(1, 2, 1, 1),
        lambda: x.repeat_interleave(2, 1), lambda: torch.cat([x, torch.zeros_like(x)], 1),
        lambda: torch.stack([x, x + 1], 2).flatten(1, 2), lambda: torch.cat([x, x.flip(1)], 1),
        lambda: torch.cat([x, x[:, :1]], 1), lambda: torch.cat([x, x.new_zeros(1, 2, *x.shape[2:])], 1),
        lambda: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2), lambda: torch.cat([x, x.flip(2)], 2),
        lambda: x.tile(1, 2, 1, 1),
    )()  # fmt: skip


@kind(2)
def residual(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, width = x.shape[1], pick(n[0], *WIDTHS)
    if n[1] % 2:
        y = F.relu(m.get("first", lambda: norm_2d(channels))(x))
        y = m.get("a", lambda: nn.Conv2d(channels, width, 1, bias=False))(y)
        y = F.relu(m.get("second", lambda: norm_2d(width))(y))
        return x + m.get("b", lambda: nn.Conv2d(width, channels, 3, padding=1, bias=False))(y)
    y = m.get("a", lambda: nn.Conv2d(channels, width, 3, padding=1, bias=False))(x)
    y = F.relu(m.get("first", lambda: norm_2d(width))(y))
    y = m.get("b", lambda: nn.Conv2d(width, channels, 3, padding=1, bias=False))(y)
    return F.relu(x + m.get("second", lambda: norm_2d(channels))(y))


@kind(1)
def option_a(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """The shortcut of CIFAR's ResNets: every other pixel, and zero channels on both sides."""
    del pool
    before, after = n[0] % 4, n[1] % 4
    m.fit(before + after > 0 and x.shape[2] > 1)
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, after))
    y = m.get("conv", lambda: nn.Conv2d(x.shape[1], short.shape[1], 3, 2, 1, bias=False))(x)
    return F.relu(m.get("norm", lambda: norm_2d(short.shape[1]))(y) + short)


# ---- channels in pieces


@kind(3)
def pieces(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Any:
    del pool
    channels = x.shape[1]
    count = m.divisor(n[1], channels)
    which = n[0] % 7
    if which == 0:
        return x.chunk(count, 1)
    if which == 1:
        return x.split(channels // count, 1)
    if which == 2:
        return x.split(m.size("part", channels // count, hard=True), 1)
    if which == 3:
        return x.tensor_split(count, 1)
    if which == 4:
        return x.unflatten(1, (count, -1)).unbind(1)
    if which == 5:
        return x.view(x.shape[0], -1, count, *x.shape[2:]).unbind(2)
    half = channels // count
    return x[:, :half], x[:, half:]


@kind(2)
def unequal_pieces(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Any:
    del pool
    channels = x.shape[1]
    m.fit(channels > 2)
    first = m.size("first", 1 + n[1] % max(1, channels - 1), hard=True)
    which = n[0] % 6
    if which == 0:
        return x.split([first, channels - first], 1)
    if which == 1:
        return x.split([first, m.size("rest", channels - first, hard=True)], 1)
    if which == 2:
        return x.split(first, 1)
    if which == 3:
        return x.chunk(2 + n[1] % 3, 1)
    if which == 4:
        return x[:, :first], x[:, first:]
    return x[:, :-first], x[:, -first:]


@kind(2)
def part(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Some of the channels."""
    del pool
    channels = x.shape[1]
    m.fit(channels > 2)
    first = m.size("first", 1 + n[1] % max(1, channels - 1), hard=True)
    last = m.size("all", channels, hard=True)
    return pick(
        n[0],
        lambda: x[:, :first], lambda: x[:, first:], lambda: x[:, ::2], lambda: x[:, 1::2],
        lambda: x[:, -first:], lambda: x[:, : channels // 2], lambda: x[:, channels // 2 :],
        lambda: x.narrow(1, 0, first), lambda: x[:, list(range(last - 1, -1, -1))],
        lambda: x.index_select(1, torch.arange(0, last, 2)), lambda: x[:, 1:-1], lambda: x[:, ::3],
    )()  # fmt: skip


@kind(3)
def shuffle(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    size, channels, height, width = x.shape
    groups = m.divisor(n[1], channels)
    share = m.size("share", channels // groups, hard=n[2] % 2 == 1)
    which = n[0] % 7
    if which == 0:
        return (
            x.view(size, groups, share, height, width).transpose(1, 2).reshape(size, channels, height, width)
        )
    if which == 1:
        return m.get("shuffle", lambda: nn.ChannelShuffle(groups))(x)
    if which == 2:
        return torch.stack(x.chunk(groups, 1), 2).flatten(1, 2)
    if which == 3:
        y = x.view(size, groups, -1, height, width).permute(0, 2, 1, 3, 4)
        return y.reshape(size, -1, height, width)
    if which == 4:
        return torch.cat([x[:, i::groups] for i in range(groups)], 1)
    if which == 5:
        y = x.reshape(size * share, groups, height * width).permute(1, 0, 2)
        y = y.reshape(groups, -1, share, height, width)
        return torch.cat([y[i] for i in range(groups)], 1)
    return x.reshape(size, share, groups, height, width).flip(1).flatten(1, 2)


@kind(2)
def depth_and_space(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    which = n[0] % 4
    m.fit(x.shape[1] % 4 == 0 if which == 0 else min(x.shape[2:]) > 1)
    if which == 0:
        return F.pixel_shuffle(x, 2)
    if which == 1:
        return F.pixel_unshuffle(x, 2)
    if which == 2:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    size, channels, height, width = x.shape
    y = x.view(size, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(size, 4 * channels, height // 2, width // 2)


@kind(1)
def reordered(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del m, pool
    return pick(
        n[0],
        lambda: x.roll(1, 1), lambda: x.flip(1), lambda: x.roll(1, 2), lambda: x.transpose(2, 3),
        lambda: torch.rot90(x, 1, (2, 3)), lambda: x.roll((1, 1), (1, 2)), lambda: x.flip((1, 3)),
        lambda: torch.cat([x[:, 1:], x[:, :1]], 1),
    )()  # fmt: skip


@kind(2)
def folded(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Channels into groups by a view, one axis reduced."""
    del pool
    size, channels, *image = x.shape
    groups = m.divisor(n[1], channels)
    share = m.size("share", channels // groups, hard=n[2] % 2 == 1)
    y = pick(
        n[3],
        lambda: x.view(size, groups, share, *image), lambda: x.view(size, groups, -1, *image),
        lambda: x.view(size, -1, share, *image), lambda: x.unflatten(1, (groups, share)),
    )()  # fmt: skip
    axis = 1 + n[0] % 2
    return pick(n[0] // 2, y.sum, y.mean, y.amax, lambda axis: y.softmax(axis).flatten(1, 2))(axis)


# ---- gates and attention


@kind(3)
def squeeze_excite(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    channels, width = x.shape[1], pick(n[0], *WIDTHS)
    if n[1] % 2:
        gate = F.relu(m.get("down", lambda: nn.Linear(channels, width))(x.mean((2, 3))))
        gate = m.get("up", lambda: nn.Linear(width, channels))(gate)[:, :, None, None]
    else:
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = m.get("down", lambda: nn.Conv2d(channels, width, 1))(gate)
        gate = m.get("up", lambda: nn.Conv2d(width, channels, 1))(F.silu(gate))
    return x * pick(n[2], torch.sigmoid, F.hardsigmoid)(gate)


@kind(2)
def gate(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    channels, which = x.shape[1], n[0] % 7
    if which == 0:
        return x * m.get("conv", lambda: nn.Conv2d(channels, 1, 1))(x).sigmoid()
    if which == 1:
        m.fit(channels % 2 == 0)
        return F.glu(x, 1)
    if which == 2:
        m.fit(channels % 2 == 0)
        a, b = x.chunk(2, 1)
        return a * pick(n[1], b, b.sigmoid(), F.silu(b))
    if which == 3:
        y = m.get("conv", lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False))(x.mean((2, 3)).unsqueeze(1))
        return x * y.squeeze(1).sigmoid()[:, :, None, None]
    if which == 4:
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * m.get("conv", lambda: nn.Conv2d(2, 1, 3, padding=1))(maps).sigmoid()
    if which == 5:
        return x * x[:, :1]
    vector = pool.vector(x)
    return x * m.get("linear", lambda: nn.Linear(vector.shape[1], channels))(vector)[:, :, None, None]


@kind(1)
def over_channels(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del m, pool
    return pick(
        n[0],
        lambda: x.softmax(1), lambda: x.mean(1, keepdim=True), lambda: x.amax(1, keepdim=True),
        lambda: x.sum(1, keepdim=True), lambda: x - x.mean(1, keepdim=True), lambda: F.normalize(x, dim=1),
        lambda: x.cumsum(1), lambda: x.mean((2, 3), keepdim=True).expand_as(x) + x,
        lambda: x * x.sum((1, 2, 3), keepdim=True).sigmoid(), lambda: x.max(1, keepdim=True).values + x,
        lambda: F.max_pool1d(x.flatten(2).transpose(1, 2), 2).transpose(1, 2).unflatten(2, x.shape[2:]),
        lambda: x.softmax(-1),
    )()  # fmt: skip


@kind(1)
def attention(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Non-local block, or attention between channels."""
    del pool
    channels, width = x.shape[1], pick(n[0], *WIDTHS)
    q, k, v = (m.get(name, lambda: nn.Conv2d(channels, width, 1))(x).flatten(2) for name in ("q", "k", "v"))
    which = n[1] % 3
    if which == 0:
        y = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
    elif which == 1:
        y = torch.einsum("nct,nst->ncs", v, torch.einsum("nct,ncs->nts", q, k).softmax(-1))
    else:
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    y = y.view(x.shape[0], -1, *x.shape[2:])
    return x + m.get("back", lambda: nn.Conv2d(width, channels, 1))(y)


@kind(2)
def block(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Res2Net, selective kernel, dense layer, channels folded into the batch."""
    del pool
    (size, channels, *image), which = x.shape, n[0] % 5
    if which == 0:
        pieces, last = list(x.chunk(m.divisor(n[1], channels), 1)), None
        for number, piece in enumerate(pieces):
            width = piece.shape[1]
            layer = m.get(f"conv{number}", lambda width=width: nn.Conv2d(width, width, 3, padding=1))
            last = layer(piece if last is None or n[2] % 2 else piece + last)
            pieces[number] = F.relu(last) if n[3] % 2 else last
        return torch.cat(pieces, 1)
    if which == 1:
        a = m.get("a", lambda: nn.Conv2d(channels, channels, 3, padding=1))(x)
        b = m.get("b", lambda: nn.Conv2d(channels, channels, 1))(x)
        z = F.relu(m.get("down", lambda: nn.Linear(channels, pick(n[1], *WIDTHS)))((a + b).mean((2, 3))))
        gates = m.get("up", lambda: nn.Linear(z.shape[1], 2 * channels))(z)
        gates = gates.view(size, 2, -1, 1, 1) if n[2] % 2 else gates.view(size, 2, channels, 1, 1)
        return (torch.stack([a, b], 1) * gates.softmax(1)).sum(1)
    if which == 2:
        y = F.relu(m.get("norm", lambda: norm_2d(channels))(x))
        return torch.cat([x, m.get("conv", lambda: nn.Conv2d(channels, 4, 3, padding=1, bias=False))(y)], 1)
    if which == 3:
        groups = m.divisor(n[1], channels)
        y = x.reshape(size * groups, -1, *image)
        y = m.get("conv", lambda: nn.Conv2d(y.shape[1], y.shape[1], 3, padding=1))(y)
        return y.reshape(size, -1, *image) if n[2] % 2 else y.reshape(size, channels, *image)
    a = m.get("a", lambda: nn.Conv2d(channels, channels, 3, padding=1))
    b = m.get("b", lambda: nn.Conv2d(channels, channels, 3, padding=1))
    b.weight = a.weight
    return x + b(F.relu(a(x)))


@kind(1)
def other_axes(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Layers over height or over the flat image; matrices and tables of a fixed size."""
    del pool
    (size, channels, height, width), which = x.shape, n[0] % 6
    if which == 0:
        y = m.get("conv", lambda: nn.Conv2d(height, height, 3, padding=1))(x.permute(0, 2, 1, 3))
        return y.permute(0, 2, 1, 3)
    if which == 1:
        y = m.get("linear", lambda: nn.Linear(height * width, height * width))(x.flatten(2))
        return y.view(size, channels, height, width)
    if which == 2:
        y = x.flatten(2).transpose(1, 2) @ m.get("matrix", lambda: vector_of(channels, pick(n[1], *WIDTHS)))
        return y.transpose(1, 2).reshape(size, -1, height, width)
    if which == 3:
        return x + m.get(
            "table", lambda: vector_of(*pick(n[1], (1, channels, height, width), (height, width)))
        )
    if which == 4:
        return F.unfold(x, 3, padding=1).view(size, -1, height, width)
    y = x.clone()
    y[:, : m.size("first", channels // 2, hard=n[1] % 2 == 1)] = 0.5
    return y


@kind(1)
def by_width(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Arithmetic with the number of channels, and statistics of each channel."""
    del m, pool
    channels = x.shape[1]
    return pick(
        n[0],
        lambda: x / channels, lambda: x.sum(1, keepdim=True) / channels + x,
        lambda: x * x.var((2, 3), keepdim=True).sqrt(), lambda: x - x.amin((2, 3), keepdim=True),
        lambda: x * x.flatten(2).norm(dim=2)[:, :, None, None].tanh(), lambda: x * (x >= x.mean()),
        lambda: x.logsumexp(1, keepdim=True) + x,
        lambda: x.mean(1, keepdim=True).expand(-1, channels, -1, -1) + x,
        lambda: F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0), lambda: x[:, ::2] + x[:, 1::2],
        lambda: F.avg_pool3d(x.unsqueeze(1), (2, 1, 1)).squeeze(1), lambda: x.squeeze(1) + 0,
    )()  # fmt: skip


# ---- space


@kind(3)
def space(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del m, pool
    return pick(
        n[0],
        lambda: F.max_pool2d(x, 2), lambda: F.avg_pool2d(x, 2), lambda: F.avg_pool2d(x, 3, 1, 1),
        lambda: F.max_pool2d(x, 3, 2, 1), lambda: F.adaptive_avg_pool2d(x, 3),
        lambda: F.adaptive_max_pool2d(x, 2),
        lambda: F.interpolate(x, scale_factor=2), lambda: F.interpolate(x, size=(5, 6), mode="bilinear"),
        lambda: F.pad(x, (1, 0, 1, 1)), lambda: F.pad(x, (1, 1, 0, 0), value=0.5), lambda: x[:, :, 1:, :-1],
        lambda: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    )()  # fmt: skip


@kind(1)
def reshaped(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    """Views that mix channels with space."""
    del pool
    size, channels, height, width = x.shape
    m.fit(channels % 2 == 0)
    half = m.size("half", channels // 2, hard=n[1] % 2 == 1)
    return pick(
        n[0],
        lambda: x.reshape(size, half, 2 * height, width), lambda: x.reshape(size, -1, height // 2, width),
        lambda: x.flatten(2).unflatten(2, (height, width)), lambda: x.reshape(size, half, height, 2 * width),
        lambda: x.flatten(1).view(size, -1, height, width), lambda: x.permute(0, 2, 1, 3).permute(0, 2, 1, 3),
        lambda: x.permute(0, 2, 3, 1).reshape(size, height, width, -1).permute(0, 3, 1, 2),
    )()  # fmt: skip


# ---- vectors


@kind(2)
def to_vector(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    which, width = n[0] % 4, pick(n[1], *WIDTHS)
    if which == 0:
        y = F.adaptive_avg_pool2d(x, 1).flatten(1)
    elif which == 1:
        y = F.adaptive_avg_pool2d(x, 2).flatten(1)
    elif which == 2:
        y = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
    else:
        y = torch.cat([pool.vector(x), x.mean((2, 3))], 1)
    y = m.get("linear", lambda: nn.Linear(y.shape[1], width, bias=n[2] % 2 == 0))(y)
    return F.relu(m.get("norm", lambda: norm_1d(width))(y)) if n[3] % 2 else F.relu(y)


@kind(1)
def from_vector(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    vector, width = pool.vector(x), pick(n[0], *WIDTHS)
    y = m.get("linear", lambda: nn.Linear(vector.shape[1], 4 * width))(vector)
    return (
        y.view(y.shape[0], -1, 2, 2) if n[1] % 2 else y.view(y.shape[0], m.size("w", width, hard=True), 2, -1)
    )


# ---- outputs


@kind(1, head=True)
def out_linear(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    y = pick(n[0], x.mean((2, 3)), F.adaptive_avg_pool2d(x, 1).flatten(1), x.amax((2, 3)))
    return m.get("linear", lambda: nn.Linear(y.shape[1], 3))(y)


@kind(1, head=True)
def out_conv(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    del pool
    kernel = pick(n[0], 1, 3)
    return m.get("conv", lambda: nn.Conv2d(x.shape[1], 2, kernel, padding=kernel // 2, bias=n[1] % 2 == 0))(x)


@kind(1, head=True)
def out_flat(m: Part, x: Tensor, pool: Pool, n: tuple[int, ...]) -> Tensor:
    y = pick(n[0], lambda: x.flatten(1), lambda: x.reshape(x.shape[0], -1), lambda: pool.vector(x))()
    return m.get("linear", lambda: nn.Linear(y.shape[1], 3))(y)
