"""Pruning schemes: published methods that score channels. A scheme is a file here and a row in SCHEMES."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from edgeprune.channels import ChannelGroup
from edgeprune.data import Data
from edgeprune.errors import UsageError
from edgeprune.schemes.activation_weight import ActivationWeight
from edgeprune.schemes.bn_scale import BNScale
from edgeprune.schemes.hsic_lasso import HSICLasso
from edgeprune.schemes.magnitude import Magnitude
from edgeprune.schemes.obs import OBS
from edgeprune.schemes.options import parse_option
from edgeprune.schemes.proximal_ns import ProximalNS
from edgeprune.schemes.random_scores import Random
from edgeprune.schemes.scores import Scores
from edgeprune.schemes.sglp_ib import SGLPIB
from edgeprune.schemes.stlp_ib import STLPIB
from edgeprune.schemes.taylor import Taylor
from edgeprune.training import Progress

__all__ = [
    "SCHEMES", "SGLPIB", "STLPIB", "ActivationWeight", "BNScale", "HSICLasso", "Magnitude", "ProximalNS",
    "Random", "Scheme", "Scores", "Taylor", "make_scheme",
]  # fmt: skip


class Scheme(Protocol):
    """A method with its hyper-parameters; implementations are frozen dataclasses."""

    name: ClassVar[str]
    trains: ClassVar[bool]
    """True: ``fit`` trains ``model`` in place. False: ``fit`` leaves its state dict bit-identical."""

    def fit(
        self,
        model: nn.Module,
        groups: tuple[ChannelGroup, ...],
        data: Data,
        *,
        checkpoint: Path | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Scores:
        """Score the units of every group that is not frozen and that the method can judge."""
        ...


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme
    for scheme in (
        ProximalNS,
        SGLPIB,
        STLPIB,
        HSICLasso,
        Taylor,
        ActivationWeight,
        OBS,
        Magnitude,
        BNScale,
        Random,
    )
}


def make_scheme(name: str, **options: Any) -> Scheme:
    """A scheme by name.

    Args:
        name: A key of ``SCHEMES``.
        **options: Its hyper-parameters; text is converted, so that a command line can pass on what it got.

    Raises:
        UsageError: The scheme, an option or a value is unknown; the message lists what there is.

    Example:
        >>> make_scheme("magnitude", p="2")
        Magnitude(p=2, normalize='mean')
    """
    if name not in SCHEMES:
        raise UsageError(
            "could not set up the scheme",
            where="its name",
            value=repr(name),
            expected=f"one of {', '.join(SCHEMES)}",
        )
    scheme = SCHEMES[name]
    return scheme(**{key: parse_option(scheme, key, value) for key, value in options.items()})
