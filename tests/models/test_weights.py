from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.models import load_model, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(suffix: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / f"w{suffix}", _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / f"w{suffix}"))
    assert same(read_weights(str(tmp_path / f"w{suffix}")))


def test_safetensors_files(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert same(dict(sorted(found.items())), dict(sorted(STATE.items())))


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_is_found_inside_a_checkpoint(container: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, container: STATE, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"))
    torch.save({"model": {"state_dict": STATE, "epoch": 3}}, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + key: tensor for key, tensor in STATE.items()}, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"))


def test_only_prefixes_of_wrappers_are_removed(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b._orig_mod.c": torch.ones(1)}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == ["module.a", "b.c"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_not_there(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(ModelError, match=rf"w{suffix} is missing, expected a .pt, .pth, .th or .safetensors"):
        read_weights(path)
    path.touch()
    with pytest.raises(ModelError, match=rf"w{suffix} is empty"):
        read_weights(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelError, match=rf"w{suffix} is a folder"):
        read_weights(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [1, 20, 100, 0.5, 0.99])
def test_truncated_files(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept >= 1 else int(kept * len(content))])  # type: ignore[misc]
    assert path.stat().st_size < len(content)
    with pytest.raises(ModelError, match=r"truncated, unreadable or not a weights file .* Copy or download"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"hello world", b"\x80\x02.", b"PK\x03\x04 no archive", bytes(100)])
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"could not read the weights: .*w\.\w+ is"):
            read_weights(tmp_path / name)


class Trap:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> object:
        return Path.touch, (self.victim,)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Trap(victim)))
    assert victim.exists()  # the trap works where a file is unpickled freely
    victim.unlink()
    torch.save({"state_dict": STATE, "trap": Trap(victim)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"is a pickle of \w+, expected tensors only"):
        read_weights(tmp_path / "w.pt")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": nn.Linear(2, 2)}, "torch.nn.modules.linear.Linear"),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
    ],
)
def test_pickled_objects_are_refused_with_the_way_out(value: object, name: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"is a pickle of {name}, .*torch.save\(network.state_dict\(\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="is a TorchScript archive, expected tensors only"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 2], "a list,"),
        ({}, "a dict,"),
        ({"state_dict": {}}, "a dict,"),
        ({"epoch": 3, "best": 0.9}, "a dict with the keys 'epoch', 'best',"),
        ({"state_dict": STATE | {"step": 3}}, "a dict with the keys 'a.weight', 'a.bias', 'step',"),
        ({f"key{i}": i for i in range(12)}, "a dict with the keys 'key0', .*'key9', … 2 more,"),
    ],
)
def test_files_without_a_state_dict(value: object, found: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"w.pt is {found} expected a state dict \(names to tensors\)"):
        read_weights(tmp_path / "w.pt")


# --- into a network ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_num_batches_tracked_loads(tmp_path: Path) -> None:
    state = {k: v + 1 for k, v in load_model("resnet20").state_dict().items() if "num_batches" not in k}
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.7}, tmp_path / "w.th"
    )
    loaded = load_model("resnet20", weights=tmp_path / "w.th").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_half_precision_weights_load_as_single(tmp_path: Path) -> None:
    state = {key: tensor.half() for key, tensor in load_model("resnet20").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_model("resnet20", weights=tmp_path / "w.safetensors").state_dict()
    assert loaded["conv1.weight"].dtype == torch.float32
    assert torch.equal(loaded["conv1.weight"], state["conv1.weight"].float())


def test_every_difference_is_listed_at_once(tmp_path: Path) -> None:
    state = dict(load_model("resnet20").state_dict())
    del state["conv1.weight"]
    state["layer4.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(17)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as told:
        load_model("resnet20", weights=tmp_path / "w.pt")
    assert "w.pt is for another network: 1 missing (conv1.weight); 1 unexpected (layer4.weight); " in str(
        told.value
    )
    assert "1 wrongly shaped (bn1.weight (17,) for (16,))" in str(told.value)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save(load_model("resnet32").state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"72 unexpected \(layer1.3.conv1.weight, (\S+, ){9}… 62 more\)"):
        load_model("resnet20", weights=tmp_path / "w.pt")


@pytest.mark.slow
def test_the_public_checkpoint_is_read() -> None:
    root = os.environ.get("EDGEPRUNE_WEIGHTS") or f"{os.environ.get('EDGEPRUNE_DATA', '')}/weights"
    path = Path(root) / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip("resnet20-12fca82f.th is in neither EDGEPRUNE_WEIGHTS nor EDGEPRUNE_DATA/weights")
    state = read_weights(path)
    assert sum(tensor.numel() for key, tensor in state.items() if "running" not in key) == 269_722
