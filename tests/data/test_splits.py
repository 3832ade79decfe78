from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edgeprune.data import Normalization
from edgeprune.data.splits import Splits, balanced, cut, identity, seeded
from edgeprune.errors import DataError


def test_cut_takes_its_share_of_every_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 2)
    rest, part = cut(labels, torch.arange(42), 0.1, seeded(0, "split"))
    assert torch.bincount(labels[part]).tolist() == [1, 3, 1]
    assert torch.cat([rest, part]).sort().values.tolist() == list(range(42))


def test_cut_refuses_to_empty_a_class() -> None:
    with pytest.raises(DataError, match="class number 1 is 1 images to cut from, expected at least 2"):
        cut(torch.tensor([0, 0, 1]), torch.arange(3), 0.1, seeded(0, "split"))


def test_balanced_is_limited_by_the_smallest_class() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3)
    assert labels[balanced(labels, torch.arange(13), seeded(0, "split"))].tolist() == [0, 1, 0, 1, 0, 1]


def test_identity_sees_classes_pixels_labels_and_split() -> None:
    splits = Splits(*(torch.tensor([i]) for i in range(4)))
    facts = (("a", "b"), [b"pixels"], torch.tensor([0, 1]), splits)
    changed = [
        (("a", "c"), *facts[1:]),
        (facts[0], [b"pixelz"], *facts[2:]),
        (*facts[:2], torch.tensor([1, 0]), splits),
        (*facts[:3], replace(splits, val=torch.tensor([7]))),
    ]
    assert len({identity(*facts), *(identity(*each) for each in changed)}) == 5
    assert identity(*facts) == identity(*facts)


@pytest.mark.parametrize(
    ("mean", "std"), [((), ()), ((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,))]
)
def test_a_normalization_must_make_sense(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="expected one finite mean and one positive std per channel"):
        Normalization(mean, std)
