import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeprune import onnx_export, onnx_files
from edgeprune.artifact import Artifact, load_artifact
from edgeprune.data import Data, Normalization, TensorLoader
from edgeprune.errors import ExportError
from edgeprune.files import TEMPORARY, sha256_file
from edgeprune.onnx_export import export

EXAMPLE = torch.zeros(1, 3, 8, 8)


def conv_bn(inputs: int, outputs: int, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outputs)
    )


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.b(self.a(x).relu())).relu())


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = conv_bn(3, 4), conv_bn(3, 5), nn.BatchNorm2d(9), Head(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


class Shared(nn.Module):
    """One convolution in front of two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.conv(x)).relu() + self.b(self.conv(x.flip(2))))


def plain() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), Head(8))


def depthwise() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.ReLU6(), conv_bn(8, 16, groups=8), nn.ReLU6(), Head(16))


class Zoo(nn.Module):
    """All of them, each with its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([plain(), depthwise(), Residual(), Concat(), Shared()])

    def forward(self, x: Tensor) -> list[Tensor]:
        return [network(x) for network in self.networks]


def trained(make: object = plain) -> nn.Module:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


def toy_data() -> Data:
    torch.manual_seed(1)
    images, labels = torch.rand(30, 3, 8, 8), torch.randint(5, (30,))
    norm = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def part(start: int, stop: int) -> TensorLoader:
        return TensorLoader(images, labels, torch.arange(start, stop), batch_size=7, normalization=norm)

    return Data(
        name="imagefolder:/data/of/somebody",
        train=part(0, 10),
        val=part(10, 20),
        test=part(20, 30),
        calib=part(0, 5),
        example=images[:1],
        classes=tuple("abcde"),
        normalization=norm,
        identity="1234",
    )


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    """The file's outputs, by a session of our own."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def graph_bytes(path: Path) -> bytes:
    """The file without the facts."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def unsimplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip onnxsim, which takes two seconds, where it is not what the test is about."""
    monkeypatch.setattr(onnx_export, "_simplified", lambda _: (None, "skipped by the test"))


def whole_export(path: Path) -> tuple[nn.Module, Data, Artifact]:
    """One export with everything."""
    network, data = trained(Residual).train(), toy_data()
    artifact = export(network, EXAMPLE, path, data=data, provenance={"plan": "abc", "opset": "overruled"})
    return network.eval(), data, artifact


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Data, Artifact]:
    return whole_export(tmp_path_factory.mktemp("export") / "new folder" / "residual.onnx")


def test_facts_in_sidecar_and_file(exported) -> None:
    network, _, artifact = exported
    assert load_artifact(artifact.path) == artifact
    assert artifact.sha256 == hashlib.sha256(artifact.path.read_bytes()).hexdigest()
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert artifact.input_shape == (1, 3, 8, 8)
    assert artifact.macs == 64 * 9 * (3 * 8 + 8 * 6 + 6 * 8) + 8 * 5
    assert sum(artifact.provenance["macs_by_node"].values()) == artifact.macs
    assert set(artifact.provenance["macs_by_node"]) < {
        node.name for node in onnx.load(artifact.path).graph.node
    }
    assert artifact.params == sum(parameter.numel() for parameter in network.parameters())

    provenance = artifact.provenance
    assert provenance["simplified"] is True
    assert (provenance["plan"], provenance["opset"], provenance["dynamic_batch"]) == ("abc", 18, False)
    images = {"val": 10, "test": 10}
    assert provenance["data"] == {"name": "imagefolder", "identity": "1234", "images": images, "classes": 5}
    assert provenance["normalization"] == {"mean": [0.5] * 3, "std": [0.25] * 3}
    assert provenance["parity"] == {
        "tolerance": 1e-4,
        "batch_sizes": [1, 3, 8],
        "real_images": 10,
        "argmax_agreement": 1.0,
    }
    assert set(provenance["versions"]) == {
        "edgeprune", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"
    }  # fmt: skip

    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(artifact.path).metadata_props}
    sidecar = json.loads(artifact.sidecar.read_text())
    assert set(sidecar["accuracy_by_class"]) == {"val", "test"}
    for of_the_file in ("format", "sha256", "size_bytes", "accuracy_top5", "accuracy_by_class"):
        del sidecar[of_the_file]
    assert metadata == sidecar


