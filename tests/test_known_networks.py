"""Groups, plans and surgery on whole networks: the built-in ones, and torchvision's."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import list_models

from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_macs, count_params
from edgeprune.groups import find_groups
from edgeprune.models import load_model
from edgeprune.plan import Plan
from edgeprune.selection import make_plan
from edgeprune.surgery import TOLERANCE, slim
from tests.networks import free_groups, gap, half_scores, randomise, zeroed_consumers

slow = pytest.mark.slow

# Name -> image size, groups that can be cut, groups that can not and that are no output.
KNOWN = [
    pytest.param("resnet20", 32, 10, 2),
    pytest.param("vgg16", 32, 13, 0),
    pytest.param("densenet40", 32, 39, 0, marks=slow),
    pytest.param("mobilenet-v2", 32, 25, 0, marks=slow),
    pytest.param("resnet164", 32, 112, 0, marks=slow),
    pytest.param("torchvision:resnet18", 64, 12, 0, marks=slow),
    pytest.param("torchvision:resnet50", 64, 37, 0, marks=slow),
    pytest.param("torchvision:vgg16_bn", 64, 15, 0, marks=slow),
    pytest.param("torchvision:mobilenet_v2", 64, 25, 0, marks=slow),
    pytest.param("torchvision:densenet121", 64, 120, 0, marks=slow),
    pytest.param("torchvision:googlenet", 64, 57, 0, marks=slow),
    pytest.param("torchvision:shufflenet_v2_x1_0", 64, 19, 2, marks=slow),
    pytest.param("torchvision:efficientnet_b0", 64, 40, 0, marks=slow),
    pytest.param("torchvision:regnet_y_400mf", 64, 53, 0, marks=slow),
    pytest.param("torchvision:mobilenet_v3_small", 64, 27, 0, marks=slow),
    pytest.param("torchvision:squeezenet1_1", 64, 25, 0, marks=slow),
]


@functools.lru_cache(maxsize=4)
def known(name: str, size: int) -> tuple[nn.Module, torch.Tensor, tuple[ChannelGroup, ...]]:
    """A network with norms that are not the identity, an example, and its groups."""
    torch.manual_seed(0)
    model = load_model(name)
    randomise(model)
    example = torch.randn(1, 3, size, size)
    return model, example, find_groups(model, example)


@pytest.mark.parametrize(("name", "size", "free", "frozen"), KNOWN)
def test_half_width(name: str, size: int, free: int, frozen: int) -> None:
    model, example, groups = known(name, size)
    inner = [
        group for group in groups if group.frozen_because and group.frozen_because != "reaches the output"
    ]
    assert (len(free_groups(groups)), len(inner)) == (free, frozen)
    plan = make_plan(model, groups, half_scores(groups), example, constants="off")
    small = slim(model, plan, example=example)
    assert count_macs(small, example) < 0.55 * count_macs(model, example)
    assert count_params(small) < 0.75 * count_params(model)
    oracle = zeroed_consumers(model, groups, plan)
    assert gap(slim(oracle, Plan.from_json(plan.to_json())), oracle, (example,)) <= TOLERANCE
    with torch.no_grad():
        assert small(torch.randn(3, 3, size, size)).shape == model(torch.randn(3, 3, size, size)).shape


@pytest.mark.parametrize(
    "name",
    ["resnet20", "vgg16", pytest.param("densenet40", marks=slow), pytest.param("mobilenet-v2", marks=slow)],
)
def test_closed_channels_go_without_a_change(name: str) -> None:
    """As after proximal network slimming: many gammas are 0, and the function stays to the last digit."""
    model, example, groups = known(name, 32)
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            with torch.no_grad():
                module.weight[torch.rand(module.num_features) < 0.6] = 0
    state = model.state_dict()
    scores = {
        group.name: torch.tensor(
            [
                max((float(state[key][place].abs()) for key, place in when), default=0.0)
                for when in group.constant_when
            ]
        )
        for group in free_groups(groups)
        if None not in group.constant_when
    }
    plan = make_plan(model, groups, scores, example)
    assert sum(len(group.constant) for group in plan.groups) > 20
    assert all(set(group.constant) == set(group.removed) for group in plan.groups)
    dense = copy.deepcopy(model).double()
    assert gap(slim(dense, plan), dense, (example,)) <= TOLERANCE
    assert plan.facts["slim_macs"] < 0.9 * plan.facts["dense_macs"]


# Left out: what takes minutes or many gigabytes, and has a smaller sister in the list.
HUGE = (
    "vit_l",
    "vit_h",
    "regnet_x_32",
    "regnet_y_32",
    "regnet_y_128",
    "convnext_l",
    "efficientnet_v2_l",
    "vgg19",
)
TORCHVISION = [name for name in list_models(module=torchvision.models) if not name.startswith(HUGE)]
SIZES = {"inception_v3": 75, "vit": 224, "maxvit": 224}


@slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_classification_network_of_torchvision(name: str) -> None:
    """Whatever is found can be cut exactly; that nothing can be is the exception."""
    size = SIZES.get(name, SIZES.get(name.partition("_")[0], 64))
    torch.manual_seed(0)
    model = load_model(f"torchvision:{name}")
    example = torch.randn(1, 3, size, size)
    groups = find_groups(model, example)
    assert free_groups(groups)
    plan = make_plan(model, groups, half_scores(groups, seed=1), example, constants="off")
    small = slim(model, plan, example=example)
    assert count_macs(small, example) < 0.9 * count_macs(model, example)
