"""What doctor says of providers: nothing is believed that was not seen to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeprune import availability
from edgeprune.availability import Availability, find_providers, how_to_get
from edgeprune.errors import MeasurementError
from edgeprune.target import PROVIDERS, Runtime
from tests.conftest import run

CPU, CUDA, QNN = "CPUExecutionProvider", "CUDAExecutionProvider", "QNNExecutionProvider"


class FakeRunner:
    """One interpreter has the CPU, CUDA without a GPU and QNN's simulator; another has no onnxruntime."""

    def __init__(self, runtime: Runtime, timeout_s: float) -> None:
        assert timeout_s > 0
        self.runtime = runtime

    def run(self, job: str, models: Sequence[Path] = ()) -> dict[str, Any]:
        assert not models
        if self.runtime.python == "broken":
            raise MeasurementError(
                "could not list the providers", where="broken", value="without onnxruntime"
            )
        if job == "providers":
            return {"providers": ["AzureExecutionProvider", CPU, CUDA, QNN]}
        if self.runtime.provider == CUDA:
            raise MeasurementError(
                "could not start the provider", where=CUDA, value="listed, but is not there"
            )
        return {"functional_only": "a simulator" if self.runtime.provider == QNN else None}


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "LocalRunner", FakeRunner)


@pytest.mark.usefixtures("_fake")
def test_listed_is_not_running() -> None:
    found = find_providers([None, "broken", None])
    by_name = {one.provider: one for one in found}
    assert by_name[CPU] == Availability(CPU, None, "runs", "", "real")
    assert by_name[CPU].time_is_real
    assert by_name[CUDA] == Availability(CUDA, None, "does not run", "listed, but is not there")
    assert by_name[QNN] == Availability(QNN, None, "runs", "", "means nothing: a simulator")
    assert not by_name[QNN].time_is_real
    assert by_name[""].python == "broken"
    assert "without onnxruntime" in by_name[""].why
    assert by_name["XnnpackExecutionProvider"].state == "absent"
    assert "AzureExecutionProvider" not in by_name
    assert len(found) == len(by_name)


def test_how_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability.platform, "system", lambda: "Linux")
    monkeypatch.setattr(availability.platform, "machine", lambda: "x86_64")
    assert how_to_get(QNN).endswith("here: scripts/providers qnn FOLDER")
    assert "legacy" in how_to_get("NnapiExecutionProvider")
    assert "only on macOS" in how_to_get("CoreMLExecutionProvider")
    monkeypatch.setattr(availability.platform, "system", lambda: "Darwin")
    assert "scripts/providers" not in how_to_get(QNN)
    assert how_to_get("CoreMLExecutionProvider").startswith("onnxruntime from pip on macOS")
    assert set(availability.OF_INTEREST) <= set(PROVIDERS)


@pytest.mark.usefixtures("_fake")
def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.write_text('name = "x"\n[runtime]\nprovider = "QNNExecutionProvider"\npython = "other"\n')
    code, out, _ = run(capsys, "doctor", "--no-noise", "--target", str(target))
    assert code == 0
    assert "CPU          runs; its time is real" in out
    assert "CUDA         does not run: listed, but is not there" in out
    assert "QNN          runs in other; its time means nothing: a simulator" in out
    assert "Nnapi        absent: only on Android (legacy)" in out
    found = json.loads(run(capsys, "doctor", "--no-noise", "--target", str(target), "--json")[1])
    assert f"{target} placement here, but no time: functional only" in out
    assert max(len(line) for line in out.splitlines() if str(target) not in line) <= 80
    assert "qnn/bin/pip install onnxruntime onnxruntime-qnn" not in out  # it is here
    assert "ov/bin/pip install onnxruntime-openvino" in out
    assert not found["targets"][str(target)]
    assert found["functional_targets"] == [str(target)]
    assert found["targets"]["local-cpu"]
    assert not found["targets"]["local-cuda"]
    assert {
        "provider": QNN,
        "python": "other",
        "state": "runs",
        "why": "",
        "time": "means nothing: a simulator",
        "install": None,
    } in found["providers"]


@pytest.mark.usefixtures("_fake")
def test_doctor_estimates_what_phones_would_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")]
    )
    model = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    _, out, _ = run(capsys, "doctor", "--no-noise", str(model))
    assert (
        "m.onnx, estimated from operator tables:\nNNAPI (legacy)         1 of 1 nodes in 1 partition" in out
    )
    found = json.loads(run(capsys, "doctor", "--no-noise", str(model), "--json")[1])["partitions"]
    assert found["label"] == "estimated from operator tables"
    assert [one["partitions"] for one in found["estimates"]] == [1, 1, 1]
