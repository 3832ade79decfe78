"""The loss of a step: cross-entropy with label smoothing, on mixed images, with the help of a teacher."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 4.0
TEACHER_SHARE = 0.5


@dataclass(frozen=True)
class Mixture:
    """A batch of mixed images, and what to expect of them.

    Attributes:
        inputs: Images (N, C, H, W).
        labels: Of the one image of each pair, (N,).
        others: Of the other one, (N,); None: the images are as they were.
        share: Of the one image.
    """

    inputs: Tensor
    labels: Tensor
    others: Tensor | None = None
    share: float = 1.0


def mix(inputs: Tensor, labels: Tensor, alpha: float) -> Mixture:
    """Mix each image with another one of the batch (mixup, arXiv 1710.09412), one share for all.

    What is drawn comes from Python's and torch's generators, on the CPU.

    Args:
        inputs: Images (N, C, H, W).
        labels: (N,).
        alpha: Of Beta(alpha, alpha); 0: the batch is left as it is.
    """
    if not alpha:
        return Mixture(inputs, labels)
    share = random.betavariate(alpha, alpha)
    partner = torch.randperm(len(labels)).to(inputs.device, non_blocking=True)
    return Mixture(inputs.lerp(inputs[partner], 1 - share), labels, labels[partner], share)


def loss_of(
    logits: Tensor, batch: Mixture, *, label_smoothing: float = 0.0, target: Tensor | None = None
) -> Tensor:
    """Mean loss over a batch.

    The labels' smoothing and mixture are parts of the cross-entropy alone: a teacher that has seen the same
    mixed images says itself how sure one can be.

    Args:
        logits: Of the network, (N, classes) float32.
        batch: What it was shown.
        label_smoothing: See `Recipe`.
        target: Logits of the teacher for the same images; None: there is none.
    """
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    if batch.others is not None:
        other = F.cross_entropy(logits, batch.others, label_smoothing=label_smoothing)
        loss = batch.share * loss + (1 - batch.share) * other
    if target is None:
        return loss
    # The factor T^2 keeps the gradient's size as the temperature changes (Hinton et al. 2015).
    distance = TEMPERATURE**2 * F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1),
        F.log_softmax(target / TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - TEACHER_SHARE) * loss + TEACHER_SHARE * distance