def test_accuracy_and_outputs_are_the_file_s_own(exported) -> None:
    network, data, artifact = exported
    for split, loader in (("val", data.val), ("test", data.test)):
        right = total = 0
        for images, labels in loader:
            for image, label in zip(images, labels, strict=True):
                right += int(run(artifact.path, image[None])[0].argmax() == label)
                total += 1
        assert artifact.accuracy[split] == right / total
    x = torch.randn(1, 3, 8, 8)
    np.testing.assert_allclose(run(artifact.path, x)[0], network(x).detach().numpy(), atol=1e-5)
    assert artifact.parity_error < 1e-5


def test_file_holds_no_notes_and_no_paths(exported) -> None:
    artifact = exported[2]
    payload = artifact.path.read_bytes()
    for stray in (b"site-packages", b"stack_trace", b".py", str(Path.cwd()).encode(), b"somebody", b"pkg."):
        assert stray not in payload
    model = onnx.load(artifact.path)
    assert model.producer_name == "edgeprune"
    assert not model.doc_string
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props


@pytest.mark.slow
def test_batch_norms_are_folded(tmp_path: Path) -> None:
    network = trained(Zoo)
    artifact = export(network, EXAMPLE, tmp_path / "net.onnx")
    assert artifact.provenance["simplified"] is True
    assert artifact.parity_error < 1e-5
    # Only the norm behind the concatenation has no convolution to go into.
    assert operators(artifact.path).count("BatchNormalization") == 1
    x = torch.randn(1, 3, 8, 8)
    outputs = run(artifact.path, x)
    assert len(outputs) == 5
    for ours, theirs in zip(network.eval()(x), outputs, strict=True):
        np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_same_bytes_in_another_process(exported, tmp_path: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from test_onnx_export import Path, whole_export
print(whole_export(Path(sys.argv[2]))[2].sha256)
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "other name.onnx")]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"}
    child = subprocess.run(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert child.stdout.strip() == exported[2].sha256
    export(trained(Residual), EXAMPLE, tmp_path / "control.onnx")
    assert sha256_file(tmp_path / "control.onnx") != exported[2].sha256


@pytest.mark.usefixtures("unsimplified")
def test_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(trained(), EXAMPLE, tmp_path / "net.onnx", dynamic_batch=True)
    assert capfd.readouterr() == ("", "")


def test_dynamic_batch(tmp_path: Path) -> None:
    network = trained(Residual)
    artifact = export(network, EXAMPLE, tmp_path / "net.onnx", dynamic_batch=True, data=toy_data())
    assert artifact.input_shape == (-1, 3, 8, 8)
    assert artifact.provenance["simplified"] is True
    graph = onnx.load(artifact.path).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 8, 8)
        np.testing.assert_allclose(run(artifact.path, x)[0], network.eval()(x).detach().numpy(), atol=1e-4)
    assert set(artifact.accuracy) == {"val", "test"}


