"""Memory that is used again, and only when nobody needs what was in it."""

from __future__ import annotations

import gc

import pytest
import torch

from edgeprune.scratch import ALIGNMENT, SMALLEST, Scratch

CPU = torch.device("cpu")
LARGE = (SMALLEST // 8, 4)


def test_memory_is_used_again_when_nothing_holds_it() -> None:
    scratch = Scratch()
    first = scratch.empty(LARGE, torch.float64, CPU)
    place = first.data_ptr()
    del first
    assert scratch.empty((LARGE[0], 2), torch.float64, CPU).data_ptr() == place
    assert scratch.empty(LARGE, torch.complex128, CPU).data_ptr() % ALIGNMENT == 0


@pytest.mark.parametrize(
    "hold", [lambda x: x, lambda x: x.T[1:], lambda x: x.numpy(), lambda x: [x.detach()]]
)
def test_memory_is_never_used_again_while_something_holds_it(hold) -> None:  # type: ignore[no-untyped-def]
    scratch = Scratch()
    held = hold(scratch.copy(torch.ones(LARGE), torch.float64))
    gc.collect()
    for _ in range(3):
        scratch.copy(torch.zeros(LARGE), torch.float64)
    (found,) = held if isinstance(held, list) else (held,)
    assert bool((found == 1).all())


def test_too_small_memory_makes_place_for_larger() -> None:
    scratch = Scratch()
    small = [scratch.empty(LARGE, torch.float32, CPU) for _ in range(2)]
    del small
    assert len(scratch._free) == 2
    large = scratch.empty(LARGE, torch.float64, CPU)
    assert len(scratch._free) == 1
    del large
    assert sorted(map(len, scratch._free)) == [4 * 4 * LARGE[0] + ALIGNMENT, 8 * 4 * LARGE[0] + ALIGNMENT]
    scratch.empty(LARGE, torch.float32, CPU)
    assert len(scratch._free) == 2


def test_small_tensors_and_those_of_other_devices_are_torchs_own() -> None:
    scratch = Scratch()
    assert scratch.empty((3, 2), torch.int64, CPU).shape == (3, 2)
    assert scratch.empty(LARGE, torch.float64, torch.device("meta")).is_meta
    assert scratch._free == []


@pytest.mark.parametrize("shape", [(5, 4, 3), LARGE])
def test_copies_and_choices(shape: tuple[int, ...]) -> None:
    scratch, tensor = Scratch(), torch.randn(shape)
    assert torch.equal(scratch.copy(tensor, torch.float64), tensor.double())
    kept = torch.tensor([0, 3])
    assert torch.equal(scratch.chosen(tensor, 1, kept), tensor[:, kept])
    assert torch.equal(scratch.chosen(tensor.transpose(0, 1), 0, kept), tensor[:, kept].transpose(0, 1))
