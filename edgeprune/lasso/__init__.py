"""Class-wise structured lasso on Gram matrices: exact zeros, and a certificate with every solution.

For L layers at once, each of p channels, and C classes::

    minimise  F(B) + lambda Omega(B),   F(B) = sum_c 1/2 ||b_c - A_c B_c||^2

=========  ===============================================================  ==============
symbol     meaning                                                          shape
=========  ===============================================================  ==============
B          coefficients; a row is a channel, a column a class               (L, p, C)
G          ``G_c = A_c' A_c``, ``Problem.gram``                             (L, C, p, p)
h          ``h_c = A_c' b_c``, ``Problem.target``                           (L, C, p)
t          ``t_c = ||b_c||^2``, ``Problem.energy``                          (L, C)
r, z       residual ``b - A B``; ``z = A' r = h - G B``                     -; (L, p, C)
lambda     one for all layers, or one per layer                             () or (L,)
Omega      ``Lasso``, ``GraphLasso`` or ``TreeLasso``                       (L,)
Omega°     its dual norm, row by row                                        (L, p)
w, G_v     weight and classes of tree node v                                -
r_cd       relatedness of two classes; kappa scales all                     -
=========  ===============================================================  ==============

Layers of different p go in different problems; layers of the same p go in one, which is faster than one by
one. Every layer has a tree or graph of its own. All is float64, on the device of ``Problem.gram``.

Source: the tree-guided group lasso and its weights, Kim & Xing, Annals of Applied Statistics 6 (2012); its
proximal map, Jenatton et al., JMLR 12 (2011); the graph-guided fused lasso, Chen et al., Annals of Applied
Statistics 6 (2012), with the proximal map of Friedman et al., Annals of Applied Statistics 1 (2007); their
use on class-wise Gram matrices of a layer, arXiv 2502.09125; the HSIC lasso (``tied`` columns), APIB (ICCV
2023).

Differs: no smoothing. Both proximal maps are exact, so that zeros and ties are exact; Newton steps on the
face that they find make up for the ill condition of Gram matrices, where a first-order method alone needs
thousands of steps. The root of a tree has a positive weight (see ``build_tree``). Every solution carries
a duality gap.

Example:
    >>> import torch
    >>> from edgeprune.lasso import Problem, TreeLasso, build_tree, lambda_max, path
    >>> maps, wanted = torch.rand(3, 50, 4), torch.rand(3, 50)
    >>> gram, target = maps.mT @ maps, (maps.mT @ wanted[..., None])[..., 0]
    >>> problem = Problem(gram[None], target[None], wanted.square().sum(-1)[None])
    >>> tree = TreeLasso([build_tree(torch.eye(3))])
    >>> found = path(problem, tree, lambda_max(problem, tree) * torch.logspace(0, -2, 20))
    >>> found.entry.shape, bool(found.converged.all())
    (torch.Size([1, 4]), True)
"""

from edgeprune.lasso.path import PathResult, path
from edgeprune.lasso.penalties import GraphLasso, Lasso, Penalty, TreeLasso
from edgeprune.lasso.problem import Problem, tied
from edgeprune.lasso.solver import Solution, lambda_max, solve
from edgeprune.lasso.structure import Edges, Tree, build_edges, build_tree

__all__ = [
    "Edges",
    "GraphLasso",
    "Lasso",
    "PathResult",
    "Penalty",
    "Problem",
    "Solution",
    "Tree",
    "TreeLasso",
    "build_edges",
    "build_tree",
    "lambda_max",
    "path",
    "solve",
    "tied",
]
