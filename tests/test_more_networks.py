"""Groups and surgery on networks that are no classification networks of torchvision, at small images."""

from __future__ import annotations

import copy
import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from edgeprune.channels import ChannelGroup
from edgeprune.cost import count_params
from edgeprune.groups import find_groups
from edgeprune.selection import make_plan
from edgeprune.surgery import TOLERANCE, slim
from tests.networks import free_groups, gap, half_scores, zeroed_consumers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
awaken = runpy.run_path(str(ROOT / "scripts" / "fresh.py"))["awaken"]


def halved(model: nn.Module, size: int) -> tuple[ChannelGroup, ...]:
    """The groups of a network, after half of every free one went without a fault."""
    model.eval()
    example, other = torch.randn(1, 3, size, size), torch.randn(1, 3, size, size)
    awaken(model, (example,))
    groups = find_groups(model, example)
    plan = make_plan(model, groups, half_scores(groups), example, constants="off")
    small = slim(model, plan, example=example)
    with torch.no_grad():
        small(other)
    oracle = zeroed_consumers(model, groups, plan)
    assert gap(small.double(), oracle, (other,)) <= TOLERANCE
    if free_groups(groups):
        assert count_params(small) < 0.75 * count_params(model)
        assert gap(oracle, copy.deepcopy(model).double(), (other,)) > 1e-3  # else nothing is proven
    return groups


def reasons(groups: tuple[ChannelGroup, ...]) -> set[str]:
    """Why groups are frozen that are no outputs."""
    found = {group.frozen_because for group in groups} - {None, "reaches the output"}
    return {str(reason) for reason in found}


# ---- segmentation and detection of torchvision

BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}


class WithHead(nn.Module):
    """Backbone, neck and head of a detector, without what makes boxes of their outputs."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Any:
        return self.head(list(self.backbone(images).values()))


def with_head(detector: nn.Module) -> nn.Module:
    head = detector.rpn.head if hasattr(detector, "rpn") else detector.head
    assert isinstance(head, nn.Module)
    return WithHead(detector.backbone, head)


# Builder, image size, groups that can be cut, kinds of reasons why others that are no outputs can not.
TORCHVISION: dict[str, tuple[Callable[[], nn.Module], int, int, set[str]]] = {
    "fcn": (lambda: segmentation.fcn_resnet50(aux_loss=True, **BARE), 64, 39, set()),
    "deeplabv3": (lambda: segmentation.deeplabv3_mobilenet_v3_large(aux_loss=True, **BARE), 64, 37, set()),
    "lraspp": (lambda: segmentation.lraspp_mobilenet_v3_large(**BARE), 64, 30, set()),
    "retinanet backbone": (lambda: detection.retinanet_resnet50_fpn(**BARE).backbone, 64, 38, set()),
    "retinanet": (lambda: with_head(detection.retinanet_resnet50_fpn(**BARE)), 64, 47, set()),
    "fcos backbone": (lambda: detection.fcos_resnet50_fpn(**BARE).backbone, 64, 38, set()),
    "fcos": (lambda: with_head(detection.fcos_resnet50_fpn(**BARE)), 64, 39, {"group_norm"}),
    "fasterrcnn backbone": (lambda: detection.fasterrcnn_resnet50_fpn(**BARE).backbone, 64, 38, set()),
    "fasterrcnn mobilenet": (
        lambda: detection.fasterrcnn_mobilenet_v3_large_fpn(**BARE).backbone, 64, 30, set(),
    ),
    "fasterrcnn v2": (lambda: with_head(detection.fasterrcnn_resnet50_fpn_v2(**BARE)), 64, 41, set()),
    "ssdlite backbone": (lambda: detection.ssdlite320_mobilenet_v3_large(**BARE).backbone, 128, 31, set()),
    "ssdlite": (lambda: with_head(detection.ssdlite320_mobilenet_v3_large(**BARE)), 320, 37, set()),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_segmentation_and_detection(name: str) -> None:
    build, size, free, kinds = TORCHVISION[name]
    torch.manual_seed(0)
    groups = halved(build(), size)
    assert len(free_groups(groups)) == free
    assert {reason.split()[0] for reason in reasons(groups)} == kinds


# ---- timm

# Every channel that is no output can go.
WHOLE = [
    "darknet53", "dla34", "efficientnet_lite0", "ese_vovnet19b_slim", "fastvit_t8", "gernet_s",
    "ghostnet_100", "ghostnetv2_100", "hardcorenas_a", "hgnet_tiny", "hrnet_w18_small", "legacy_seresnet18",
    "mobilenetv4_conv_small", "mobileone_s0", "regnetx_002", "repghostnet_050", "repvgg_a0",
    "resnest14d", "resnetv2_50", "selecsls42", "starnet_s1", "tf_efficientnet_lite0", "xception41",
]  # fmt: skip
# Some stay: timm passes whole numbers to split and slice, layer norm mixes channels, attention has no rule.
PARTS = {
    "cs3darknet_s": {"split"},
    "cspresnet50": {"split"},
    "dpn48b": {"slice"},
    "edgenext_xx_small": {"layer_norm", "matmul"},
    "inception_next_atto": {"split_with_sizes", "layer_norm"},
    "mixnet_s": {"split_with_sizes"},
    "res2net50_26w_4s": {"split"},
    "rexnet_100": {"slice"},
    "skresnet18": {"split"},
    "tresnet_m": {"its"},  # its blur pools fix the number of channels: a trial fails
}
# Nothing goes: weights are standardised in the forward pass, or norms mix channels everywhere.
NONE = ["convnextv2_atto", "eca_nfnet_l0", "nf_resnet50", "resnetv2_50d_gn"]


@pytest.mark.parametrize("name", [*WHOLE, *PARTS, *NONE])
def test_convolutional_families_of_timm(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of its own deprecated modules
        timm = pytest.importorskip("timm")
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False)
    groups = halved(model, 64)
    assert bool(free_groups(groups)) == (name not in NONE)
    if name in WHOLE:
        assert reasons(groups) == set()
    if name in PARTS:
        assert {reason.split()[0] for reason in reasons(groups)} == PARTS[name]
