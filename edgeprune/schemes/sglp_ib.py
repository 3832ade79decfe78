"""sGLP-IB: the class-wise graph lasso."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgeprune.gram import Quadratic
from edgeprune.lasso import Edges, GraphLasso, build_edges
from edgeprune.schemes.class_lasso import ClassLasso
from edgeprune.schemes.options import option


@dataclass(frozen=True)
class SGLPIB(ClassLasso):
    """Score of a unit: the largest lambda at which a graph lasso on the layers that read it needs it.

    ===========  ============================================================  =================
    symbol       meaning                                                       shape
    ===========  ============================================================  =================
    X_k, Y       maps of unit k at a layer's input, and of its output          (n, d), (n, q)
    K_k, L       their Grams, centred and scaled                               (n, n)
    I_c          images of class c                                             (n / C,)
    A_c, b_c     vec(K_k[I_c, :]) side by side; vec(L[I_c, :])                 (n^2 / C, p), (n^2 / C,)
    B            coefficients, a row per unit, a column per class              (p, C)
    r_cd         cosine of two classes' mean output maps (mean taken off)      (C, C)
    ===========  ============================================================  =================

    ``min_B 1/(2 n^2) sum_c ||b_c - A_c B_c||^2 + lambda (||B||_1 + kappa sum_{(c, d)} r_cd ||B_c - B_d||_1)``
    over the edges (c, d) of the graph that joins each class to its ``neighbours`` nearest, if r_cd > ``rho``.

    Source:
        arXiv 2502.09125 (sGLP-IB); the penalty is that of Chen et al. 2012, arXiv 1005.4717.

    Differs:
        The paper's method section was not at hand; these are the definitions used here.

        - Grams are scaled per layer, L to length 1 and the K_k by their mean's length, so that one lambda
          means the same in all layers and the sizes of a layer's units count.
        - A layer's loss counts by how far the logits hang on its output: ``sum_o ||J_o||^2 var_o`` with J_o
          the derivative of the logits by output channel o (``weigh="none"``: every layer counts the same).
        - Everything that the layer reads explains its output, also units that can not be removed.
        - Units that several layers read take the largest of their lambdas.
        - Many classes are joined by a clustering of the classifier's rows.
        - A unit that is 0 for all calibration images scores 0 (free to go); one that is the same for all of
          them, or never enters, scores least.

    Example:
        >>> SGLPIB(images=200).fit(model, groups, data)["conv1"].shape  # doctest: +SKIP
        torch.Size([16])
    """

    kappa: float = option(1.0, "weight of the graph against the l1 norm", at_least=0)
    neighbours: int = option(3, "nearest classes that a class is joined to", at_least=1)
    rho: float = option(0.0, "relatedness that an edge needs", at_least=0, below=1)

    name: ClassVar[str] = "sglp-ib"

    def penalty(self, layers: Sequence[Quadratic]) -> GraphLasso:
        """One graph per layer."""
        return GraphLasso([self._edges(layer) for layer in layers], self.kappa)

    def structure(self, layer: Quadratic) -> dict[str, Any]:
        """Relatedness and edges."""
        edges = self._edges(layer)
        weights = zip(edges.pairs, edges.weights, strict=True)
        return {
            **super().structure(layer),
            "edges": [[*pair, round(weight, 4)] for pair, weight in weights],
            "linkage": edges.linkage.round(6).tolist(),
        }

    def _edges(self, layer: Quadratic) -> Edges:
        return build_edges(layer.relatedness, self.neighbours, self.rho)
