"""Small hand-written networks, one for each way in which channels meet; used by the tests of the core."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from edgeprune.channels import ChannelGroup
from edgeprune.groups import find_groups
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from scripts.fresh import double_default, largest_gap


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        build: Makes the network.
        inputs: Shapes (batch 1) of its inputs.
        free: Size of each group that can be cut, by name: nothing else can.
        frozen: A part of the reason of each group that is frozen for another reason than being an output.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    free: dict[str, int]
    frozen: dict[str, str]


class Net(nn.Module):
    """Layers by name and a forward function of them."""

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


NETWORKS: dict[str, Network] = {}
IMAGE = (1, 3, 8, 8)
COMPUTED = {"stem.0": "uses a weight that is computed in the forward pass"}


def network(
    *inputs: tuple[int, ...], free: dict[str, int] | None = None, frozen: dict[str, str] | None = None
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Put a function that builds a network into the table."""

    def put(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[build.__name__] = Network(build, inputs or (IMAGE,), free or {}, frozen or {})
        return build

    return put


def built(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the table with weights and norm statistics at random, in eval mode, and inputs."""
    row = NETWORKS[name]
    torch.manual_seed(seed)
    model = row.build().eval()
    randomise(model)
    return model, tuple(torch.randn(shape) for shape in row.inputs)


@functools.cache
def groups_of(name: str) -> tuple[ChannelGroup, ...]:
    """The channel groups of a network of the table."""
    return find_groups(*built(name))


def free_groups(groups: tuple[ChannelGroup, ...]) -> list[ChannelGroup]:
    """Those that are not frozen."""
    return [group for group in groups if group.frozen_because is None]


def half_scores(groups: tuple[ChannelGroup, ...], seed: int = 0) -> dict[str, Tensor]:
    """Scores that are 0 for a random half of every group that can be cut, else 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: (torch.randperm(group.size, generator=generator) >= group.size // 2).float()
        for group in free_groups(groups)
    }


@functools.cache
def half_plan(name: str, seed: int = 0) -> Plan:
    """Half of every group that can be cut goes, for a network of the table."""
    model, inputs = built(name)
    groups = groups_of(name)
    return make_plan(model, groups, half_scores(groups, seed), inputs, constants="off")


def zeroed_consumers(model: nn.Module, groups: tuple[ChannelGroup, ...], plan: Plan) -> nn.Module:
    """The oracle, from ``ChannelGroup.members`` and ``Plan.removed`` alone: a float64 network that does not
    look at what is removed.
    """
    dense = copy.deepcopy(model).double().eval()
    weights = dict(dense.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for group in groups:
            removed = plan.removed(group.name)
            for member in group.members:
                if member.role == "in":
                    places = [place for unit in removed for place in member.indices[unit]]
                    weights[member.tensor].index_fill_(
                        member.axis, torch.tensor(places, dtype=torch.int64), 0
                    )
    return dense


def gap(first: nn.Module, second: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of two networks' outputs, relative to the second's largest value."""
    with torch.no_grad(), double_default():
        ours, theirs = (tree_leaves(net(*(x.double() for x in inputs))) for net in (first, second))
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert any(isinstance(b, Tensor) and float(b.abs().max()) > 0 for b in theirs)
    return largest_gap(ours, theirs)


def randomise(model: nn.Module) -> None:
    """Draw norm parameters and statistics, so that no norm is the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for vector in (module.weight, module.bias, module.running_mean, module.running_var):
                if vector is not None:
                    nn.init.uniform_(vector, 0.5, 1.5)


def conv(in_channels: int, out_channels: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **options)


def cbr(in_channels: int, out_channels: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU: groups are named ``<name>.0``."""
    return nn.Sequential(
        conv(in_channels, out_channels, kernel, bias=False, **options),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def pooled(x: Tensor) -> Tensor:
    """(N, C, ...) -> (N, C)."""
    return x.flatten(2).mean(2)


# ---- chains, joins and streams


@network(free={"stem.0": 8, "a.0": 6})
def residual() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(F.relu(m.b(m.a(s := m.stem(x))) + s))),
        stem=cbr(3, 8), a=cbr(8, 6), b=nn.Sequential(conv(6, 8), nn.BatchNorm2d(8)), head=nn.Linear(8, 5),
    )  # fmt: skip


@network(free={"stem.0": 6, "a.0": 7, "b.0": 9})
def projection_shortcut() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(F.relu(m.b(m.a(s := m.stem(x))) + m.down(s)))),
        stem=cbr(3, 6), a=cbr(6, 7), b=nn.Sequential(conv(7, 9), nn.BatchNorm2d(9)), down=cbr(6, 9, 1),
        head=nn.Linear(9, 5),
    )  # fmt: skip


@network(free={"a.0": 5, "b.0": 7})
def concat() -> nn.Module:
    return Net(
        lambda m, x: m.out(torch.cat([m.a(x), m.b(x), x], 1)), a=cbr(3, 5), b=cbr(3, 7), out=conv(15, 4)
    )


@network(free={"stem": 6, "a.2": 4, "b.2": 4, "c.2": 4})
def dense_block() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        features = [m.stem(x)]
        for layer in (m.a, m.b, m.c):
            features.append(layer(torch.cat(features, 1)))
        return m.head(pooled(m.norm(torch.cat(features, 1))))

    def layer(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, 4, bias=False))

    return Net(
        forward, stem=conv(3, 6), a=layer(6), b=layer(10), c=layer(14), norm=nn.BatchNorm2d(18),
        head=nn.Linear(18, 5),
    )  # fmt: skip


@network(free={"stem": 8, "a.2": 5, "b.2": 5})
def preactivation() -> nn.Module:
    def block() -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), conv(8, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 8)
        )

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.a(x)
        return m.head(pooled(F.relu(m.norm(x + m.b(x)))))

    return Net(forward, stem=conv(3, 8), a=block(), b=block(), norm=nn.BatchNorm2d(8), head=nn.Linear(8, 5))


@network(free={"c1.0": 6, "c2.0": 8, "l2": 7})
def feature_pyramid() -> nn.Module:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        c1 = m.c1(x)
        c2 = m.c2(c1)
        p2 = m.l2(c2)
        p1 = m.l1(c1) + F.interpolate(p2, scale_factor=2, mode="nearest")
        return m.out(p1), m.out(F.interpolate(p2, size=(6, 6), mode="bilinear"))

    return Net(
        forward, c1=cbr(3, 6), c2=cbr(6, 8, stride=2), l1=conv(6, 7, 1), l2=conv(8, 7, 1), out=conv(7, 3)
    )


@network(free={"stem.0": 8, "image.0": 4, "a.0": 5, "b": 6, "project.0": 7})
def aspp() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        image = F.interpolate(m.image(F.adaptive_avg_pool2d(x, 1)), size=x.shape[-2:], mode="bilinear")
        return m.out(m.project(torch.cat([m.a(x), m.b(x), image], 1)))

    return Net(
        forward, stem=cbr(3, 8), a=cbr(8, 5, 1), b=nn.Conv2d(8, 6, 3, padding=2, dilation=2),
        image=cbr(8, 4, 1), project=cbr(15, 7, 1), out=conv(7, 2, 1),
    )  # fmt: skip


@network(free={"stem.0": 8})
def dict_output() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Any]:
        x = m.stem(x)
        return {"logits": m.head(pooled(x)), "maps": [m.map(x), (m.other(x),)]}

    return Net(forward, stem=cbr(3, 8), head=nn.Linear(8, 5), map=conv(8, 2), other=conv(8, 1))


@network(IMAGE, (1, 2, 8, 8), free={"a.0": 8})
def two_inputs() -> nn.Module:
    return Net(lambda m, x, y: m.out(m.a(x) + m.b(y)), a=cbr(3, 8), b=cbr(2, 8), out=conv(8, 2))


@network(free={"stem.0": 8, "aside.0": 6})
def unused_branch() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        m.aside(x)
        return m.out(x)

    return Net(forward, stem=cbr(3, 8), aside=cbr(8, 6), out=conv(8, 2), never=conv(3, 4))


# ---- kinds of convolutions


@network(free={"stem.0": 8, "point.0": 6})
def depthwise() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.point(m.deep(m.stem(x)))),
        stem=cbr(3, 8), deep=cbr(8, 8, groups=8), point=cbr(8, 6, 1), out=conv(6, 2),
    )  # fmt: skip


@network(free={"stem.0": 6})
def depthwise_multiplier() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.deep(m.stem(x))), stem=cbr(3, 6), deep=cbr(6, 12, groups=6), out=conv(12, 2)
    )


@network(free={"stem.0": 6})
def depthwise_transposed() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.deep(m.stem(x))),
        stem=cbr(3, 6), deep=nn.ConvTranspose2d(6, 12, 2, stride=2, groups=6), out=conv(12, 2),
    )  # fmt: skip


@network(free={"stem.0": 2, "a.0": 3, "b.0": 3})
def grouped() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.b(m.a(m.stem(x)))),
        stem=cbr(3, 8), a=cbr(8, 12, groups=4), b=cbr(12, 6, groups=2), out=conv(6, 2),
    )  # fmt: skip


@network(free={"stem.0": 4, "up": 6})
def grouped_transposed() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.up(m.stem(x))),
        stem=cbr(3, 8), up=nn.ConvTranspose2d(8, 12, 3, stride=2, groups=2), out=conv(12, 2),
    )  # fmt: skip


@network(free={"stem.0": 8, "up": 6})
def transposed() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.relu(m.norm(m.up(m.stem(x))))),
        stem=cbr(3, 8), up=nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), norm=nn.BatchNorm2d(6),
        out=conv(6, 2),
    )  # fmt: skip


@network((1, 3, 16), free={"a": 8, "b": 6})
def conv_1d() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.b(F.gelu(m.norm(m.a(x)))).amax(2)),
        a=nn.Conv1d(3, 8, 5, padding=2), norm=nn.BatchNorm1d(8), b=nn.Conv1d(8, 6, 3), head=nn.Linear(6, 5),
    )  # fmt: skip


@network((1, 2, 4, 6, 6), free={"a": 6, "b": 8})
def conv_3d() -> nn.Module:
    return Net(
        lambda m, x: m.head(F.adaptive_avg_pool3d(m.b(F.relu(m.norm(m.a(x)))), 1).flatten(1)),
        a=nn.Conv3d(2, 6, 3, padding=1), norm=nn.BatchNorm3d(6), b=nn.Conv3d(6, 8, 3), head=nn.Linear(8, 5),
    )  # fmt: skip


@network(free={"stem.0": 8})
def shared_conv() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.shared(m.shared(m.stem(x)))), stem=cbr(3, 8), shared=cbr(8, 8), out=conv(8, 2)
    )


@network(free={"a.0": 8, "shared.0": 6})
def shared_conv_beside() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.shared(m.a(x)) + m.shared(m.b(x))),
        a=cbr(3, 8), b=cbr(3, 8), shared=cbr(8, 6), out=conv(6, 2),
    )  # fmt: skip


@network(free={"stem.0": 8})
def tied_weights() -> nn.Module:
    net = Net(
        lambda m, x: m.out(F.relu(m.b(F.relu(m.a(m.stem(x)))))),
        stem=cbr(3, 8), a=conv(8, 8), b=conv(8, 8), out=conv(8, 2),
    )  # fmt: skip
    net.b.weight = net.a.weight
    return net


@network(free={"stem.0": 8, "a.0": 6})
def reflect_padding() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.a(m.stem(x))),
        stem=cbr(3, 8, padding_mode="reflect"), a=cbr(8, 6, padding_mode="replicate"),
        out=conv(6, 2, padding_mode="circular"),
    )  # fmt: skip


@network(free={"stem.0": 8, "a": 6})
def padding_by_hand() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.pad(m.a(F.pad(m.stem(x), (1, 1, 1, 1), mode="reflect")), (1, 2, 0, 1))),
        stem=cbr(3, 8), a=nn.Conv2d(8, 6, 3), out=nn.Conv2d(6, 2, 3),
    )  # fmt: skip


@network(free={"b.0": 7}, frozen=COMPUTED | {"a": "conv2d in a uses a weight"})
def parametrized() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.b(m.a(m.stem(x)))),
        stem=cbr(3, 8), a=parametrizations.weight_norm(conv(8, 6)), b=cbr(6, 7), out=conv(7, 2),
    )  # fmt: skip


# ---- channels that are cut into pieces


@network(free={"stem.0": 6, "a.0": 5})
def chunk_equal() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).chunk(2, 1)
        return m.out(m.a(a) + m.b(b))

    return Net(forward, stem=cbr(3, 12), a=cbr(6, 5), b=cbr(6, 5), out=conv(5, 2))


@network(free={"stem.0": 6, "a.0": 5, "join.0": 7})
def c2f() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = list(m.stem(x).chunk(2, 1))
        y.append(y[-1] + m.b(m.a(y[-1])))
        return m.out(m.join(torch.cat(y, 1)))

    return Net(forward, stem=cbr(3, 12, 1), a=cbr(6, 5), b=cbr(5, 6), join=cbr(18, 7, 1), out=conv(7, 2))


@network(free={"a.0": 6})
def chunk_of_concat() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = torch.cat([m.a(x), m.b(x)], 1).chunk(2, 1)
        return m.c(a) + m.d(b)

    return Net(forward, a=cbr(3, 6), b=cbr(3, 6), c=conv(6, 3), d=conv(6, 3))


@network(
    free={"a.0": 5, "b.0": 6},
    frozen={"stem.0": "cuts channels into pieces of sizes that the forward pass fixes"},
)
def split_unequal() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).split([4, 8], 1)
        return m.out(torch.cat([m.a(a), m.b(b)], 1))

    return Net(forward, stem=cbr(3, 12), a=cbr(4, 5), b=cbr(8, 6), out=conv(11, 2))


@network(free={"stem.0": 4})
def split_computed() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        a, b, c = x.split(x.shape[1] // 3, 1)
        return m.out(m.a(a) * b + c)

    return Net(forward, stem=cbr(3, 12), a=cbr(4, 4), out=conv(4, 2))


@network(
    free={"stem.0#2": 7, "a.0": 5, "b.0": 6},
    frozen={"stem.0": "takes channels at positions that the forward pass fixes"},
)
def slice_hard_coded() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(torch.cat([m.a(x[:, :3]), m.b(x[:, 3:])], 1))

    return Net(forward, stem=cbr(3, 10), a=cbr(3, 5), b=cbr(7, 6), out=conv(11, 2))


@network(free={"stem.0#2": 5}, frozen={"stem.0": "takes channels at positions that the forward pass fixes"})
def slice_first() -> nn.Module:
    return Net(lambda m, x: m.out(m.stem(x)[:, :5]), stem=cbr(3, 10), out=conv(5, 2))


@network(
    free={"stem.0": 7, "b.0#2": 5},
    frozen={
        "stem.0#2": "takes channels at positions that the forward pass fixes",
        "b.0": "takes channels at positions that the forward pass fixes",
        "c.0": "takes channels at positions that the forward pass fixes",
    },
)
def rolled() -> nn.Module:
    """Only what does not go around the end can be cut, and nothing of what is rolled as one flat array."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.b(m.stem(x).roll(1, 1))
        return m.out(m.c(x.roll((-2, 1), (1, 3))).roll(3))

    return Net(forward, stem=cbr(3, 8), b=cbr(8, 7), c=cbr(7, 6), out=conv(6, 2))


@network(free={"stem.0": 3})
def strided_slices() -> nn.Module:
    """As many slices as channels in a run: rows and columns must not be taken for each other."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(torch.cat([x[:, i::3] for i in range(3)], 1))

    return Net(forward, stem=cbr(3, 9), out=conv(9, 2))


@network(free={"stem.0": 2})
def shuffle_by_slices() -> nn.Module:
    """Four channels are so few that the cuts of a trial may all leave an order that fits."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(torch.cat([x[:, ::2], x[:, 1::2]], 1))

    return Net(forward, stem=cbr(3, 4), out=conv(4, 2))


@network(free={"stem.0": 6, "a.0": 8})
def space_to_depth() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        return m.out(m.a(x))

    return Net(forward, stem=cbr(3, 6), a=cbr(24, 8), out=conv(8, 2))


@network(free={"stem.0": 4, "a.0": 2, "b.0": 4})
def shuffle_by_view() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(m.stem(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.out(m.b(x))

    return Net(forward, stem=cbr(3, 8), a=cbr(8, 8, groups=2), b=cbr(8, 8, groups=2), out=conv(8, 2))


@network(free={"stem.0": 6, "a.0": 2, "b.0": 2})
def shuffle_module() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.b(m.shuffle(m.a(m.stem(x))))),
        stem=cbr(3, 18), a=cbr(18, 18, groups=3), shuffle=nn.ChannelShuffle(3), b=cbr(18, 6, groups=3),
        out=conv(6, 2),
    )  # fmt: skip


@network(free={"stem.0": 6, "first.0": 6})
def shuffle_unit() -> nn.Module:
    """The unit of ShuffleNet-V2."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).chunk(2, 1)
        x = torch.cat([a, m.last(m.deep(m.first(b)))], 1)
        n, c, h, w = x.shape
        return m.out(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    return Net(
        forward,
        stem=cbr(3, 12),
        first=cbr(6, 6, 1),
        deep=cbr(6, 6, groups=6),
        last=cbr(6, 6, 1),
        out=conv(12, 2),
    )


@network(
    free={"a.0": 7, "c.0": 7, "e.0": 7},
    frozen={"stem.0": "cuts channels into pieces of sizes that the forward pass fixes"},
)
def shuffle_units() -> nn.Module:
    """Several units of ShuffleNet-V2 in a row: what the halves share is mixed up until nothing can go."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for first, last in ((m.a, m.b), (m.c, m.d), (m.e, m.f)):
            a, b = x.chunk(2, 1)
            x = torch.cat([a, last(first(b))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.out(x)

    return Net(
        forward, stem=cbr(3, 12), a=cbr(6, 7), b=cbr(7, 6), c=cbr(6, 7), d=cbr(7, 6), e=cbr(6, 7),
        f=cbr(7, 6), out=conv(12, 2),
    )  # fmt: skip


@network(free={"a.0": 6}, frozen={"stem.0": "cuts channels by a size that the forward pass fixes"})
def view_hard_coded() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(m.a(x.view(1, 4, 3, 8, 8).sum(2)))

    return Net(forward, stem=cbr(3, 12), a=cbr(4, 6), out=conv(6, 2))


@network(free={"stem.0": 3, "a.0": 6})
def pixel_shuffle() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.a(F.pixel_shuffle(m.stem(x), 2))), stem=cbr(3, 12), a=cbr(3, 6), out=conv(6, 2)
    )


@network(free={"stem.0": 5, "a.0": 6})
def pixel_unshuffle() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.a(F.pixel_unshuffle(m.stem(x), 2))), stem=cbr(3, 5), a=cbr(20, 6), out=conv(6, 2)
    )


@network(free={"stem.0": 6})
def crelu() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(F.relu(torch.cat([x, -x], 1)))

    return Net(forward, stem=nn.Sequential(conv(3, 6), nn.BatchNorm2d(6)), out=conv(12, 2))


# ---- gates, attention, parameters


@network(free={"stem.0": 8, "down": 4})
def squeeze_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(x * torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))))

    return Net(forward, stem=cbr(3, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), out=conv(8, 2))


