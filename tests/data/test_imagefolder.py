from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edgeprune.data.imagefolder as imagefolder
from edgeprune.data import Data, Loader, Normalization, load_data
from edgeprune.errors import DataError


def whole(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def plant_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> None:
    rng = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(256, size=(20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.bmp")


def load_images(root: Path, **options: object) -> Data:
    return load_data(f"imagefolder:{root}", batch_size=3, image_size=8, **options)  # type: ignore[arg-type]


def test_imagefolder_with_all_parts(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        plant_images(tmp_path / part)
    data = load_images(tmp_path)
    assert [p.samples for p in (data.train, data.val, data.test, data.calib)] == [8, 8, 8, 8]
    images, labels = whole(data.val)
    assert images.shape == (8, 3, 8, 8)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert data.example.shape == (1, 3, 8, 8)
    assert data.classes == ("cat", "dog")
    assert data.val.paths[data.val.positions[0]] == str(tmp_path / "val/cat/0.bmp")  # type: ignore[attr-defined]


def test_imagefolder_images_are_224_unless_told(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    assert load_data(f"imagefolder:{tmp_path}", batch_size=2).example.shape == (1, 3, 224, 224)


def test_imagefolder_evaluates_the_centre_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision import transforms as T

    plant_images(tmp_path / "train")
    data = load_images(tmp_path, normalization=Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    theirs = T.Compose(
        [T.Resize(9), T.CenterCrop(8), T.ToTensor(), T.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))]
    )
    path = data.test.paths[int(data.test.positions[0])]  # type: ignore[attr-defined]
    torch.testing.assert_close(whole(data.test)[0][0], theirs(Image.open(path)))


def test_imagefolder_cuts_the_parts_it_lacks_from_train(tmp_path: Path) -> None:
    plant_images(tmp_path / "train", each=20)
    data, other = load_images(tmp_path), load_images(tmp_path, seed=1)
    parts = [getattr(data, part).positions for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert torch.cat(parts).sort().values.tolist() == list(range(40))
    assert set(data.calib.positions.tolist()) <= set(parts[0].tolist())  # type: ignore[attr-defined]
    assert other.identity != data.identity

    plant_images(tmp_path / "test")
    with_test = load_images(tmp_path)
    assert (with_test.train.samples, with_test.val.samples, with_test.test.samples) == (36, 4, 8)


def test_imagefolder_training_replays_and_varies(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    first, again = load_images(tmp_path).train, load_images(tmp_path).train
    images, labels = whole(first)
    assert images.shape[1:] == (3, 8, 8)
    assert torch.equal(whole(again)[0], images)
    again.set_epoch(1)
    later, later_labels = whole(again)
    assert not torch.equal(later[later_labels.argsort()], images[labels.argsort()])


@pytest.mark.parametrize("mirrored", [True, False])
def test_imagefolder_training_crops_resizes_and_mirrors(mirrored: bool, tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    path = str(tmp_path / "train" / "cat" / "0.bmp")  # 30 wide, 20 high
    train = load_images(tmp_path).train
    # All of the area at aspect 1 is 24.5 squared, of which 24x20 fit; 0.99 is the rightmost of 7 places.
    ours = train._image(path, [1.0, 0.5, 0.99, 0.0, 0.4 if mirrored else 0.6])  # type: ignore[attr-defined]
    theirs = Image.open(path).crop((6, 0, 30, 20)).resize((8, 8), Image.Resampling.BILINEAR)
    if mirrored:
        theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert torch.equal(ours, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))


def test_imagefolder_training_crops_stay_inside_odd_images(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    for number, size in enumerate([(1, 1), (300, 2), (2, 300)]):
        Image.new("RGB", size).save(tmp_path / "train" / "cat" / f"odd{number}.bmp")
    train = load_images(tmp_path).train
    for epoch in range(20):
        train.set_epoch(epoch)
        assert len(whole(train)[0]) == train.samples


def test_imagefolder_identity_is_content_not_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_images(tmp_path / "here" / "train")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    known = load_images(tmp_path / "here").identity
    assert load_images(tmp_path / "there").identity == known
    file = tmp_path / "there" / "train" / "cat" / "0.bmp"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load_images(tmp_path / "there").identity != known

    monkeypatch.setattr(imagefolder, "HASHED_BYTES", 10)  # a huge set: names and sizes only
    by_size = load_images(tmp_path / "here").identity
    assert load_images(tmp_path / "there").identity == by_size != known
    file.write_bytes(content + b"!")
    assert load_images(tmp_path / "there").identity != by_size


def test_imagefolder_without_train(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train is missing, expected a folder with one folder of images"):
        load_images(tmp_path)


def test_imagefolder_with_an_empty_class(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"incomplete \(Found no valid file for the classes emu\)"):
        load_images(tmp_path)


def test_imagefolder_with_one_class(tmp_path: Path) -> None:
    plant_images(tmp_path / "train", classes=("cat",))
    with pytest.raises(DataError, match=r"a folder with one class \(cat\), expected at least 2"):
        load_images(tmp_path)


def test_imagefolder_with_other_classes_in_val(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    plant_images(tmp_path / "val", classes=("cat", "emu"))
    with pytest.raises(DataError, match=r"val is a folder with the classes cat, emu, .*train: cat, dog"):
        load_images(tmp_path)


def test_imagefolder_with_a_broken_image_names_the_file(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    plant_images(tmp_path / "val")
    file = tmp_path / "val" / "dog" / "1.bmp"
    file.write_bytes(file.read_bytes()[:100])
    data = load_images(tmp_path)
    with pytest.raises(DataError, match=r"could not decode an image: .*val/dog/1.bmp is broken \(OSError"):
        whole(data.val)


def test_imagefolder_with_a_dangling_link(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    (tmp_path / "train" / "cat" / "link.bmp").symlink_to(tmp_path / "gone.bmp")
    with pytest.raises(DataError, match=r"link\.bmp is unreadable"):
        load_images(tmp_path)


def test_imagefolder_with_a_pipe_instead_of_an_image(tmp_path: Path) -> None:
    plant_images(tmp_path / "train")
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.bmp")
    with pytest.raises(DataError, match=r"pipe\.bmp is not a regular file, expected an image file"):
        load_images(tmp_path)


def test_imagefolder_with_storage_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_images(tmp_path / "train")
    data, answer = load_images(tmp_path), threading.Event()
    monkeypatch.setattr(Image, "open", lambda _: answer.wait())
    monkeypatch.setattr(imagefolder, "DECODING_S", 0.05)
    try:
        with pytest.raises(DataError, match=r"train/.*\.bmp is not decoded after 0\.05 s"):
            whole(data.val)
    finally:
        answer.set()


@pytest.mark.parametrize("failing", ["open", "resize"])
def test_imagefolder_names_the_file_whatever_fails(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no memory")

    plant_images(tmp_path / "train")
    data = load_images(tmp_path)
    place = Image if failing == "open" else Image.Image
    monkeypatch.setattr(place, failing, fail)
    with pytest.raises(DataError, match=r"train/.*\.bmp is broken \(MemoryError: no memory\)"):
        whole(data.train)
