"""Providers in the worker: plug-ins, options, and every way in which onnxruntime drops one without a word."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune.runners.worker import common, jobs, placement, providers, session

JOB = {"provider": common.CPU, "provider_options": {}, "threads": 1, "input": None}


def _device(provider: str, kind: str) -> Any:
    return SimpleNamespace(ep_name=provider, device=SimpleNamespace(type=SimpleNamespace(name=kind)))


class FakeLibrary:
    """onnxruntime with a plug-in that finds these devices once it is registered."""

    __version__ = "1.31.1"

    def __init__(self, *kinds: str, provider: str = providers.QNN) -> None:
        self.kinds, self.provider, self.registered = kinds, provider, 0
        self.available = [common.CPU]

    def get_available_providers(self) -> list[str]:
        return self.available

    def get_ep_devices(self) -> list[Any]:
        return [_device(self.provider, kind) for kind in self.kinds] if self.registered else []

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert (name, path) == (self.provider, "library.so")
        self.registered += 1


@pytest.fixture
def qnn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A package of QNN whose CPU backend is missing."""
    (tmp_path / "libQnnHtp.so").touch()
    (tmp_path / "libQnnGpu.so").touch()
    package = SimpleNamespace(
        get_library_path=lambda: "library.so",
        get_qnn_htp_path=lambda: str(tmp_path / "libQnnHtp.so"),
        get_qnn_gpu_path=lambda: str(tmp_path / "libQnnGpu.so"),
        get_qnn_cpu_path=lambda: str(tmp_path / "libQnnCpu.so"),
    )
    monkeypatch.setitem(providers.PLUGINS, providers.QNN, lambda: package)
    return package


def _use(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    for module in (providers, session, placement):
        monkeypatch.setattr(module, "ort", library)


@pytest.mark.usefixtures("qnn")
@pytest.mark.parametrize(
    ("options", "kinds", "kind"),
    [
        ({}, ["CPU"], "CPU"),  # the simulator
        ({}, ["CPU", "GPU", "NPU"], "NPU"),
        ({"backend_type": "gpu"}, ["CPU", "GPU", "NPU"], "GPU"),
        ({"backend_path": "/my/libQnnHtp.so"}, ["CPU", "GPU"], "GPU"),
    ],
)
def test_plugin_is_opened_on_the_device_of_its_backend(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], kinds: list[str], kind: str
) -> None:
    library = FakeLibrary(*kinds)
    _use(monkeypatch, library)
    names, found, settings = providers.providers_for(
        JOB | {"provider": providers.QNN, "provider_options": options}
    )
    assert names == []
    assert [device.device.type.name for device in found] == [kind]
    assert settings == (options if "backend_path" in options else {"backend_type": "htp", **options})
    providers.providers_for(JOB | {"provider": providers.QNN})
    assert library.registered == 1


@pytest.mark.usefixtures("qnn")
@pytest.mark.parametrize(
    ("backend", "message"),
    [("cpu", "without the backend 'cpu': libQnnCpu.so is not"), ("dsp", "without a backend 'dsp'")],
)
def test_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch, backend: str, message: str) -> None:
    _use(monkeypatch, FakeLibrary("CPU"))
    with pytest.raises(common.Fault, match=message):
        providers.providers_for(
            JOB | {"provider": providers.QNN, "provider_options": {"backend_type": backend}}
        )


def test_plugin_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(get_library_path=lambda: "library.so")
    monkeypatch.setitem(providers.PLUGINS, providers.WEBGPU, lambda: package)
    _use(monkeypatch, FakeLibrary(provider=providers.WEBGPU))
    with pytest.raises(
        common.Fault, match=r"found no device .*ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 allows a software"
    ):
        providers.providers_for(JOB | {"provider": providers.WEBGPU})


@pytest.mark.usefixtures("qnn")
def test_plugin_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary("CPU")
    _use(monkeypatch, library)

    def refuse(*_: str) -> None:
        raise RuntimeError("OrtEp has invalid ort_version_supported=0")

    monkeypatch.setattr(library, "register_execution_provider_library", refuse)
    with pytest.raises(common.Fault, match=r"1\.31\.1 cannot load \(OrtEp has invalid"):
        providers.providers_for(JOB | {"provider": providers.QNN})
    assert providers.listed() == [common.CPU, providers.QNN]  # it is there, broken as it is


def test_options_of_built_in_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    _use(monkeypatch, library)
    library.available = [providers.TENSORRT, providers.CUDA, common.XNNPACK, common.CPU]
    asked = JOB | {"provider": common.XNNPACK, "threads": 3}
    assert providers.providers_for(asked) == ([(common.XNNPACK, {"intra_op_num_threads": "3"})], [], {})
    asked["provider_options"] = {"intra_op_num_threads": "2"}
    assert providers.providers_for(asked)[0] == [(common.XNNPACK, {"intra_op_num_threads": "2"})]
    tensorrt = JOB | {"provider": providers.TENSORRT, "provider_options": {"device_id": "1"}}
    assert providers.providers_for(tensorrt)[0] == [
        (providers.TENSORRT, {"device_id": "1"}),
        (providers.CUDA, {"device_id": "1"}),
    ]
    library.available = [common.CPU]
    with pytest.raises(common.Fault, match="absent from onnxruntime"):
        providers.providers_for(tensorrt)


# --- what is dropped without a word -------------------------------------------------------------------------


