from __future__ import annotations

import hashlib
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from edgeprune.data import Data, Loader, Normalization, load_data
from edgeprune.errors import DataError

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", normalization=PLAIN)


def whole(loader: Loader) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def fingerprints(images: torch.Tensor) -> set[bytes]:
    return {hashlib.md5(image.numpy().tobytes()).digest() for image in images}


def test_digits_has_the_promised_shape_and_split(digits: Data) -> None:
    images, labels = whole(digits.test)
    assert images.shape == (359, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (digits.train.samples, digits.val.samples, digits.test.samples) == (1079, 359, 359)
    assert torch.bincount(labels).min() >= 34  # of 10 classes
    assert digits.classes == tuple("0123456789")
    assert digits.example.shape == (1, 3, 32, 32)
    assert images.min() == 0
    assert images.max() == 1
    assert all(isinstance(part, Loader) for part in (digits.train, digits.val, digits.test, digits.calib))


def test_digits_splits_share_no_image(digits: Data) -> None:
    parts = [digits.train.positions, digits.val.positions, digits.test.positions]  # type: ignore[attr-defined]
    assert torch.cat(parts).sort().values.tolist() == list(range(1797))
    images = digits.train.images  # type: ignore[attr-defined]
    train, val, test = (fingerprints(images[part]) for part in parts)
    assert not train & val
    assert not train & test
    assert not val & test
    assert fingerprints((whole(digits.calib)[0] * 255).round().to(torch.uint8)) <= train


def test_calib_is_balanced_also_within_a_batch(digits: Data) -> None:
    labels = whole(digits.calib)[1]
    assert torch.bincount(labels).tolist() == [51] * 10
    assert labels[:20].tolist() == [*range(10), *range(10)]


def test_digits_never_mirrors_and_shifts_by_at_most_3() -> None:
    train = load_data("digits", normalization=PLAIN).train
    assert (train.flip, train.pad) == (False, 3)  # type: ignore[attr-defined]


def test_the_split_and_the_identity_depend_on_the_seed_alone(digits: Data) -> None:
    again, other = load_data("digits", batch_size=7), load_data("digits", seed=1)
    assert again.identity == digits.identity
    assert other.identity != digits.identity
    assert not torch.equal(other.test.positions, digits.test.positions)  # type: ignore[attr-defined]


def test_the_network_s_normalization_is_applied(digits: Data) -> None:
    other = load_data("digits", normalization=Normalization((0.5, 0.25, 0.0), (0.5, 2.0, 4.0)))
    expected = (digits.example - torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1)) / torch.tensor(
        [0.5, 2.0, 4.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(other.example, expected)
    assert load_data("digits").normalization == Normalization()


class Cifar:
    """A small CIFAR folder whose md5 sums stand in torchvision's list, as the official ones do."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        self.official = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[kind]
        self.folder = root / str(self.official.base_folder)
        self.folder.mkdir(parents=True)
        self.monkeypatch = monkeypatch
        self.label_key = "labels" if kind == "cifar10" else "fine_labels"
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(256, size=(3, 20, 3072), dtype=np.uint8)
        self.plant()

    def plant(self) -> None:
        labels = [i % 2 for i in range(20)]
        batches = [{"data": pixels, self.label_key: labels} for pixels in self.pixels]
        md5 = {name: self.write(name, batch) for name, batch in zip("abt", batches, strict=True)}
        meta = self.official.meta
        named = meta | {"md5": self.write(meta["filename"], {meta["key"]: ["cat", "dog"]})}
        self.monkeypatch.setattr(self.official, "train_list", [["a", md5["a"]], ["b", md5["b"]]])
        self.monkeypatch.setattr(self.official, "test_list", [["t", md5["t"]]])
        self.monkeypatch.setattr(self.official, "meta", named)

    def write(self, name: str, value: object) -> str:
        content = pickle.dumps(value)
        (self.folder / name).write_bytes(content)
        return hashlib.md5(content).hexdigest()


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    return Cifar(tmp_path / "root", monkeypatch, "cifar10")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_reads_its_python_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Cifar(tmp_path, monkeypatch, kind)
    data = load_data(f"{kind}:{tmp_path}", normalization=PLAIN)
    assert data.name == f"{kind}:{tmp_path}"
    assert data.classes == ("cat", "dog")
    assert (data.train.samples, data.val.samples, data.test.samples) == (36, 4, 20)
    images, labels = whole(data.test)
    torch.testing.assert_close(images, torch.tensor(planted.pixels[2]).view(20, 3, 32, 32).float() / 255)
    assert labels.tolist() == [0, 1] * 10
    assert (data.train.pad, data.train.flip) == (4, True)  # type: ignore[attr-defined]
    positions = [getattr(data, part).positions for part in ("train", "val", "test")]
    assert torch.cat(positions).sort().values.tolist() == list(range(60))
    assert positions[2].tolist() == list(range(40, 60))


def test_cifar_may_be_given_by_its_own_folder_and_its_place_is_not_its_identity(
    planted: Cifar, tmp_path: Path
) -> None:
    data = load_data(f"cifar10:{planted.folder.parent}")
    shutil.move(planted.folder, tmp_path / "elsewhere")
    assert load_data(f"cifar10:{tmp_path / 'elsewhere'}").identity == data.identity
    planted.folder.mkdir()
    planted.pixels[0, 0, 0] ^= 1
    planted.plant()
    assert load_data(f"cifar10:{planted.folder}").identity != data.identity


def test_cifar_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder, .*cifar-10-batches-py. .*add --download"):
        load_data(f"cifar10:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"is a folder without it, expected .* contains cifar-100-python"):
        load_data(f"cifar100:{tmp_path}")


def test_cifar_with_a_missing_file(planted: Cifar) -> None:
    (planted.folder / "b").unlink()
    with pytest.raises(DataError, match="b is missing, expected a file of the official data set"):
        load_data(f"cifar10:{planted.folder.parent}")


def test_cifar_with_a_folder_for_a_file(planted: Cifar) -> None:
    (planted.folder / "b").unlink()
    (planted.folder / "b").mkdir()
    with pytest.raises(DataError, match="b is unreadable"):
        load_data(f"cifar10:{planted.folder.parent}")


def test_cifar_with_a_truncated_file(planted: Cifar) -> None:
    content = (planted.folder / "t").read_bytes()
    (planted.folder / "t").write_bytes(content[:-100])
    with pytest.raises(DataError, match=rf"t is truncated or changed \({len(content) - 100} bytes"):
        load_data(f"cifar10:{planted.folder.parent}")


class Trap:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> object:
        return Path.touch, (self.victim,)


def test_a_foreign_pickle_is_not_run(planted: Cifar, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Trap(victim)))
    assert victim.exists()  # the trap works where a file is unpickled
    victim.unlink()
    planted.write("a", Trap(victim))
    with pytest.raises(DataError, match="a is truncated or changed"):
        load_data(f"cifar10:{planted.folder.parent}")
    assert not victim.exists()


def test_download_only_when_asked_and_needed(
    planted: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = tmp_path / "store", []
    shutil.move(planted.folder, store)

    def fetch(url: str, root: str, *, filename: str, md5: str) -> None:
        calls.append((url, filename, md5))
        shutil.copytree(store, Path(root) / planted.folder.name)

    monkeypatch.setattr(tv.utils, "download_and_extract_archive", fetch)
    spec = f"cifar10:{planted.folder.parent}"
    with pytest.raises(DataError, match="add --download"):
        load_data(spec)
    assert not calls
    assert load_data(spec, download=True).test.samples == 20
    load_data(spec, download=True)
    assert calls == [(tv.CIFAR10.url, tv.CIFAR10.filename, tv.CIFAR10.tgz_md5)]


def test_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(tv.utils, "download_and_extract_archive", fetch)
    with pytest.raises(DataError, match=r"could not download .*out of reach .*no route"):
        load_data(f"cifar100:{tmp_path}", download=True)