@pytest.mark.usefixtures("unsimplified")
def test_dynamic_batch_of_several_inputs_and_of_whatever_comes(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            return x + sum(others)

    inputs = (torch.randn(1, 3, 4, 4),) * 3
    artifact = export(Sum(), inputs, tmp_path / "sum.onnx", dynamic_batch=True)
    several = [torch.randn(5, 3, 4, 4) for _ in inputs]
    session = onnxruntime.InferenceSession(str(artifact.path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    (found,) = session.run(None, {n: x.numpy() for n, x in zip(names, several, strict=True)})
    np.testing.assert_allclose(found, sum(several).numpy(), atol=1e-5)


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.usefixtures("unsimplified")
def test_fixed_batch_above_1(tmp_path: Path) -> None:
    artifact = export(trained(), torch.zeros(4, 3, 8, 8), tmp_path / "net.onnx", data=toy_data())
    one_by_one = export(trained(), EXAMPLE, tmp_path / "one.onnx", data=toy_data())
    assert artifact.input_shape == (4, 3, 8, 8)
    assert artifact.macs == one_by_one.macs
    assert artifact.accuracy == one_by_one.accuracy


@pytest.mark.usefixtures("unsimplified")
def test_opset(tmp_path: Path) -> None:
    export(trained(), EXAMPLE, tmp_path / "net.onnx", opset=21)
    assert [entry.version for entry in onnx.load(tmp_path / "net.onnx").opset_import] == [21]


@pytest.mark.usefixtures("unsimplified")
def test_the_caller_s_network_is_untouched(tmp_path: Path) -> None:
    network = trained(Residual).train()
    network.a.eval()
    modes = [module.training for module in network.modules()]
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    export(network, EXAMPLE, tmp_path / "net.onnx")
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.requires_grad for parameter in network.parameters())
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key])


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize("dynamic", [False, True])
def test_several_inputs_and_outputs(dynamic: bool, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            return x * scale[:, :, None, None], x.mean((2, 3))

    example = (EXAMPLE, torch.ones(1, 3))
    artifact = export(Two(), example, tmp_path / "net.onnx", dynamic_batch=dynamic)
    graph = onnx.load(artifact.path).graph
    assert [entry.name for entry in graph.input] == ["input_0", "input_1"]
    assert [entry.name for entry in graph.output] == ["output_0", "output_1"]
    x, scale = torch.randn(1, 3, 8, 8), torch.randn(1, 3)
    scaled, mean = run(artifact.path, x, scale)
    np.testing.assert_allclose(scaled, x * scale[:, :, None, None], rtol=1e-6)
    np.testing.assert_allclose(mean, x.mean((2, 3)), atol=1e-6)


@pytest.mark.usefixtures("unsimplified")
def test_outputs_in_a_dict(tmp_path: Path) -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x.relu(), "aux": x.mean((2, 3))}

    artifact = export(Both(), EXAMPLE, tmp_path / "net.onnx", data=toy_data())
    assert [entry.name for entry in onnx.load(artifact.path).graph.output] == ["output_out", "output_aux"]
    x = torch.randn(1, 3, 8, 8)
    np.testing.assert_array_equal(run(artifact.path, x)[0], x.relu())
    assert artifact.accuracy == {}  # no classifier: its first output is no row of scores


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.usefixtures("unsimplified")
def test_verify_input_is_compared_too(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) / (x.amax((1, 2, 3)) != 7.0).float()[:, None]

    export(Odd(), EXAMPLE + 1, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="torch's own output on verify_input is not finite"):
        export(Odd(), EXAMPLE + 1, tmp_path / "net.onnx", verify_input=EXAMPLE + 7)
    with pytest.raises(ExportError, match=r"torch cannot run the network on verify_input \(IndexError: "):
        export(Odd(), EXAMPLE + 1, tmp_path / "net.onnx", verify_input=torch.ones(1))


# What is refused


def perturbed(graph: onnx.ModelProto, value: float = 0.5) -> onnx.ModelProto:
    """The graph with one weight set to ``value``."""
    weight = next(entry for entry in graph.graph.initializer if len(entry.dims) == 4)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    return graph


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, bytes]:
    """An older file with its sidecar in ``tmp_path``; onnxsim is skipped."""
    request.getfixturevalue("unsimplified")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x09an older ")
    Artifact(tmp_path / "net.onnx", sha256_file(tmp_path / "net.onnx"), 13, macs=7).write_sidecar()
    return content(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("value", "error"), [(0.5, r"\de-0\d of the"), (float("nan"), "inf of the")])
