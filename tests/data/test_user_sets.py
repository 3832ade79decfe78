"""Data sets that the user writes: package.module:function."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune.data import Data, Loader, Normalization, TensorLoader, load_data
from edgeprune.errors import DataError

GREY = Normalization((0.5,), (0.5,))
SPEC = f"{__name__}:make"


def good(batch_size: int = 4, seed: int = 0, normalization: Normalization = GREY) -> Data:
    def part(**options: bool) -> TensorLoader:
        images = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        return TensorLoader(
            images, torch.arange(10) % 3, batch_size=batch_size, normalization=normalization, **options
        )

    train = part(training=True)
    return Data(
        name="mine",
        train=train,
        val=part(),
        test=part(),
        calib=part(),
        example=next(iter(part()))[0][:1],
        classes=("a", "b", "c"),
        normalization=normalization,
        identity="1",
    )


def offer(monkeypatch: pytest.MonkeyPatch, result: object) -> None:
    monkeypatch.setattr(sys.modules[__name__], "make", lambda: result, raising=False)


def test_a_function_in_the_current_folder_is_called_with_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_data.py").write_text(
        f"from {__name__} import good\n"
        "seen = {}\n"
        "def plain(): return good()\n"
        "def some(*, seed, normalization): seen.update(seed=seed); return good(7, seed, normalization)\n"
        "def every(**options): seen.update(options); return good(**options)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    data = load_data("own_data:plain", batch_size=3)
    assert data.name == "own_data:plain"
    assert next(iter(data.train))[0].shape == (4, 1, 6, 6)
    data = load_data("own_data:some", seed=5, normalization=GREY)
    assert sys.modules["own_data"].seen == {"seed": 5}
    assert data.normalization == GREY
    load_data("own_data:every", batch_size=3, seed=1, normalization=GREY)
    assert sys.modules["own_data"].seen == {"seed": 1, "batch_size": 3, "normalization": GREY}
    monkeypatch.delitem(sys.modules, "own_data")


def test_batches_pass_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, good())
    data, direct = load_data(SPEC), good()
    assert (len(data.train), data.train.samples) == (len(direct.train), direct.train.samples) == (3, 10)
    data.train.set_epoch(3)
    direct.train.set_epoch(3)
    for ours, theirs in zip(data.train, direct.train, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


class Fixed:
    """A loader that gives these batches."""

    samples = 4

    def __init__(self, *batches: object) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[object]:
        for batch in self.batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        pass


IMAGES, LABELS = torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("a",)}, r"classes is \('a',\), expected a tuple of at least 2 names"),
        ({"classes": None}, "classes is None, expected a tuple"),
        ({"classes": ("a", 1)}, "expected a tuple of at least 2 names"),
        ({"example": IMAGES}, r"example is torch.float32 \(4, 1, 6, 6\), expected a float32 tensor \(1, C"),
        ({"example": 3}, "example is 3, expected a float32 tensor"),
        ({"normalization": Normalization()}, "expected a Normalization of 1 channels"),
        ({"identity": ""}, "identity is '', expected a text that changes when the data do"),
        ({"val": [1, 2]}, "val is a list, expected a loader with .*TensorLoader is one"),
        ({"val": Fixed()}, "val is empty, expected at least one batch"),
        ({"val": Fixed(IMAGES)}, r"val is one that gives a Tensor, expected pairs \(images, labels\)"),
        ({"val": Fixed((IMAGES, [0]))}, "val is one that gives a tuple, expected pairs"),
        (
            {"val": Fixed((IMAGES[..., 1:], LABELS))},
            r"images torch.float32 \(4, 1, 6, 5\), expected float32 \(N, 1, 6, 6",
        ),
        ({"val": Fixed((IMAGES.double(), LABELS))}, "images torch.float64"),
        ({"val": Fixed((IMAGES, LABELS.int()))}, r"labels torch.int32 \(4,\), expected int64 \(4,\)"),
        ({"val": Fixed((IMAGES, LABELS + 3))}, "labels 3 to 3, expected 0 to 2"),
        ({"val": Fixed((IMAGES, LABELS - 1))}, "labels -1 to -1, expected 0 to 2"),
        ({"val": Fixed(ValueError("out of tape"))}, r"one that fails \(ValueError: out of tape\)"),
        ({"val": Fixed(EOFError())}, r"one that fails \(EOFError: \)\. A worker process has died"),
        ({"val": Fixed(DataError("could not decode an image"))}, "^could not decode an image"),
    ],
)
def test_every_fault_of_the_result_is_told(
    changed: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, replace(good(), **changed))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_data(SPEC)


def test_a_late_batch_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, replace(good(), test=Fixed((IMAGES, LABELS), (IMAGES, LABELS + 3))))  # type: ignore[arg-type]
    test: Loader = load_data(SPEC).test
    with pytest.raises(DataError, match="labels 3 to 3"):
        list(test)


def test_another_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, 3)
    with pytest.raises(DataError, match=r"the result is a int, expected an edgeprune.data.Data"):
        load_data(SPEC)


def test_a_normalization_that_is_not_the_network_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, good())
    with pytest.raises(DataError, match=r"expected the network's, mean \(0.0,\).* take normalization="):
        load_data(SPEC, normalization=Normalization((0.0,), (1.0,)))
    assert load_data(SPEC, normalization=GREY).normalization == GREY


@pytest.mark.parametrize(
    ("text", "spec", "message"),
    [
        ("", "absent.module:f", "in no module that Python finds.* Modules are looked for in"),
        ("import nothing_like_it", "own:f", "in a module that fails .*No module named 'nothing_like_it'"),
        ("x = 1 / 0", "own:f", r"in a module that fails \(ZeroDivisionError"),
        ("f = 3", "own:f", "own:f is not a function of own"),
        ("", "own:f", "own:f is not a function of own"),
        ("def f(): raise OSError('disk')", "own:f", r"own:f is a function that fails \(OSError: disk\)"),
    ],
)
def test_faults_of_the_user_s_code(
    text: str, spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own", None)
    with pytest.raises(DataError, match=message):
        load_data(spec)
    sys.modules.pop("own", None)


DYING = """
import os, signal, warnings
import torch
from dataclasses import replace
from edgeprune.data import load_data
from edgeprune.errors import DataError

warnings.simplefilter("ignore")

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 32, 32), 0

class Loader(torch.utils.data.DataLoader):
    samples = 64

    def set_epoch(self, epoch):
        pass

def make():
    return replace(load_data("digits"), train=Loader(Images(), batch_size=4, num_workers=1), identity="1")

train = load_data("__main__:make").train
try:
    list(train)
except DataError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_death_of_a_user_s_worker_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=120, check=False
    )
    # torch tells of it in one of several ways, whichever it notices first.
    assert "__main__:make: train is one that fails (" in done.stdout, done.stderr
    assert "A worker process has died" in done.stdout
