from __future__ import annotations

import copy
import json
import os
import sys
import types
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeprune.data import Loader, Normalization, load_data
from edgeprune.errors import ModelError
from edgeprune.models import MODELS, build, load_model, normalization_of, source_of

PARAMS = {
    "resnet20": 269_722,  # as in the public checkpoints
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet164": 1_703_258,  # 1.70 M in the network slimming paper
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,  # 20.04 M in the network slimming paper
    "densenet40": 1_059_298,
    "mobilenet-v2": 2_236_682,
}


@pytest.mark.parametrize("name", MODELS)
def test_built_in_networks(name: str) -> None:
    model = load_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]
    assert source_of(model) == {"name": name, "num_classes": 10}
    assert not model.training
    assert normalization_of(model) == Normalization()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert load_model(name, num_classes=7)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_names_are_those_of_the_public_checkpoints() -> None:
    keys = [key for key in load_model("resnet20").state_dict() if "num_batches_tracked" not in key]
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = ["conv1.weight", *(f"bn1.{part}" for part in norm)]
    for block in (f"layer{stage}.{number}" for stage in (1, 2, 3) for number in range(3)):
        for layer in (1, 2):
            expected += [f"{block}.conv{layer}.weight", *(f"{block}.bn{layer}.{part}" for part in norm)]
    assert keys == [*expected, "linear.weight", "linear.bias"]


def test_every_weight_of_a_new_network_has_the_scale_of_its_fan_out() -> None:
    for name in ("resnet20", "mobilenet-v2"):
        for module in load_model(name).modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.25)


# --- cutting channels: whatever width is left, forward works ----------------------------------------------


def randomised(name: str) -> nn.Module:
    """A network in float64 whose norms do something."""
    torch.manual_seed(0)
    model = build({"name": name, "num_classes": 10})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return model.double()


def remove(model: nn.Module, channel: int, producers: list[str], consumers: list[str]) -> None:
    """Cut one channel from the rows of ``producers`` and the input columns of ``consumers``."""
    for names, axis in ((producers, 0), (consumers, 1)):
        for name in names:
            module = model.get_submodule(name)
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            for key, tensor in tensors.items():
                if tensor.dim() > axis:
                    kept = [i for i in range(tensor.shape[axis]) if i != channel]
                    cut = tensor.detach().index_select(axis, torch.tensor(kept))
                    setattr(module, key, nn.Parameter(cut) if key in ("weight", "bias") else cut)
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.groups -= 1


def silence(model: nn.Module, channel: int, consumers: list[str]) -> None:
    for name in consumers:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data[:, channel] = 0


# Per network, a channel's producers (with norms and depthwise layers) and its consumers.
INNER = [
    ("resnet20", 3, ["layer2.0.conv1", "layer2.0.bn1"], ["layer2.0.conv2"]),
    ("resnet164", 3, ["layer2.0.conv2", "layer2.0.bn3"], ["layer2.0.conv3"]),
    ("vgg16", 3, ["features.0", "features.1"], ["features.3"]),
    ("vgg16", 500, ["features.40", "features.41"], ["classifier"]),
    ("densenet40", 455, ["dense3.11.conv1"], []),
    (
        "mobilenet-v2",
        3,
        [f"features.3.conv.{i}" for i in ("0.0", "0.1", "1.0", "1.1")],
        ["features.3.conv.2"],
    ),
    ("mobilenet-v2", 1279, ["features.18.0", "features.18.1"], ["classifier.1"]),
]


@pytest.mark.parametrize(("name", "channel", "producers", "consumers"), INNER)
def test_a_channel_can_be_cut(name: str, channel: int, producers: list[str], consumers: list[str]) -> None:
    dense = randomised(name)
    slim = copy.deepcopy(dense)
    if name == "densenet40":  # the last growth channel ends in the last norm and layer
        silence(dense, channel, ["linear"])
        remove(slim, channel - 444, producers, [])
        remove(slim, channel, ["bn"], ["linear"])
    else:
        silence(dense, channel, consumers)
        remove(slim, channel, producers, consumers)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(slim(images), dense(images), rtol=1e-10, atol=0)


def test_a_channel_of_the_option_a_stream_can_be_cut() -> None:
    """The same channel is number 5 of stage 1, 8 + 5 of stage 2 and 16 + 8 + 5 of stage 3."""
    dense = randomised("resnet20")
    slim = copy.deepcopy(dense)
    for stage, channel in ((1, 5), (2, 13), (3, 29)):
        names = [f"layer{stage}.{block}" for block in range(3)]
        producers = [f"{name}.{layer}" for name in names for layer in ("conv2", "bn2")]
        consumers = [f"{name}.conv1" for name in names[stage > 1 :]]
        consumers.append(f"layer{stage + 1}.0.conv1" if stage < 3 else "linear")
        silence(dense, channel, consumers)
        remove(slim, channel, ["conv1", "bn1", *producers] if stage == 1 else producers, consumers)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(slim(images), dense(images), rtol=1e-10, atol=0)