def test_a_wrong_conversion_is_refused_and_the_older_file_kept(
    value: float, error: str, old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx_export._converted
    monkeypatch.setattr(onnx_export, "_converted", lambda *args: perturbed(convert(*args), value))
    with pytest.raises(ExportError, match=rf"{error} largest output.*expected at most 0.0001") as refusal:
        export(trained(), EXAMPLE, tmp_path / "net.onnx")
    assert "Nothing was written" in str(refusal.value)
    assert content(tmp_path) == old


@pytest.mark.usefixtures("unsimplified")
def test_the_tolerance_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx_export._converted
    monkeypatch.setattr(onnx_export, "_converted", lambda *args: perturbed(convert(*args)))
    artifact = export(trained(), EXAMPLE, tmp_path / "net.onnx", tolerance=10.0)
    assert 1e-4 < artifact.parity_error < 10
    assert artifact.provenance["parity"]["tolerance"] == 10.0


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class MeanWrongOnImages(nn.Module):
    """Wrong where no value is below -2, as in normalised pixels, but not in normal noise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + (x.amin((1, 2, 3)) >= -2.0).float()[:, None]


def test_a_difference_on_real_images_alone_is_refused(
    old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx_export._converted
    monkeypatch.setattr(onnx_export, "_converted", lambda _, *args: convert(MeanWrongOnImages(), *args))
    export(Mean(), EXAMPLE - 3, tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"on real images \(batch [01]\)"):
        export(Mean(), EXAMPLE - 3, tmp_path / "net.onnx", data=toy_data())
    assert (tmp_path / "net.onnx").read_bytes() == old["net.onnx"]


def test_a_batch_norm_left_behind_a_convolution_is_refused(old: dict[str, bytes], tmp_path: Path) -> None:
    """torch leaves it there where a convolution is used twice, and here onnxsim does not come to help."""
    with pytest.raises(ExportError, match=r"a batch norm stays behind .* skipped by the test"):
        export(trained(Shared), EXAMPLE, tmp_path / "net.onnx")
    assert content(tmp_path) == old


class Refused(nn.Module):
    """A network with one thing that cannot be exported."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> object:
        if self.what == "branches on values" and x.sum() > 1:
            return x.sin()
        if self.what == "fails":
            raise RuntimeError("\n  first line\nsecond line")
        if self.what == "one number":
            return x.sum()
        if self.what == "text":
            return {"a": x, "b": "text"}
        if self.what == "one batch size":
            return x.cos() if len(x) == 2 else x.sin()
        if self.what == "not finite":
            return x / 0
        return x.cos()

    def __deepcopy__(self, memo: object) -> nn.Module:
        if self.what == "no copies":
            raise TypeError("not me")
        return type(self)(self.what)


@pytest.mark.parametrize(
    ("what", "dynamic", "message"),
    [
        ("branches on values", False, r"torch refuses Refused \(\w+: \S.*\)\."),
        ("one batch size", True, r"torch refuses Refused \(.*\)\. Try a fixed batch size\."),
        ("fails", False, r"it fails on the example input \(RuntimeError: first line\)\."),
        ("one number", False, r"its output is \[\(\)\], expected tensors \(N, \.\.\.\) with N = 1"),
        ("text", False, r"its output is \[\(1, 3, 8, 8\), 'str'\], expected tensors"),
        ("no copies", False, r"it cannot be copied \(TypeError: not me\)"),
        ("not finite", False, r"torch's own output on the example input is not finite"),
    ],
)
def test_networks_that_cannot_be_exported(
    what: str, dynamic: bool, message: str, old: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message) as refusal:
        export(Refused(what), EXAMPLE, tmp_path / "net.onnx", dynamic_batch=dynamic)
    assert "\n" not in str(refusal.value)
    assert content(tmp_path) == old


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 17}, "opset is 17, expected 18 to 23"),
        ({"opset": 24}, "opset is 24, expected 18 to 23"),
        ({"tolerance": 0.0}, "tolerance is 0.0, expected a number above 0"),
        ({"tolerance": float("nan")}, "tolerance is nan, expected a number above 0"),
        ({"example": ()}, r"example is of shape \[\], expected inputs \(N, \.\.\.\)"),
        ({"example": torch.tensor(1.0)}, r"example is of shape \[\(\)\], expected inputs"),
        ({"example": (EXAMPLE, torch.zeros(2, 3))}, "with the same N >= 1"),
        (
            {"example": torch.zeros(1, 3, 9, 9), "data": toy_data()},
            r"like the images of the data, \(1, 3, 8, 8\)",
        ),
        ({"example": (EXAMPLE, EXAMPLE), "data": toy_data()}, "expected one input like the images"),
        ({"provenance": {"at": Path("x")}}, "provenance is Object of type .* is not JSON"),
        ({"provenance": {"loss": float("nan")}}, "provenance is Out of range float"),
    ],
)
def test_wrong_arguments(
    arguments: dict[str, object], message: str, old: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(**{"model": trained(), "example": EXAMPLE, "path": tmp_path / "net.onnx", **arguments})
    assert content(tmp_path) == old


def test_the_opset_that_torch_did_not_write(
    old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "OPSETS", range(15, 24))
    with pytest.raises(ExportError, match="opset is 16, expected 18, which torch wrote"):
        export(trained(), EXAMPLE, tmp_path / "net.onnx", opset=16)
    assert content(tmp_path) == old


def test_a_file_that_is_too_large(
    old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match=r"the ONNX file is \d+ bytes, expected <= 1000"):
        export(trained(), EXAMPLE, tmp_path / "net.onnx")
    assert content(tmp_path) == old


@pytest.mark.usefixtures("unsimplified")
def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"path is the folder .*, expected a file name"):
        export(trained(), EXAMPLE, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(
        ExportError, match=r"could not write the ONNX file: .* expected a path that can be written"
    ):
        export(trained(), EXAMPLE, tmp_path / "file" / "net.onnx")


def test_a_file_that_onnxruntime_refuses(
    old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = onnx_export._converted

    def without_weights(*args: object) -> onnx.ModelProto:
        graph = convert(*args)
        del graph.graph.initializer[:]
        return graph

    monkeypatch.setattr(onnx_export, "_converted", without_weights)
    with pytest.raises(
        ExportError, match=r"onnxruntime cannot load the ONNX file \(\w+: .*not a graph input"
    ):
        export(trained(), EXAMPLE, tmp_path / "net.onnx")
    assert content(tmp_path) == old


# What onnxsim may do


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "onnxsim was killed by SIGSEGV"),
        (
            "import sys; raise ValueError(f'cannot read {sys.argv[1]}')",
            "ValueError: cannot read /before.onnx",
        ),
        ("import sys; sys.exit(3)", "onnxsim failed: no message"),
        ("pass", "onnxsim wrote a file that onnx refuses .*No such file"),
        ("import sys; open(sys.argv[2], 'w').write('x' * 50)", "onnxsim wrote a file that onnx refuses"),
        ("import time; time.sleep(60)", "onnxsim took more than 0.5 s"),
    ],
)
def test_a_failing_onnxsim_leaves_the_plain_file_and_a_reason(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "SIMPLIFY", program)
    if "sleep" in program:
        monkeypatch.setattr(onnx_export, "SIMPLIFY_TIMEOUT_S", 0.5)
    artifact = export(trained(), EXAMPLE, tmp_path / "net.onnx")
    assert re.search(reason, artifact.provenance["simplified"])
    assert "/tmp" not in artifact.provenance["simplified"]
    assert load_artifact(artifact.path) == artifact
    assert artifact.parity_error < 1e-5


