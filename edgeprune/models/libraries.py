"""Networks of torchvision and timm."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from edgeprune.data import Normalization
from edgeprune.errors import ModelError

PROBLEM = "could not make the network"

# Their public weights were trained on pixels in -1..1, with auxiliary heads that inference does not use.
_INCEPTION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NORMALIZATIONS = {"torchvision:googlenet": _INCEPTION, "torchvision:inception_v3": _INCEPTION}
_AUXILIARY = {"torchvision:googlenet": ("aux1.", "aux2."), "torchvision:inception_v3": ("AuxLogits.",)}

# torchvision's DenseNet files say norm.1 where its networks say norm1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def torchvision_model(name: str, num_classes: int | None) -> nn.Module:
    """An untrained classification network of torchvision, auxiliary heads off.

    Raises:
        ModelError: torchvision has no classification network of this name.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        rule = f"torchvision:NAME with one of torchvision's {len(known)} classification networks"
        raise unknown(f"torchvision:{name}", [f"torchvision:{one}" for one in known], rule)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if f"torchvision:{name}" in _AUXILIARY:
        options |= {"aux_logits": False, "init_weights": False}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def torchvision_names(source: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a torchvision file under the names that ``torchvision_model`` has.

    Args:
        source: ``torchvision:NAME``; the state of any other source is returned as it is.
        state: From the file.
    """
    if source.startswith("torchvision:densenet"):
        return {_OLD_DENSENET.sub(r"\1\2.", key): tensor for key, tensor in state.items()}
    auxiliary = _AUXILIARY.get(source, ())
    return {key: tensor for key, tensor in state.items() if not key.startswith(auxiliary)}


def timm_model(name: str, num_classes: int | None) -> nn.Module:
    """An untrained network of timm.

    Raises:
        ModelError: timm is not installed or has no such network.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of its own deprecated modules
        try:
            import timm
        except ImportError as reason:
            raise ModelError(
                PROBLEM,
                where="--model",
                value=f"timm:{name}",
                expected="timm to be installed",
                hint="Run `pip install timm`.",
            ) from reason
        if not timm.is_model(name):
            known = [f"timm:{one}" for one in timm.list_models()]
            raise unknown(f"timm:{name}", known, "timm:NAME with a name that timm.list_models() gives")
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def unknown(name: str, known: Iterable[str], expected: str) -> ModelError:
    """The error for a name that is not among ``known``, with the closest ones."""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else ""
    return ModelError(PROBLEM, where="--model", value=repr(name), expected=expected, hint=hint)
