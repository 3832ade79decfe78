"""Rules of products that sum over axes of two activations: matrix products, einsum, attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from edgeprune.labels import VARIES, Flow, Ledger, Parameter, compact, varies
from edgeprune.operators.common import as_flow, because, unknown
from edgeprune.operators.elementwise import meet
from edgeprune.operators.layers import layer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def contract(
    ledger: Ledger, node: Node, operands: Sequence[tuple[Flow, str]], out: str, sizes: dict[str, int]
) -> Flow:
    """Sum of products over the axes that are not in the result.

    The places of an axis that is summed over can only go together: each is a part of every sum. Over the
    other axes the operands meet place by place.

    Args:
        ledger: Ledger.
        node: Node, for reasons.
        operands: Flows with one letter per axis.
        out: Letters of the result's axes.
        sizes: Size of each letter's axis.
    """
    text = because(node, "sums over channels")
    units = []
    for flow, letters in operands:
        unit = flow.unit
        for axis, letter in enumerate(letters):
            if letter in out:
                continue
            if varies(unit, axis):
                ledger.tie_along(unit, axis, text)
            unit = unit.amax(axis, keepdim=True)
        unit = compact(unit)
        kept = [letters.index(letter) for letter in out if letter in letters]
        gone = [axis for axis, letter in enumerate(letters) if letter not in out]
        unit = unit.permute(*gone, *kept)[(0,) * len(gone)]
        unit = unit[tuple(slice(None) if letter in letters else None for letter in out)]
        units.append(unit)
    if any(
        varies(unit, axis) and other.shape[axis] == 1 and sizes[letter] > 1
        for unit, other in itertools.permutations(units, 2)
        for axis, letter in enumerate(out)
    ):
        # Units of one head look different along its width until what ties them is taken into account.
        units = [compact(ledger.joined(unit)) for unit in units]
    flows = [Flow(unit, torch.full((), VARIES).expand(unit.shape)) for unit in units]
    return meet(ledger, node, flows, torch.Size(sizes[letter] for letter in out))


def matmul(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Matrix product of two activations, with batch axes; of an activation and a weight: a linear layer."""
    first, second = args[:2]
    if isinstance(second, Parameter) and len(second.shape) == 2 and isinstance(first, Flow):
        axis = first.unit.dim() - 1
        return layer(ledger, node, first, second, None, axis=axis, groups=1, transposed=True, padded=False)
    if not isinstance(first, Flow) or not isinstance(second, Flow):
        return unknown(ledger, node, args, kwargs, "multiplies by a matrix that is no layer's weight")
    dims, others = first.unit.dim(), second.unit.dim()
    if min(dims, others) < 2:
        return unknown(ledger, node, args, kwargs, "multiplies by a vector")
    batch = LETTERS[: max(dims, others) - 2]
    letters = (batch[len(batch) - dims + 2 :] + "mk", batch[len(batch) - others + 2 :] + "kn")
    return product(ledger, node, (first, second), letters, batch + "mn")


def einsum(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Einstein sum of activations."""
    equation, operands = args[0].replace(" ", ""), args[1]
    inputs, arrow, out = equation.partition("->")
    letters = inputs.split(",")
    plain = arrow and "." not in equation and all(len(set(names)) == len(names) for names in (*letters, out))
    if not plain or not all(isinstance(operand, Flow) for operand in operands):
        return unknown(ledger, node, args, kwargs)
    return product(ledger, node, operands, letters, out)


def product(ledger: Ledger, node: Node, operands: Sequence[Flow], letters: Sequence[str], out: str) -> Flow:
    """As ``contract``; axes of size 1 are spread as in broadcasting."""
    sizes: dict[str, int] = {}
    for flow, names in zip(operands, letters, strict=True):
        for size, letter in zip(flow.unit.shape, names, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return contract(ledger, node, list(zip(operands, letters, strict=True)), out, sizes)


def attention(ledger: Ledger, node: Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention: q (..., L, E), k (..., S, E), v (..., S, V) -> (..., L, V)."""
    if not all(isinstance(operand, Flow) for operand in args[:3]) or kwargs.get("enable_gqa"):
        return unknown(ledger, node, args, kwargs)
    query, key, value = args[:3]
    batch = LETTERS[: query.unit.dim() - 2]
    weights = product(ledger, node, (query, key), (batch + "le", batch + "se"), batch + "ls")
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    if isinstance(mask, (Flow, Parameter)):
        weights = meet(ledger, node, (weights, as_flow(ledger, mask)), weights.unit.shape)
    if varies(weights.unit, len(batch) + 1):
        ledger.tie_along(weights.unit, len(batch) + 1, because(node, "weighs channels by each other"))
    return product(ledger, node, (weights, value), (batch + "ls", batch + "sv"), batch + "lv")
