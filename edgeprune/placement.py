"""What the proof of where each node ran amounts to. Device side: no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WITH_MACS = ("Conv", "Gemm", "MatMul", "Einsum", "Attention", "LSTM", "GRU", "RNN")
"""What the operators with multiply-adds have in their names, fused and quantized ones too."""
_TOKEN = re.compile(r"_token_\d+$")  # onnxruntime appends it to nodes that it moves between layouts


def with_share_of_macs(
    placement: Mapping[str, Any], macs_by_node: Mapping[str, int] | None
) -> dict[str, Any]:
    """A placement with each provider's share of the multiply-adds.

    A provider may show its nodes under names of its own; as long as that is one alone, what the others leave
    of the file's multiply-adds is its share.

    Args:
        placement: The worker's answer.
        macs_by_node: Multiply-adds by node, as the sidecar of an exported file has them.

    Returns:
        The placement with ``macs_share``, ``{provider: 0..1}`` or None, and ``macs_share_why`` for None.
    """
    shares, why = _shares(placement.get("assigned"), macs_by_node or {})
    return {**placement, "macs_share": shares, "macs_share_why": why}


def functional_only(placement: Mapping[str, Any]) -> str | None:
    """Why neither time nor memory means anything on this device, e.g. a simulator; None if they do."""
    why: str | None = placement.get("functional_only")
    return why


def _shares(assigned: Any, macs_by_node: Mapping[str, int]) -> tuple[dict[str, float] | None, str | None]:
    total = sum(macs_by_node.values())
    if not assigned:
        return None, "The runner does not tell where each node runs."
    if not total:
        return None, "No sidecar tells the multiply-adds of the nodes: `edgeprune export` writes one."
    known = dict.fromkeys(assigned, 0)
    renamed: dict[str, list[str]] = {}
    for provider, nodes in assigned.items():
        for name, kind in nodes:
            macs = macs_by_node.get(name, macs_by_node.get(_TOKEN.sub("", name)))
            if macs is not None:
                known[provider] += macs
            elif "_" in kind or any(word in kind for word in WITH_MACS):  # "_": a subgraph that was compiled
                renamed.setdefault(provider, []).append(name)
    if len(renamed) > 1:
        names = ", ".join(f"{nodes[0]} on {provider}" for provider, nodes in renamed.items())
        return None, f"Several providers show nodes under names that the file does not have: {names}."
    for provider in renamed:
        known[provider] += max(0, total - sum(known.values()))
    found = sum(known.values())
    return {provider: macs / found for provider, macs in known.items()}, None
