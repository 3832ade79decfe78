from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from edgeprune.training import train
from edgeprune.training.losses import Mixture, loss_of, mix


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def soft_targets(batch: Mixture, classes: int, smoothing: float) -> np.ndarray:
    eye = np.eye(classes) * (1 - smoothing) + smoothing / classes
    target = eye[batch.labels.numpy()]
    if batch.others is not None:
        target = batch.share * target + (1 - batch.share) * eye[batch.others.numpy()]
    return target


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("taught", [False, True])
def test_the_loss_is_that_of_soft_targets_plus_the_teachers(smoothing, alpha, taught):
    draw = torch.Generator().manual_seed(1)
    logits, teacher = (torch.randn(6, 4, generator=draw) for _ in range(2))
    images, labels = torch.randn(6, 3, 2, 2, generator=draw), torch.tensor([0, 1, 2, 3, 1, 1])
    batch = mix(images, labels, alpha)
    ours = loss_of(logits, batch, label_smoothing=smoothing, target=teacher if taught else None)
    target = soft_targets(batch, 4, smoothing)
    theirs = -(target * np.log(softmax(logits.numpy()))).sum(1).mean()
    if taught:  # the labels' smoothing and mixture are not the teacher's
        p, q = softmax(teacher.numpy() / 4), softmax(logits.numpy() / 4)
        theirs = 0.5 * theirs + 0.5 * 16 * (p * np.log(p / q)).sum(1).mean()
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_mixed_images_are_as_their_labels_say():
    random.seed(3)
    torch.manual_seed(3)
    labels = torch.arange(8)
    images = torch.eye(8).view(8, 8, 1, 1)  # an image per label: what it holds can be read off
    batch = mix(images, labels, 1.0)
    assert 0 < batch.share < 1
    expected = batch.share * torch.eye(8)[batch.labels] + (1 - batch.share) * torch.eye(8)[batch.others]
    torch.testing.assert_close(batch.inputs.view(8, 8), expected)
    assert sorted(batch.others.tolist()) == list(range(8))
    assert mix(images, labels, 0.0).inputs is images


def test_the_teacher_sees_the_mixed_images(net, data):
    seen = {"student": [], "teacher": []}
    student, teacher = net(), net(3)
    student[0].register_forward_pre_hook(
        lambda layer, inputs: seen["student"].append(inputs[0].clone()) if layer.training else None
    )
    teacher[0].register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0].clone()))
    train(student, data, epochs=1, mixup=1.0, teacher=teacher, label_smoothing=0.1)
    assert len(seen["student"]) == len(seen["teacher"]) == 5
    for ours, theirs in zip(seen["student"], seen["teacher"], strict=True):
        assert torch.equal(ours, theirs)
    first = seen["student"][0]  # of which an image may have been mixed with itself
    assert sum(any(torch.equal(row, image) for image in data.train.images) for row in first) < len(first) / 2
