"""What hangs on each group of a slim network: shares, places, and what they foretell of another plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeprune.cost import count_macs
from edgeprune.group_facts import group_facts
from edgeprune.groups import find_groups
from edgeprune.onnx_nodes import Node
from edgeprune.parts import make_parts, share, total
from edgeprune.selection import make_plan
from edgeprune.shares import Shares
from edgeprune.surgery import slim


class Net(nn.Module):
    """A residual block with a depthwise convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.depth(torch.relu(self.inner(x))))))
        return self.head(x.mean((2, 3)))


def nodes_of(model: nn.Module) -> tuple[Node, ...]:
    """A node for each layer, as an exported file would have."""
    layers = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    return tuple(Node(name, "Conv", (), (), (f"{name}.weight",), 1) for name in layers)


@pytest.mark.parametrize("ratio", [0.8, 0.4])
def test_facts_are_of_the_slim_network(ratio: float) -> None:
    torch.manual_seed(0)
    net, example = Net().eval(), torch.rand(1, 3, 8, 8)
    groups = find_groups(net, example)
    scores = {group.name: torch.rand(group.size) for group in groups if not group.frozen_because}
    plan = make_plan(net, groups, scores, example, max_macs_ratio=ratio, channel_multiple=1)
    small = slim(net, plan)
    facts = {fact["name"]: fact for fact in group_facts(net, groups, plan, example)}
    assert set(facts) == {group.name for group in groups}
    assert min(fact["kept"] / fact["size"] for fact in facts.values()) < 1
    shapes = {key: tensor.shape for key, tensor in small.state_dict().items()}
    weighed, fresh = Shares(small, example), find_groups(small, example)
    for group in fresh:
        fact, portion = facts[group.name], weighed.of([group])
        assert fact["kept"] == group.size
        assert fact["frozen_because"] == group.frozen_because
        assert (fact["macs_share"], fact["params_share"]) == (portion.macs_share, portion.params_share)
        for place in fact["places"]:
            assert place["length"] == shapes[place["tensor"]][place["axis"]]


def test_costs_foretold_for_another_plan_are_those_of_that_plan() -> None:
    torch.manual_seed(0)
    net, example = Net().eval(), torch.rand(1, 3, 8, 8)
    groups = find_groups(net, example)
    whole = make_plan(net, groups, {}, example, channel_multiple=1)
    facts = group_facts(net, groups, whole, example)
    macs = {name: count_macs_of(net, name, example) for name, _ in net.named_children()}
    parts = make_parts(nodes_of(net), macs, [], facts)
    assert total(parts, "macs") == count_macs(net, example)
    for group in groups:
        if group.frozen_because:
            continue
        scores = {group.name: torch.tensor([0.0] * 3 + [1.0] * (group.size - 3))}
        plan = make_plan(net, groups, scores, example, channel_multiple=1)
        gone = len(plan.removed(group.name))
        assert gone == 3
        foretold = sum(part.left("macs", {group.name: gone}) for part in parts)
        assert foretold == pytest.approx(count_macs(slim(net, plan), example), rel=1e-12)
        fact = next(one for one in facts if one["name"] == group.name)
        assert share(parts, "macs", fact) == pytest.approx(fact["macs_share"], rel=1e-12)


def count_macs_of(net: nn.Module, layer: str, example: torch.Tensor) -> int:
    """Multiply-adds of one layer, from the shapes that pass through it."""
    found = []
    module = net.get_submodule(layer)
    handle = module.register_forward_hook(
        lambda _module, _args, out: found.append(out.numel() * module.weight[0].numel())
    )
    net(example)
    handle.remove()
    return found[0]