# --- sources ----------------------------------------------------------------------------------------------


def test_the_source_rebuilds_the_network_and_is_no_weight() -> None:
    model = load_model("resnet20", num_classes=4)
    source = source_of(copy.deepcopy(model))
    assert source == {"name": "resnet20", "num_classes": 4}
    again = build(json.loads(json.dumps(source)))
    again.load_state_dict(model.state_dict())
    assert not any("source" in key for key in model.state_dict())
    source["name"] = "changed"  # a copy: the network's own stays
    assert source_of(model) == {"name": "resnet20", "num_classes": 4}
    assert source_of(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    "source", [{"name": "resnet20"}, "resnet20", {"name": "x", "num_classes": 1, "y": 2}]
)
def test_a_source_that_is_none(source: object) -> None:
    with pytest.raises(ModelError, match=r"source is .*, expected the keys name and num_classes"):
        build(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [0, -1, 2.5])
def test_num_classes_must_be_a_count(num_classes: int) -> None:
    with pytest.raises(ModelError, match=r"num_classes is .*, expected a whole number of at least 1"):
        load_model("resnet20", num_classes=num_classes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", r"one of resnet20, .*mobilenet-v2\. Did you mean resnet\d+ or resnet20"),
        ("", "--model is '', expected torchvision:NAME"),
        ("torchvision:", "--model is 'torchvision:', expected torchvision:NAME"),
        ("torchvision:resnet19", r"one of torchvision's \d+ class.* Did you mean torchvision:resnet18"),
        ("timm:resnet19", "timm.list_models.* Did you mean timm:resnet18"),
        ("torchvison:resnet18", r"in no module that Python finds.* Did you mean torchvision:…\?"),
    ],
)
def test_an_unknown_network_is_named_with_what_there_is(name: str, message: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=message):
        load_model(name)


# --- torchvision and timm ---------------------------------------------------------------------------------


def test_torchvision_networks() -> None:
    model = load_model("torchvision:squeezenet1_1", num_classes=5)
    assert source_of(model) == {"name": "torchvision:squeezenet1_1", "num_classes": 5}
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert normalization_of(model) == Normalization()
    default = load_model("torchvision:squeezenet1_1")
    assert source_of(default) == {"name": "torchvision:squeezenet1_1", "num_classes": None}
    assert default(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_torchvision_googlenet_has_no_auxiliary_heads_and_loads_files_that_have(tmp_path: Path) -> None:
    model = load_model("torchvision:googlenet", num_classes=3)
    assert not any(key.startswith("aux") for key in model.state_dict())
    assert normalization_of(model).mean == (0.5, 0.5, 0.5)
    torch.save(model.state_dict() | {"aux1.fc1.weight": torch.zeros(2, 2)}, tmp_path / "public.pth")
    load_model("torchvision:googlenet", weights=tmp_path / "public.pth")
    torch.save(model.state_dict() | {"aux9.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"1 unexpected \(aux9.weight\)"):
        load_model("torchvision:googlenet", weights=tmp_path / "other.pth")


def test_torchvision_densenet_loads_files_with_the_old_names(tmp_path: Path) -> None:
    model = load_model("torchvision:densenet121", num_classes=3)
    state = model.state_dict()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): state[key] for key in state}
    assert set(old) != set(state)
    torch.save(old, tmp_path / "public.pth")
    loaded = load_model("torchvision:densenet121", weights=tmp_path / "public.pth").state_dict()
    key = "features.denseblock1.denselayer2.conv2.weight"
    assert torch.equal(loaded[key], state[key])


def test_torchvision_network_with_versioned_layers_loads_a_plain_state(tmp_path: Path) -> None:
    state = load_model("torchvision:mnasnet0_5", num_classes=3).state_dict()
    save_file(dict(state), tmp_path / "w.safetensors")  # no layer versions in this format
    loaded = load_model("torchvision:mnasnet0_5", weights=tmp_path / "w.safetensors")
    assert torch.equal(loaded.state_dict()["classifier.1.weight"], state["classifier.1.weight"])


def test_timm_networks_bring_their_normalization() -> None:
    pytest.importorskip("timm")
    model = load_model("timm:test_resnet", num_classes=4)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert normalization_of(model) == Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert source_of(model) == {"name": "timm:test_resnet", "num_classes": 4}


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"timm to be installed\. Run `pip install timm`"):
        load_model("timm:resnet18")


# --- the user's own networks ------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_networks")
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return module


