"""sTLP-IB: the class-wise tree lasso."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgeprune.gram import Quadratic
from edgeprune.lasso import TreeLasso, build_tree
from edgeprune.schemes.class_lasso import ClassLasso


@dataclass(frozen=True)
class STLPIB(ClassLasso):
    """Score of a unit: the largest lambda at which a tree lasso on the layers that read it needs it.

    ``min_B 1/(2 n^2) sum_c ||b_c - A_c B_c||^2 + lambda sum_k sum_v w_v ||B_{k, G_v}||_2`` with the symbols
    of `SGLPIB`, over the nodes v of the tree that complete linkage on 1 - r makes of the classes; G_v are the
    classes below v. Its weights are those of `edgeprune.lasso.build_tree`, with a positive one at the root.

    Source:
        arXiv 2502.09125 (sTLP-IB); the penalty is that of Kim & Xing 2012, arXiv 0909.1373.

    Differs:
        As `SGLPIB`, and the root's weight is positive: with height / largest height it is 0, and then no term
        removes a whole channel.

    Example:
        >>> STLPIB(images=200).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    name: ClassVar[str] = "stlp-ib"

    def penalty(self, layers: Sequence[Quadratic]) -> TreeLasso:
        """One tree per layer."""
        return TreeLasso([build_tree(layer.relatedness) for layer in layers])

    def structure(self, layer: Quadratic) -> dict[str, Any]:
        """Relatedness and linkage tree."""
        linkage = build_tree(layer.relatedness).linkage
        return {**super().structure(layer), "linkage": linkage.round(6).tolist()}
