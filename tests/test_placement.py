"""What the proof of where each node ran amounts to."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.placement import functional_only, with_share_of_macs

CPU, NPU = "CPUExecutionProvider", "NpuExecutionProvider"
MACS = {"first": 100, "second": 300, "fc": 600}


def shares(assigned: Any, macs: dict[str, int] | None = MACS) -> Any:
    return with_share_of_macs({"assigned": assigned}, macs)["macs_share"]


def why(assigned: Any, macs: dict[str, int] | None = MACS) -> str:
    found = with_share_of_macs({"assigned": assigned}, macs)
    assert found["macs_share"] is None
    return str(found["macs_share_why"])


def test_share_by_names() -> None:
    assigned = {NPU: [["first", "Conv"], ["act", "Relu"], ["second", "Conv"]], CPU: [["fc", "Gemm"]]}
    assert shares(assigned) == {NPU: 0.4, CPU: 0.6}
    found = with_share_of_macs({"assigned": assigned, "nodes": {}}, MACS)
    assert found["macs_share_why"] is None
    assert found["nodes"] == {}


def test_nodes_that_moved_between_layouts_are_known_again() -> None:
    assert shares({NPU: [["first_token_12", "Conv"], ["second", "Conv"]], CPU: [["fc_token_1", "Gemm"]]}) == {
        NPU: 0.4,
        CPU: 0.6,
    }


def test_one_provider_with_names_of_its_own_has_what_the_others_leave() -> None:
    assert shares({NPU: [["NPU_Conv_0", "Conv"], ["NPU_Conv_1", "Conv"]], CPU: [["fc", "Gemm"]]}) == {
        NPU: 0.4,
        CPU: 0.6,
    }
    assert shares({NPU: [["NPU_0", "NPU_subgraph_1"]], CPU: [["q", "QuantizeLinear"]]}) == {
        NPU: 1.0,
        CPU: 0.0,
    }


def test_two_providers_with_names_of_their_own_cannot_be_told_apart() -> None:
    reason = why({NPU: [["NPU_Conv_0", "Conv"]], CPU: [["fused fc", "FusedGemm"]]})
    assert "NPU_Conv_0 on NpuExecutionProvider, fused fc on CPUExecutionProvider" in reason


@pytest.mark.parametrize("macs", [None, {}])
def test_no_sidecar_no_share(macs: dict[str, int] | None) -> None:
    assert "No sidecar tells the multiply-adds" in why({CPU: [["fc", "Gemm"]]}, macs)


def test_a_runner_that_does_not_tell() -> None:
    assert "does not tell where each node runs" in why(None)


def test_functional_only() -> None:
    assert functional_only({}) is None
    assert functional_only({"functional_only": None}) is None
    assert functional_only({"functional_only": "a simulator"}) == "a simulator"
