"""A pass split among processes, begun in its middle, or made on a device is the whole pass's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import edgeprune.data.loaders as loaders
from edgeprune.data import (
    Data,
    Loader,
    Normalization,
    TensorLoader,
    UserLoader,
    completed,
    load_data,
    part_of,
)
from edgeprune.data.completing import Completed
from edgeprune.data.copying import copied
from edgeprune.errors import DataError, UsageError

Make = Callable[[], Loader]


def tensor_loader(count: int = 43, **options: object) -> TensorLoader:
    images = torch.randint(
        256, (count, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    defaults = {"batch_size": 8, "training": True, "pad": 2, "flip": True, "cutout": 3, "seed": 1}
    return TensorLoader(images, torch.arange(count), normalization=Normalization(), **(defaults | options))  # type: ignore[arg-type]


class Plain:
    """A user's loader that has the least there is."""

    samples = 43

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for labels in torch.arange(43).split(8):
            yield (labels + self.epoch).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels % 2

    def __len__(self) -> int:
        return 6

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def user_data(loader: UserLoader, monkeypatch: pytest.MonkeyPatch) -> Data:
    images, labels = next(iter(loader))
    data = replace(load_data("digits"), example=images[:1].contiguous(), classes=("a",) * 43)
    parts = dict.fromkeys(("train", "val", "test", "calib"), loader)
    monkeypatch.setattr(
        sys.modules[__name__], "make", lambda: replace(data, **parts, identity="1"), raising=False
    )
    assert labels.max() < 43
    return load_data(f"{__name__}:make")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, each in (("train", 10), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for number in range(each):
                pixels = rng.integers(256, size=(12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.bmp")
    return root


@pytest.fixture(params=["tensor", "tensor in order", "folder", "user", "user's tensor"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    if request.param == "tensor":
        return tensor_loader
    if request.param == "tensor in order":
        return lambda: tensor_loader(41, training=False)  # the last batch is one image
    if request.param == "folder":
        root = request.getfixturevalue("folder")
        return lambda: load_data(f"imagefolder:{root}", batch_size=6, image_size=8, cutout=3).train
    inner = Plain if request.param == "user" else tensor_loader
    return lambda: user_data(inner(), monkeypatch).train


def batches(loader: UserLoader, epoch: int = 1) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def same(ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_parts_of_all_ranks_are_the_whole_pass(make: Make, ranks: int) -> None:
    whole = make()
    parts = [whole.shard(rank, ranks) for rank in range(ranks)]
    assert {(len(part), part.samples) for part in parts} == {(len(whole), whole.samples)}
    by_rank = [batches(part) for part in parts]
    joined = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*by_rank, strict=True)]
    assert same(joined, batches(whole))
    assert ranks == 1 or not same(joined, [(images.flip(0), labels) for images, labels in joined])
    for step in zip(*by_rank, strict=True):
        counts = [len(labels) for _, labels in step]
        assert max(counts) - min(counts) <= 1


def test_a_part_of_a_part_is_one_of_the_whole(make: Make) -> None:
    whole = make()
    assert same(batches(whole.shard(0, 2).shard(2, 3)), batches(whole.shard(2, 3)))


def test_a_batch_smaller_than_the_ranks_gives_empty_ones() -> None:
    whole = tensor_loader(42)  # the last batch is two images
    last = [batches(whole.shard(rank, 4))[-1] for rank in range(4)]
    assert [len(labels) for _, labels in last] == [0, 1, 0, 1]
    assert last[0][0].shape == (0, 3, 8, 6)


def test_empty_batches_of_a_folder(folder: Path) -> None:
    whole = load_data(f"imagefolder:{folder}", batch_size=9, image_size=8).train  # 9, 9 and 2 images
    last = [batches(whole.shard(rank, 3))[-1] for rank in range(3)]
    assert [tuple(images.shape) for images, _ in last] == [(0, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)]


@pytest.mark.parametrize(("rank", "ranks"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_is_not_there(make: Make, rank: int, ranks: int) -> None:
    with pytest.raises(UsageError, match=f"rank is {rank} of {ranks}, expected from 0 to below"):
        make().shard(rank, ranks)
    with pytest.raises(UsageError, match="could not split a batch among processes"):
        part_of(5, rank, ranks)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_a_pass_from_its_middle_is_the_tail_of_the_whole(make: Make, rank: int, ranks: int) -> None:
    loader = make().shard(rank, ranks)
    whole = batches(loader)
    for step in (0, 1, len(loader) - 1, len(loader)):
        begins = loader.skip_to(step)
        can = not isinstance(loader, Completed) or hasattr(loader.loader, "skip_to")
        assert begins == (step if can else 0)
        assert same(batches(loader), whole[begins:])
        assert len(loader) == len(whole)
    assert same(batches(loader), whole)  # once only


@pytest.mark.parametrize("step", [-1, 100])
def test_a_first_step_that_is_not_there(make: Make, step: int) -> None:
    with pytest.raises(UsageError, match=rf"the first step is {step}, expected from 0 to \d, the batches"):
        make().skip_to(step)


def test_what_is_skipped_and_what_is_another_rank_s_is_not_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = load_data(f"imagefolder:{folder}", batch_size=6, image_size=8).train.shard(0, 2)
    decode, decoded = loader._image, []  # type: ignore[attr-defined]
    monkeypatch.setattr(loader, "_image", lambda path, draws: decoded.append(path) or decode(path, draws))
    loader.skip_to(2)
    assert sum(len(labels) for _, labels in loader) == len(decoded) == 4  # of 6 + 2 images


def test_on_the_cpu_nothing_changes(make: Make) -> None:
    loader = make()
    assert same(batches(loader.on("cpu")), batches(loader))


def test_on_a_device_every_batch_is_there(make: Make) -> None:
    """The device ``meta`` computes shapes and places alone, and refuses to mix them with the CPU's."""
    loader = make()
    moved = loader.on("meta").shard(1, 2)
    theirs = batches(loader.shard(1, 2))[moved.skip_to(1) :]
    if "user" not in type(loader).__module__:  # user's labels are looked at, and meta has none to look at
        ours = batches(moved)
        assert {tensor.device.type for batch in ours for tensor in batch} == {"meta"}
        assert [images.shape for images, _ in ours] == [images.shape for images, _ in theirs]
        assert {images.dtype for images, _ in ours} == {torch.float32}


def test_a_user_s_loader_is_copied_after_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = batches(user_data(Plain(), monkeypatch).on("meta").train)
    assert [tuple(images.shape) for images, _ in ours] == [(8, 3, 4, 4)] * 5 + [(3, 3, 4, 4)]
    assert {tensor.device.type for batch in ours for tensor in batch} == {"meta"}


def test_images_in_memory_move_once_and_their_own_split_only() -> None:
    data = load_data("digits").on("meta")
    assert data.train.images.shape == (1079, 3, 32, 32)  # type: ignore[attr-defined]
    assert data.train.images.device.type == data.train.labels.device.type == "meta"  # type: ignore[attr-defined]
    assert data.on("meta").train.images is data.train.images  # type: ignore[attr-defined]
    assert data.example.device.type == "cpu"


def test_a_split_too_large_for_the_device_is_copied_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "RESIDENT_BYTES", 43 * 3 * 8 * 6 - 1)
    moved = tensor_loader().on("meta")
    assert moved.images.device.type == "cpu"
    assert {tensor.device.type for batch in batches(moved) for tensor in batch} == {"meta"}
    monkeypatch.setattr(loaders, "RESIDENT_BYTES", 43 * 3 * 8 * 6)
    assert tensor_loader().on("meta").images.device.type == "meta"


def test_a_loader_that_has_the_least_is_completed() -> None:
    plain = Plain()
    data = replace(load_data("digits"), train=plain)  # type: ignore[arg-type]
    assert {labels.device.type for _, labels in data.on("meta").train} == {"meta"}
    parts = [completed(plain).shard(rank, 3) for rank in range(3)]
    for whole, *split in zip(plain, *parts, strict=True):
        assert torch.equal(torch.cat([images for images, _ in split]), whole[0])
        assert torch.equal(torch.cat([labels for _, labels in split]), whole[1])
    parts[0].set_epoch(3)
    assert (plain.epoch, len(parts[0]), parts[0].samples) == (3, 6, 43)
    assert completed(parts[0]) is parts[0]


def test_what_a_users_loader_has_is_asked() -> None:
    class Able(Plain):
        told: ClassVar[list[object]] = []

        def skip_to(self, step: int) -> None:
            self.told.append(step)

        def shard(self, rank: int, ranks: int) -> Plain:
            self.told.append((rank, ranks))
            return self

    able = Able()
    assert completed(able).skip_to(2) == 2
    assert same(batches(completed(able).shard(1, 2)), batches(able))
    assert able.told == [2, (1, 2)]


def test_copies_are_one_batch_ahead_and_a_fault_comes_through() -> None:
    pulled = []

    def three() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(3):
            pulled.append(number)
            yield torch.full((2, 1), float(number)), torch.tensor([number, number])
        raise DataError("could not decode an image")

    copies = copied(three(), torch.device("cpu"))
    for number in range(2):
        images, labels = next(copies)
        assert (float(images[0]), labels.tolist()) == (number, [number, number])
        assert pulled == list(range(number + 2))
    with pytest.raises(DataError, match="could not decode an image"):
        next(copies)


@pytest.mark.gpu
def test_a_gpu_sees_the_images_of_the_cpu(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for resident in (loaders.RESIDENT_BYTES, 0):
        monkeypatch.setattr(loaders, "RESIDENT_BYTES", resident)
        loader = make()
        moved = loader.on("cuda")
        begins = moved.skip_to(1)
        ours = [(images.cpu(), labels.cpu()) for images, labels in batches(moved)]
        assert same(ours, batches(loader)[begins:])
        assert next(iter(moved))[0].is_cuda
