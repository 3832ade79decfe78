"""Weights from files: read without running code from them, loaded with every difference listed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError

PROBLEM = "could not read the weights"
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
FILES = "a .pt, .pth, .th or .safetensors file"
SHOWN = 10
"""Keys listed per kind of difference."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .pt, .pth, .th or .safetensors file.

    A checkpoint may hold it under ``state_dict``, ``model_state_dict``, ``model`` or ``net``. Prefixes that
    ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) leave are removed. Files are never
    unpickled freely: only tensors and plain containers are read.

    Args:
        path: The file.

    Returns:
        Tensors on the CPU by name.

    Raises:
        ModelError: The file is missing, broken or holds no state dict.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        value = "empty" if path.is_file() else "a folder" if path.is_dir() else "missing"
        raise ModelError(PROBLEM, where=str(path), value=value, expected=FILES)
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _state_dict(found, path)
    while state and all(key.startswith(("module.", "_orig_mod.")) for key in state):
        state = {key.partition(".")[2]: tensor for key, tensor in state.items()}
    return {key.replace("._orig_mod.", "."): tensor for key, tensor in state.items()}


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as reason:
        raise _broken(path, reason) from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on TorchScript archives; the error says it again
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # a damaged file makes the unpickler fail in any way
        refused = re.search(r"(?:GLOBAL|Unsupported class|type) ([\w.]+) ", str(reason))
        if refused is None and "TorchScript" not in str(reason):
            raise _broken(path, reason) from None
        raise ModelError(
            PROBLEM,
            where=str(path),
            value=f"a pickle of {refused[1]}" if refused else "a TorchScript archive",
            expected="tensors only, since unpickling anything else can run code",
            hint="Where you trust the file, load it as it was saved, write its state dict alone with "
            "torch.save(network.state_dict(), 'weights.pt') and give that file.",
        ) from None


def _broken(path: Path, reason: Exception) -> ModelError:
    return ModelError(
        PROBLEM,
        where=str(path),
        value=f"truncated, unreadable or not a weights file ({type(reason).__name__})",
        expected=FILES,
        hint="Copy or download it again.",
    )


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(found, Mapping):
        if found and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
            return dict(found)
        inner = next((found[key] for key in CONTAINERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    keys = f" with the keys {_some(map(repr, found))}" if isinstance(found, Mapping) and found else ""
    raise ModelError(
        PROBLEM,
        where=str(path),
        value=f"a {type(found).__name__}{keys}",
        expected=f"a state dict (names to tensors), by itself or under {', '.join(CONTAINERS)}",
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy ``state`` into ``model``; they must agree in every name and shape.

    Only ``num_batches_tracked`` may be absent: checkpoints of torch before 0.4.1 have none, and inference
    does not read it.

    Args:
        model: Changed in place.
        state: From ``read_weights``.
        name: Of the file, for the message.

    Raises:
        ModelError: Lists all missing, unexpected and wrongly shaped names at once.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrongly shaped": shapes}
    faults = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys]
    if faults:
        raise ModelError(
            "could not load the weights",
            where=name,
            value="for another network: " + "; ".join(faults),
            expected="the names and shapes of this network",
            hint="Give the network that the weights were trained for, with its number of classes.",
        )
    own.update(state)  # its layer versions stay: some torchvision networks refuse a state without them
    model.load_state_dict(own)


def _some(items: Iterable[str]) -> str:
    items = list(items)
    more = f", … {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
