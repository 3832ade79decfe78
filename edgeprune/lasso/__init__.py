"""doc"""
from edgeprune.lasso.path import PathResult, path
from edgeprune.lasso.penalties import GraphLasso, Lasso, Penalty, TreeLasso
from edgeprune.lasso.problem import Problem, tied
from edgeprune.lasso.solver import Solution, lambda_max, solve
from edgeprune.lasso.structure import Edges, Tree, build_edges, build_tree