def test_a_user_s_function_gets_num_classes_if_it_takes_it(own: types.ModuleType) -> None:
    own.sized = lambda num_classes=3: nn.Linear(4, num_classes)
    own.fixed = lambda: nn.Linear(4, 3)
    assert load_model("own_networks:sized").out_features == 3
    model = load_model("own_networks:sized", num_classes=6)
    assert model.out_features == 6
    assert source_of(model) == {"name": "own_networks:sized", "num_classes": 6}
    assert load_model("own_networks:fixed", num_classes=6).out_features == 3


def test_a_user_s_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here_net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    pass\nmake = lambda: Net(2, 2)"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(load_model("here_net:make")).__name__ == "Net"
    monkeypatch.delitem(sys.modules, "here_net")


def test_a_user_s_function_that_is_at_fault(own: types.ModuleType) -> None:
    own.number = lambda: 3
    own.fails = lambda: 1 / 0
    with pytest.raises(
        ModelError, match=r"a function that returns int, expected one that returns an nn.Module"
    ):
        load_model("own_networks:number")
    with pytest.raises(ModelError, match=r"a function that fails \(ZeroDivisionError"):
        load_model("own_networks:fails")
    with pytest.raises(ModelError, match="own_networks:absent is not a function of own_networks"):
        load_model("own_networks:absent")


@pytest.mark.parametrize(
    "stated",
    [
        Normalization((0.5,), (0.25,)),
        ((0.5,), (0.25,)),
        [[0.5], [0.25]],
        torch.tensor([[0.5], [0.25]]).tolist(),
    ],
)
def test_a_user_s_network_states_its_normalization(stated: object) -> None:
    model = nn.Linear(1, 1)
    model.normalization = stated  # type: ignore[assignment]
    assert normalization_of(model) == Normalization((0.5,), (0.25,))


@pytest.mark.parametrize("stated", [3, "half", (0.5, 0.5), ((0.5,), (0.0,)), ((0.5,),), ((0.5,), (1.0, 2.0))])
def test_a_stated_normalization_must_make_sense(stated: object) -> None:
    model = nn.Linear(1, 1)
    model.normalization = stated  # type: ignore[assignment]
    with pytest.raises(
        ModelError, match=r"attribute `normalization` is .*, expected a Normalization, or a pair"
    ):
        normalization_of(model)


def test_a_layer_called_normalization_states_nothing() -> None:
    model = nn.Sequential()
    model.normalization = nn.BatchNorm2d(3)
    assert normalization_of(model) == Normalization()


# --- number of classes from the weights -------------------------------------------------------------------


def test_num_classes_come_from_the_weights(tmp_path: Path) -> None:
    for name in ("resnet20", "torchvision:squeezenet1_1"):
        torch.save(load_model(name, num_classes=6).state_dict(), tmp_path / "six.pt")
        assert source_of(load_model(name, weights=tmp_path / "six.pt")) == {"name": name, "num_classes": 6}


def test_num_classes_that_contradict_the_weights(tmp_path: Path) -> None:
    torch.save(load_model("resnet20", num_classes=6).state_dict(), tmp_path / "six.pt")
    with pytest.raises(ModelError, match=r"2 wrongly shaped \(linear.weight \(6, 64\) for \(10, 64\)"):
        load_model("resnet20", num_classes=10, weights=tmp_path / "six.pt")


# --- the public figures -----------------------------------------------------------------------------------


def accuracy(model: nn.Module, loader: Loader, batches: int | None = None) -> float:
    with torch.inference_mode():
        right = [model(images).argmax(1) == labels for images, labels in islice(loader, batches)]
    return torch.cat(right).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [("resnet20", "resnet20-12fca82f.th", 0.9173), ("resnet56", "resnet56-4bfd9763.th", 0.9339)],
)
def test_public_checkpoints_reach_their_public_accuracy(name: str, file: str, expected: float) -> None:
    root = os.environ.get("EDGEPRUNE_DATA")
    if not root:
        pytest.skip("EDGEPRUNE_DATA is not set to a folder with cifar-10-batches-py")
    weights = Path(os.environ.get("EDGEPRUNE_WEIGHTS", f"{root}/weights")) / file
    if not weights.is_file():
        pytest.skip(f"{file} is in neither EDGEPRUNE_WEIGHTS nor EDGEPRUNE_DATA/weights")
    model = load_model(name, weights=weights)
    data = load_data(f"cifar10:{root}", batch_size=500, normalization=normalization_of(model))
    assert (data.train.samples, data.val.samples, data.test.samples) == (45_000, 5_000, 10_000)
    assert accuracy(model, data.test) == pytest.approx(expected, abs=0.0005)
    # The normalization belongs to the network: with another one the accuracy is lost.
    other = load_data(f"cifar10:{root}", batch_size=500, normalization=Normalization((0.0,) * 3, (1.0,) * 3))
    assert accuracy(model, other.test, batches=4) < expected - 0.05
