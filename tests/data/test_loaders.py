from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgeprune.data import Loader, Normalization, TensorLoader, load_data
from edgeprune.data.splits import seeded
from edgeprune.errors import UsageError

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def whole(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def loader(count: int = 40, **options: object) -> TensorLoader:
    images = torch.randint(256, (count, 3, 6, 8), dtype=torch.uint8, generator=seeded(0, "test"))
    defaults = {"batch_size": 16, "normalization": PLAIN, "training": True, "pad": 2, "flip": True}
    return TensorLoader(images, torch.arange(count), **(defaults | options))  # type: ignore[arg-type]


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    through, resumed = loader(), loader()
    for epoch in range(3):
        through.set_epoch(epoch)
        passed = whole(through)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    resumed.set_epoch(2)
    replayed = whole(resumed)
    assert torch.equal(passed[0], replayed[0])
    assert torch.equal(passed[1], replayed[1])
    assert torch.equal(before, torch.get_rng_state())  # nothing is drawn from torch's own generator

    resumed.set_epoch(1)
    assert not torch.equal(whole(resumed)[1], passed[1])
    other = loader(seed=1)
    other.set_epoch(2)
    assert not torch.equal(whole(other)[1], passed[1])


def test_a_pass_that_has_begun_keeps_its_epoch() -> None:
    ours, theirs = loader(cutout=2), loader(cutout=2)
    batches = iter(ours)
    ours.set_epoch(1)
    assert all(torch.equal(mine[0], other[0]) for mine, other in zip(batches, theirs, strict=True))


def test_augmentation_is_the_crop_and_flip_of_each_image() -> None:
    """A slow loop, image by image, from the same draws."""
    ours = loader(batch_size=25)
    images, labels = whole(ours)
    draws = seeded(0, "epoch 0")
    order = torch.randperm(40, generator=draws)
    corners, mirrors = [], []
    for count in (25, 15):
        corners.append(torch.randint(5, (2, count), generator=draws))
        mirrors.append(torch.rand(count, generator=draws) < 0.5)
    (top, left), mirrored = torch.cat(corners, dim=1), torch.cat(mirrors)
    assert torch.equal(labels, order)
    assert 0 < mirrored.sum() < 40
    for row, position in enumerate(order):
        y, x = int(top[row]), int(left[row])
        theirs = F.pad(ours.images[position], (2, 2, 2, 2))[:, y : y + 6, x : x + 8]
        theirs = theirs.flip(2) if mirrored[row] else theirs
        torch.testing.assert_close(images[row], theirs.float() / 255)


def test_without_training_images_come_as_they_are_and_in_order() -> None:
    ours = loader(training=False)
    images, labels = whole(ours)
    assert labels.tolist() == list(range(40))
    torch.testing.assert_close(images, ours.images.float() / 255)


def test_float_pixels_equal_byte_pixels() -> None:
    ours = loader(training=False)
    as_float = TensorLoader(ours.images.float() / 255, ours.labels, batch_size=16, normalization=PLAIN)
    torch.testing.assert_close(whole(as_float)[0], whole(ours)[0])


@pytest.mark.parametrize(
    ("count", "training", "sizes"),
    [(33, True, [16, 16]), (33, False, [16, 16, 1]), (34, True, [16, 16, 2]), (32, True, [16, 16])],
)
def test_training_leaves_out_a_last_batch_of_one(count: int, training: bool, sizes: list[int]) -> None:
    ours = loader(count, training=training)
    assert [len(labels) for _, labels in ours] == sizes
    assert (len(ours), ours.samples) == (len(sizes), sum(sizes))


def test_batches_of_one_cannot_train() -> None:
    with pytest.raises(UsageError, match="batch_size is 1, expected at least 2"):
        load_data("digits", batch_size=1)
    with pytest.raises(UsageError, match="number of images is 1, expected at least 2"):
        loader(1)
    assert len(loader(1, training=False, batch_size=1)) == 1