def test_an_onnxsim_that_changes_the_function_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(graph)
        return perturbed(changed), True

    monkeypatch.setattr(onnx_export, "_simplified", lambda _: (None, "not run"))
    right = export(trained(), EXAMPLE, tmp_path / "right.onnx")
    monkeypatch.setattr(onnx_export, "_simplified", wrong)
    artifact = export(trained(), EXAMPLE, tmp_path / "net.onnx")
    refusal = r"onnxsim's file: .* is \d\.\de-0[123] of the largest output.* at most 0.0001\."
    assert re.fullmatch(refusal, artifact.provenance["simplified"])
    assert graph_bytes(artifact.path) == graph_bytes(right.path)


@pytest.mark.slow
def test_a_file_named_onnx_py_in_the_working_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnx.py").write_text("raise RuntimeError('the wrong onnx')")
    monkeypatch.chdir(tmp_path)
    assert export(trained(), EXAMPLE, tmp_path / "net.onnx").provenance["simplified"] is True


# A kill between the file and its sidecar


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("step", ["replace", "write_sidecar"])
def test_file_and_sidecar_never_disagree(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    path = tmp_path / "net.onnx"
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(*((Path, "replace") if step == "replace" else (Artifact, "write_sidecar")), kill)
        export(trained(), EXAMPLE, path)
    assert not any(name.startswith(TEMPORARY) for name in content(tmp_path))
    left = load_artifact(path)  # would raise if the two disagreed
    assert left.macs is None
    artifact = export(trained(), EXAMPLE, path)
    assert load_artifact(path) == artifact
    assert (left.sha256 == artifact.sha256) == (step == "write_sidecar")
