from __future__ import annotations

import pytest
import torch

from edgeprune.data import Normalization, TensorLoader, load_data
from edgeprune.data.pixels import cut_out
from edgeprune.data.splits import seeded
from edgeprune.errors import UsageError


@pytest.mark.parametrize(
    ("size", "centre", "rows"),
    [(4, 0.5, (2, 6)), (3, 0.5, (3, 6)), (4, 0.0, (0, 2)), (4, 0.99, (5, 8)), (16, 0.5, (0, 8))],
)
def test_a_square_is_cut_out_and_clipped_at_the_border(
    size: int, centre: float, rows: tuple[int, int]
) -> None:
    images = cut_out(torch.ones(2, 3, 8, 8), size, torch.tensor([[centre, centre], [0.5, 0.5]]))
    first = (8 - size) // 2 if size < 8 else 0
    expected = torch.ones(8, 8)
    expected[rows[0] : rows[1], 4 - size // 2 if first else 0 : 4 - size // 2 + size] = 0
    assert torch.equal(images, expected.expand(2, 3, 8, 8))


def test_cutout_changes_nothing_but_its_squares() -> None:
    generator = seeded(0, "test")
    pixels = torch.randint(1, 256, (40, 3, 10, 10), dtype=torch.uint8, generator=generator)
    zero = Normalization((0.0,) * 3, (1.0,) * 3)

    def images(cutout: int) -> torch.Tensor:
        loader = TensorLoader(
            pixels,
            torch.arange(40),
            batch_size=16,
            normalization=zero,
            training=True,
            flip=True,
            cutout=cutout,
        )
        loader.set_epoch(3)
        return torch.cat([batch for batch, _ in loader])

    plain, cut = images(0), images(4)
    y, x = (torch.rand(2, 40, generator=seeded(0, "cutout 3")) * 10).long()
    for row in range(40):
        square = torch.zeros(10, 10, dtype=torch.bool)
        square[max(0, y[row] - 2) : y[row] + 2, max(0, x[row] - 2) : x[row] + 2] = True
        assert (cut[row][:, square] == 0).all()
        assert torch.equal(cut[row][:, ~square], plain[row][:, ~square])


def test_cutout_is_for_training_alone_and_off_by_default() -> None:
    data, plain = load_data("digits", cutout=8), load_data("digits")
    assert torch.equal(next(iter(data.val))[0], next(iter(plain.val))[0])
    assert not torch.equal(next(iter(data.train))[0], next(iter(plain.train))[0])
    assert plain.train.cutout == 0  # type: ignore[attr-defined]
    assert data.identity == plain.identity


def test_cutout_is_checked() -> None:
    with pytest.raises(UsageError, match="cutout is -1, expected 0 or more"):
        load_data("digits", cutout=-1)
    with pytest.raises(UsageError, match="cutout is 4, expected 0 or more, and 0 for a function"):
        load_data("some.module:function", cutout=4)
    with pytest.raises(UsageError, match="cutout is -1, expected at least 0"):
        TensorLoader(
            torch.zeros(4, 3, 8, 8), torch.arange(4), batch_size=2, normalization=Normalization(), cutout=-1
        )