@network(free={"a.0": 6}, frozen={"stem.0": "reads several units as one channel"})
def efficient_attention() -> nn.Module:
    """ECA: a convolution over the axis of channels."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        gate = m.gate(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
        return m.out(m.a(x * torch.sigmoid(gate)[:, :, None, None]))

    return Net(
        forward, stem=cbr(3, 8), gate=nn.Conv1d(1, 1, 3, padding=1, bias=False), a=cbr(8, 6), out=conv(6, 2)
    )


@network(
    free={"stem.0": 8, "b.0": 6},
    frozen={"a.0": "reduces over channels", "gate": "spreads this channel over others"},
)
def cbam() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(m.stem(x))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.out(m.b(x * torch.sigmoid(m.gate(maps))))

    return Net(forward, stem=cbr(3, 8), a=cbr(8, 7), gate=conv(2, 1, 5), b=cbr(7, 6), out=conv(6, 2))


@network(free={"stem.0": 8, "down.0": 4}, frozen={"gate": "spreads this channel over others"})
def one_channel_map() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(x * torch.sigmoid(m.gate(m.down(x))))

    return Net(forward, stem=cbr(3, 8), down=cbr(8, 4, 1), gate=conv(4, 1, 1), out=conv(8, 2))


@network(free={"a": 6, "b": 5})
def gated_linear_unit() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.glu(m.b(F.glu(m.a(x), 1)), 1)), a=conv(3, 12), b=conv(6, 10), out=conv(5, 2)
    )


@network(free={"stem.0": 6, "a.0": 8, "squeeze": 4})
def selective_kernel() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        branches = torch.stack([m.a(x), m.b(x)], 1)
        z = m.squeeze(branches.sum(1).mean((2, 3)))
        gates = torch.stack([m.fa(z), m.fb(z)], 1).softmax(1)
        return m.out((branches * gates[..., None, None]).sum(1))

    return Net(
        forward, stem=cbr(3, 6), a=cbr(6, 8), b=cbr(6, 8, 5), squeeze=nn.Linear(8, 4), fa=nn.Linear(4, 8),
        fb=nn.Linear(4, 8), out=conv(8, 2),
    )  # fmt: skip


@network(free={"stem.0": 8, "a.0": 6})
def layer_scale() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(x + m.scale * m.b(m.a(x)) + m.shift[:, None, None])

    return Net(
        forward, stem=cbr(3, 8), a=cbr(8, 6), b=conv(6, 8), out=conv(8, 2),
        scale=nn.Parameter(torch.rand(1, 8, 1, 1)), shift=nn.Parameter(torch.rand(8)),
    )  # fmt: skip


@network(
    free={"stem.0": 8, "v": 4},
    frozen={"q": "matmul in the network's forward spreads this channel over others"},
)
def non_local() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        q, k, v = m.q(x).flatten(2), m.k(x).flatten(2), m.v(x).flatten(2)
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return m.out(x + m.back((v @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])))

    return Net(
        forward,
        stem=cbr(3, 8),
        q=conv(8, 4, 1),
        k=conv(8, 4, 1),
        v=conv(8, 4, 1),
        back=conv(4, 8, 1),
        out=conv(8, 2),
    )


class Heads(nn.Module):
    """Attention over pixels; the number of heads follows from the weights, or is stated."""

    def __init__(self, channels: int, heads: int, kind: str = "computed") -> None:
        super().__init__()
        self.kind, self.head_dim, self.num_heads = kind, channels // heads, heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2))
        count = self.proj.weight.shape[1] // self.head_dim
        heads = {"stated": self.num_heads, "fixed": 4}.get(self.kind, count)
        qkv = qkv.reshape(n, h * w, 3, heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "einsum":
            x = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            x = torch.einsum("bhqk,bhkd->bhqd", x, v)
        elif self.kind == "matmul":
            x = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (h, w))


def attentive(kind: str) -> nn.Module:
    return Net(lambda m, x: m.out(m.a(m.stem(x))), stem=cbr(3, 12), a=Heads(12, 4, kind), out=conv(12, 2))


@network(free={"stem.0": 12, "a.qkv": 4, "a.proj": 12})
def heads_computed() -> nn.Module:
    return attentive("computed")


@network(free={"stem.0": 12, "a.qkv": 4, "a.proj": 12})
def heads_by_matmul() -> nn.Module:
    return attentive("matmul")


@network(free={"stem.0": 12, "a.qkv": 4, "a.proj": 12})
def heads_by_einsum() -> nn.Module:
    return attentive("einsum")


@network(free={"stem.0": 12, "a.qkv": 4, "a.proj": 12})
def heads_stated() -> nn.Module:
    return attentive("stated")


@network(
    free={"stem.0": 12, "a.proj": 12},
    frozen={"a.qkv": "reshape in a cuts channels by a size that the forward pass fixes"},
)
def heads_fixed() -> nn.Module:
    return attentive("fixed")


@network(free={"a.0": 6}, frozen={"stem.0": "combines it with a tensor of hard-coded size"})
def position_embedding() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.a(m.stem(x) + m.column + m.table)), stem=cbr(3, 8), a=cbr(8, 6), out=conv(6, 2),
        column=nn.Parameter(torch.rand(1, 1, 1, 8)), table=nn.Parameter(torch.rand(1, 8, 8, 8)),
    )  # fmt: skip


# ---- heads and norms


@network(free={"stem.0": 6, "mid": 10})
def flatten_to_linear() -> nn.Module:
    return Net(
        lambda m, x: m.head(F.relu(m.mid(F.max_pool2d(m.stem(x), 2).flatten(1)))),
        stem=cbr(3, 6), mid=nn.Linear(96, 10), head=nn.Linear(10, 5),
    )  # fmt: skip


@network(free={"a.0": 6, "b.0": 5})
def flatten_of_concat() -> nn.Module:
    return Net(
        lambda m, x: m.head(F.avg_pool2d(torch.cat([m.a(x), m.b(x)], 1), 4).flatten(1)),
        a=cbr(3, 6), b=cbr(3, 5), head=nn.Linear(44, 5),
    )  # fmt: skip


@network((1, 12), free={"a": 10, "b": 8})
def perceptron() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.b(F.relu(m.norm(m.a(x))))),
        a=nn.Linear(12, 10), norm=nn.BatchNorm1d(10), b=nn.Linear(10, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


@network(free={"a": 8, "b": 6})
def prelu_per_channel() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.q(m.b(m.p(m.a(x))))),
        a=conv(3, 8), p=nn.PReLU(8), b=conv(8, 6), q=nn.PReLU(), out=conv(6, 2),
    )  # fmt: skip


@network(free={"b.0": 6}, frozen={"a": "computes statistics over channels"})
def group_norm() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.b(m.norm(m.a(x)))),
        a=conv(3, 8),
        norm=nn.GroupNorm(2, 8),
        b=cbr(8, 6),
        out=conv(6, 2),
    )


@network(free={"first": 12}, frozen={"stem.0": "computes statistics over channels"})
def layer_norm() -> nn.Module:
    """The block of ConvNeXt."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.second(F.gelu(m.first(m.norm(x.permute(0, 2, 3, 1)))))
        return m.out(x + y.permute(0, 3, 1, 2))

    return Net(
        forward,
        stem=cbr(3, 8),
        norm=nn.LayerNorm(8),
        first=nn.Linear(8, 12),
        second=nn.Linear(12, 8),
        out=conv(8, 2),
    )


