"""Networks by name: built-in ones, torchvision's, timm's and the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.data import Normalization
from edgeprune.data.user_code import call_user_function
from edgeprune.errors import DataError, ModelError
from edgeprune.models.cifar_resnet import CifarResNet
from edgeprune.models.densenet import DenseNet
from edgeprune.models.libraries import (
    NORMALIZATIONS,
    PROBLEM,
    timm_model,
    torchvision_model,
    torchvision_names,
    unknown,
)
from edgeprune.models.mobilenet import mobilenet_v2_32
from edgeprune.models.preact_resnet import PreactResNet
from edgeprune.models.vgg import VGG
from edgeprune.models.weights import load_weights, read_weights

__all__ = ["MODELS", "build", "load_model", "normalization_of", "read_weights", "source_of"]

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": partial(CifarResNet, 20),
    "resnet32": partial(CifarResNet, 32),
    "resnet44": partial(CifarResNet, 44),
    "resnet56": partial(CifarResNet, 56),
    "resnet110": partial(CifarResNet, 110),
    "resnet164": partial(PreactResNet, 164),
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
    "densenet40": partial(DenseNet, 40, 12),
    "mobilenet-v2": mobilenet_v2_32,
}
"""Built-in networks for 32x32 images: name to a function of the number of classes."""

_SOURCE = "_edgeprune_source"
"""Attribute with the source: in the module's ``__dict__``, so it is deep-copied but not in the state dict."""


def load_model(
    source: str, *, num_classes: int | None = None, weights: str | Path | None = None
) -> nn.Module:
    """Make a network and, if given, load its weights. Nothing is ever downloaded.

    Args:
        source: A built-in name (``MODELS``), ``torchvision:NAME``, ``timm:NAME`` or
            ``package.module:function``, a function that returns an ``nn.Module`` and is called with
            ``num_classes`` if it takes it and it is known.
        num_classes: Outputs; None: as many as the weights have, else 10 for a built-in network and the
            default of the library or function for any other.
        weights: A state dict in a file, see ``read_weights``.

    Returns:
        The network in evaluation mode; ``source_of`` tells how to build it again.

    Raises:
        ModelError: No such network, or the weights are not for it.

    Example:
        >>> model = load_model("resnet20")
        >>> source_of(model)
        {'name': 'resnet20', 'num_classes': 10}
    """
    model = build({"name": source, "num_classes": num_classes})
    if weights is not None:
        state = torchvision_names(source, read_weights(weights))
        told = _other_num_classes(model, state)
        if num_classes is None and told is not None:
            model = build({"name": source, "num_classes": told})
        load_weights(model, state, str(weights))
    return model


def build(source: dict[str, Any]) -> nn.Module:
    """Build an untrained network, in evaluation mode, from ``source_of(model)``.

    Args:
        source: ``{"name": ..., "num_classes": int or None}``.

    Raises:
        ModelError: The source is not one, or no such network exists.
    """
    if not isinstance(source, dict) or set(source) != {"name", "num_classes"}:
        raise ModelError(PROBLEM, where="source", value=source, expected="the keys name and num_classes")
    name, num_classes = str(source["name"]), source["num_classes"]
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise ModelError(
            PROBLEM, where="num_classes", value=num_classes, expected="a whole number of at least 1"
        )
    kind, _, rest = name.partition(":")
    if name in MODELS:
        num_classes = 10 if num_classes is None else num_classes
        model = MODELS[name](num_classes)
    elif not (kind and rest):
        rule = f"torchvision:NAME, timm:NAME, package.module:function or one of {', '.join(MODELS)}"
        raise unknown(name, MODELS, rule)
    elif kind == "torchvision":
        model = torchvision_model(rest, num_classes)
    elif kind == "timm":
        model = timm_model(rest, num_classes)
    else:
        model = _user_model(name, num_classes)
    setattr(model, _SOURCE, {"name": name, "num_classes": num_classes})
    return model.eval()


def source_of(model: nn.Module) -> dict[str, Any] | None:
    """How to build ``model`` again, ready for JSON; None if edgeprune did not build it."""
    source = getattr(model, _SOURCE, None)
    return None if source is None else dict(source)


def normalization_of(model: nn.Module) -> Normalization:
    """The normalization of pixels that a network was trained with.

    An attribute ``normalization`` of the network counts first (a ``Normalization`` or a pair of mean and
    std), then what timm states; built-in and torchvision's networks have ImageNet's, except two.

    Raises:
        ModelError: The attribute is not a normalization.
    """
    own = getattr(model, "normalization", None)
    if own is not None and not isinstance(own, nn.Module | Tensor) and not callable(own):
        return _normalization(own)
    name = (source_of(model) or {}).get("name", "")
    stated = getattr(model, "pretrained_cfg", None)
    if name.startswith("timm:") and stated:
        return _normalization((stated["mean"], stated["std"]))
    return NORMALIZATIONS.get(name, Normalization())


def _normalization(value: Any) -> Normalization:
    try:
        mean, std = (value.mean, value.std) if isinstance(value, Normalization) else value
        return Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError, DataError):
        raise ModelError(
            "could not tell how to normalise images",
            where="the network's attribute `normalization`",
            value=repr(value),
            expected="a Normalization, or a pair (mean, std) with one finite number per channel, std > 0",
        ) from None


def _user_model(spec: str, num_classes: int | None) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    model = call_user_function(spec, ModelError, PROBLEM, ("torchvision", "timm"), **options)
    if not isinstance(model, nn.Module):
        value = f"a function that returns {type(model).__name__}"
        raise ModelError(PROBLEM, where=spec, value=value, expected="one that returns an nn.Module")
    return model


def _other_num_classes(model: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Rows of the last layer in ``state``, where they differ from the network's."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return None
    name, last = layers[-1]
    tensor = state.get(f"{name}.weight")
    return None if tensor is None or len(tensor) == len(last.weight) else len(tensor)
