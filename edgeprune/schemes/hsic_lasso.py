"""HSIC lasso, as the predecessor of sGLP-IB and sTLP-IB prunes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from edgeprune.calibration import Calibration, random_images
from edgeprune.data import Data
from edgeprune.gram import Quadratic
from edgeprune.lasso import Lasso, Problem, tied
from edgeprune.schemes.class_lasso import GramLasso, class_images
from edgeprune.schemes.options import option


@dataclass(frozen=True)
class HSICLasso(GramLasso):
    """Score of a unit: the largest lambda at which the HSIC lasso of a layer that reads it needs it.

    ``min_beta 1/(2 n^2) ||vec(L) - sum_k beta_k vec(K_k)||^2 + lambda ||beta||_1`` with the symbols of
    `SGLPIB`: its loss with all columns of B tied. It is what scikit-learn's ``Lasso(alpha=lambda)`` solves on
    the n^2 rows.

    Source:
        Guo et al. 2023, "Automatic Network Pruning via Hilbert-Schmidt Independence Criterion Lasso under
        Information Bottleneck Principle" (APIB, ICCV 2023); code songxmu/APIB, pruners/HSIClasso.py: one
        random batch, Gaussian Grams that are centred and not scaled.

    Differs:
        - The coefficients may be negative, as in the authors' code and unlike Yamada et al. 2014.
        - A path instead of a solve at one lambda; n^2 rows are never held.
        - ``scale="channel"`` gives every Gram length 1, ``scale="layer"`` every layer.

    Example:
        >>> HSICLasso(images=100).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    scale: Literal["layer", "units", "channel", "none"] = option(
        "none",
        "divide the Grams by one number per layer, only the units' ones so, by one per channel, or not",
    )
    weigh: Literal["logits", "none"] = option(
        "none", "weight of a layer's loss: how far the logits hang on its output, or the same for all"
    )
    batch: Literal["random", "balanced"] = option("random", "images at random, or equally many of each class")

    name: ClassVar[str] = "hsic-lasso"

    def calibrate(self, model: nn.Module, data: Data) -> tuple[Calibration, dict[str, Any]]:
        """One batch; no class counts."""
        if self.batch == "random":
            return random_images(data, self.images, self.seed), {"images": self.images}
        found, _ = class_images(model, data, self.images, len(data.classes), self.seed)
        return Calibration(found.images, 0 * found.labels, ("any",)), {"images": len(found)}

    def penalty(self, layers: Sequence[Quadratic]) -> Lasso:
        """The l1 norm."""
        del layers
        return Lasso()

    def pose(self, problem: Problem) -> Problem:
        """All columns tied; there is one."""
        return tied(problem)