@network(free={"a": 8, "b": 6})
def instance_norm() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.relu(m.plain(m.b(F.relu(m.norm(m.a(x))))))),
        a=conv(3, 8), norm=nn.InstanceNorm2d(8, affine=True), b=conv(8, 6), plain=nn.InstanceNorm2d(6),
        out=conv(6, 2),
    )  # fmt: skip


# ---- shortcuts without weights


@network(free={"stem.0": 8, "a.0": 7}, frozen={"b.0": "adds or multiplies a fixed channel"})
def pad_shortcut() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return m.head(pooled(F.relu(m.b(m.a(x)) + short)))

    return Net(
        forward, stem=cbr(3, 8), a=cbr(8, 7, stride=2), b=nn.Sequential(conv(7, 16), nn.BatchNorm2d(16)),
        head=nn.Linear(16, 5),
    )  # fmt: skip


@network(free={"stem.0": 8, "a.0": 7})
def concat_shortcut() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        short = F.avg_pool2d(x, 2)
        short = torch.cat([short, torch.zeros_like(short)], 1)
        return m.head(pooled(F.relu(m.b(m.a(x)) + short)))

    return Net(
        forward, stem=cbr(3, 8), a=cbr(8, 7, stride=2), b=nn.Sequential(conv(7, 16), nn.BatchNorm2d(16)),
        head=nn.Linear(16, 5),
    )  # fmt: skip