def test_provider_that_does_not_start_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    library.available = [providers.CUDA, common.CPU]
    library.InferenceSession = lambda *_, **__: SimpleNamespace(get_providers=lambda: [common.CPU])  # type: ignore[attr-defined]
    _use(monkeypatch, library)
    with pytest.raises(
        common.Fault, match=r"listed by onnxruntime .* does not start here \(no GPU"
    ) as caught:
        session.open_session(JOB | {"provider": providers.CUDA}, "m", None)
    assert caught.value.kind == "provider"


def test_a_warning_about_a_dropped_provider_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, providers: list[Any], **__: Any) -> Any:
        if providers != [common.CPU]:
            warnings.warn("Specified provider is not in available provider names", UserWarning, stacklevel=1)
        return SimpleNamespace(get_providers=lambda: [common.XNNPACK, common.CPU])

    library = FakeLibrary()
    library.available = [common.XNNPACK, common.CPU]
    library.InferenceSession = load  # type: ignore[attr-defined]
    _use(monkeypatch, library)
    with pytest.raises(common.Fault, match=r"the CPU can \(Specified provider is not in available") as caught:
        session.open_session(JOB | {"provider": common.XNNPACK}, "m", None)
    assert caught.value.kind == "provider"


def test_strict_mode_names_the_nodes_that_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(job: Any, _: str) -> Any:
        if job["strict"]:
            raise common.Fault("provider", "unable to load m, which the CPU can (fallback is disabled)")
        return {"left_to_cpu": [{"name": f"n{n}", "op_type": "Erf"} for n in range(22)]}

    monkeypatch.setattr(placement, "place", place)
    with pytest.raises(
        common.Fault, match=r"leaving 22 nodes .*: n0 \(Erf\), .*n19 \(Erf\) and 2 more"
    ) as caught:
        placement.placement(JOB | {"models": ["m"], "strict": True})
    assert "strict = false" in caught.value.hint
    assert caught.value.model == "m"


def test_strict_mode_keeps_other_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(job: Any, _: str) -> Any:
        if job["strict"]:
            raise common.Fault("provider", "out of memory")
        return {"left_to_cpu": []}

    monkeypatch.setattr(placement, "place", place)
    with pytest.raises(common.Fault, match="out of memory"):
        placement.placement(JOB | {"models": ["m"], "strict": True})


def test_strict_mode_is_an_option_of_the_session() -> None:
    key = "session.disable_cpu_ep_fallback"
    assert session.session_options(JOB | {"strict": True}).get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError, match="does not have configuration"):
        session.session_options(JOB).get_session_config_entry(key)


# --- time that means nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "simulated"), [("x86_64", True), ("AMD64", True), ("aarch64", False)])
def test_hexagon_is_simulated_on_x86(monkeypatch: pytest.MonkeyPatch, machine: str, simulated: bool) -> None:
    monkeypatch.setattr(providers.platform, "machine", lambda: machine)
    assert ("simulator" in (providers.functional_only(providers.QNN) or "")) == simulated
    assert providers.functional_only(common.CPU) is None


@pytest.mark.parametrize(
    ("kind", "variables", "software"),
    [
        ("GPU", {}, False),
        ("CPU", {}, True),
        ("GPU", {"VK_ICD_FILENAMES": "/lib/vk_swiftshader_icd.json"}, True),
        ("GPU", {"ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}, True),
    ],
)
def test_webgpu_on_a_software_adapter(
    monkeypatch: pytest.MonkeyPatch, kind: str, variables: dict[str, str], software: bool
) -> None:
    library = FakeLibrary(kind, provider=providers.WEBGPU)
    library.registered = 1
    _use(monkeypatch, library)
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("SwiftShader" in (providers.functional_only(providers.WEBGPU) or "")) == software


@pytest.mark.parametrize("job", ["latency", "memory"])
def test_a_simulator_is_never_timed(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    monkeypatch.setattr(providers, "functional_only", lambda _: "a simulator")
    asked = JOB | {"job": job, "models": ["m"], "runs": 5, "min_runs": 1, "seconds": 1.0}
    answer, status = jobs.answer(asked)
    assert status == 3
    assert answer["error"]["message"] == "functional only here: a simulator"


# --- partitions and the probe -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "count"),
    [
        ("", 0),
        ("c", 0),
        ("nnn", 1),
        ("cnnc", 1),
        ("ncn", 2),
        ("nccnncn", 3),
        ("NN", 2),  # two compiled subgraphs, one after the other
        ("cNcNc", 2),
    ],
)
def test_partitions(kernels: str, count: int) -> None:
    kinds = {"c": (common.CPU, "", "Conv"), "n": ("Npu", "", "Conv"), "N": ("Npu", "", "NPU_subgraph_1")}
    assert placement.partitions([kinds[kernel] for kernel in kernels], "Npu") == count


def test_probe_model_is_what_its_comment_says() -> None:
    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 8, 8])

    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["y"], "relu"),
    ]
    shape = helper.make_tensor("s", TensorProto.INT64, [4], [16, 16, 3, 3])
    graph = helper.make_graph(nodes, "probe", [value("x")], [value("y")], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    assert onnx.load_from_string(placement.PROBE_MODEL) == model


def test_probe_of_the_cpu() -> None:
    answer, status = jobs.answer(JOB | {"job": "probe", "models": []})
    assert status == 0
    assert answer["nodes"][common.CPU] > 0
    assert jobs.answer({"job": "providers"})[0]["providers"] == common.ort.get_available_providers()