# ---- what has no rule


@network(free={"stem.0": 8, "b.0": 7}, frozen={"a": "is an operator without a rule"})
def fourier() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.fft.rfft2(m.a(m.stem(x)))
        return m.out(m.b(x.abs()))

    return Net(forward, stem=cbr(3, 8), a=conv(8, 6), b=cbr(6, 7), out=conv(7, 2))


@network(free={"stem.0": 8, "b.0": 7}, frozen={"a": "is an operator without a rule"})
def running_maximum() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.b(m.a(m.stem(x)).cummax(2).values)),
        stem=cbr(3, 8), a=conv(8, 6), b=cbr(6, 7), out=conv(7, 2),
    )  # fmt: skip


@network(frozen=COMPUTED | {"conv2d_1": "in the network's forward uses a weight"})
def computed_weight() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(F.conv2d(x, m.a.weight.tanh(), padding=1))

    return Net(forward, stem=cbr(3, 8), a=conv(8, 6), out=conv(6, 2))


@network(free={"stem.0": 8}, frozen={"a": "its removal fails a trial (the outputs change by"})
def scaled_by_size() -> nn.Module:
    """Reads the number of channels: sound only for the dense width."""
    return Net(
        lambda m, x: m.out((y := m.a(m.stem(x))) / math.sqrt(y.shape[1])),
        stem=cbr(3, 8),
        a=conv(8, 6),
        out=conv(6, 2),
    )


# ---- odd forward passes


@network(free={"stem.0": 8, "a.0": 7}, frozen={"b.0": "adds or multiplies a fixed channel"})
def concat_fixed_zeros() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        short = torch.cat([torch.zeros(1, 4, 4, 4), x[:, :, ::2, ::2], torch.ones(1, 4, 4, 4)], 1)
        return m.head(pooled(F.relu(m.b(m.a(x)) + short)))

    return Net(
        forward, stem=cbr(3, 8), a=cbr(8, 7, stride=2), b=nn.Sequential(conv(7, 16), nn.BatchNorm2d(16)),
        head=nn.Linear(16, 5),
    )  # fmt: skip


@network(free={"stem.0": 8, "a.0": 6})
def fixed_operand() -> nn.Module:
    """A convolution of a constant grid, a plain tensor attribute, and a concatenation along the height."""

    def forward(m: Any, x: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, 8).expand(1, 2, 8, 8)
        x = m.stem(x) + m.place(grid) - m.offset
        return m.out(m.a(torch.cat([x, -x], 2)))

    net = Net(forward, stem=cbr(3, 8), place=conv(2, 8), a=cbr(8, 6), out=conv(6, 2))
    net.offset = torch.ones(8, 8)
    return net


@network(free={"stem.0": 8})
def aliased_in_place() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        alias = x
        x += m.a(x)
        return m.out(F.relu_(x) * 2 + m.b(alias))

    return Net(
        forward, stem=nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)), a=cbr(8, 8), b=cbr(8, 8), out=conv(8, 2)
    )


@network(
    free={"stem.0#2": 4, "b.0": 6},
    frozen={"stem.0": "is an operator without a rule", "a": "is an operator without a rule"},
)
def written_by_index() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).clone()
        x[:, :4] = m.a(x)
        return m.out(m.b(x))

    return Net(forward, stem=cbr(3, 8), a=conv(8, 4), b=cbr(8, 6), out=conv(6, 2))


@network(free={"stem.0": 8}, frozen={"a.0": "training mode"})
def aside_in_training() -> nn.Module:
    """An auxiliary head that only runs in training mode."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(m.stem(x))
        return (m.out(x), m.aside(x)) if m.training else m.out(x)

    return Net(forward, stem=cbr(3, 8), a=cbr(8, 6), out=conv(6, 2), aside=conv(6, 2))


@network(free={"stem.0": 8, "a.0": 6})
def without_gradients() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = m.stem(x)
        return m.out(m.a(x))

    return Net(forward, stem=cbr(3, 8), a=cbr(8, 6), out=conv(6, 2))
