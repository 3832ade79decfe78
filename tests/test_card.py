from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.card import CLASSES, model_card
from edgeprune.measurement import Measurement
from edgeprune.pipeline.card import command_without_places
from edgeprune.pipeline.settings import Settings
from tests.sessions import DATA, DENSE, SLIM, session

PROVENANCE = {
    "role": "slim", "source": {"name": "resnet20", "num_classes": 10}, "weights_sha256": "12" * 32,
    "plan_sha256": "34" * 32, "seed": 7, "scheme": {"scheme": "proximal-ns", "options": {"l1": 0.0045}},
    "refit": None, "data": DATA, "normalization": {"mean": [0.5], "std": [0.25]}, "dynamic_batch": True,
    "git": {"commit": "56" * 20, "dirty": False}, "parity": {"tolerance": 1e-4, "real_images": 256},
    "versions": {"torch": "2.15.0"}, "macs_by_node": {"n": 50},
}  # fmt: skip
FACTS = replace(
    SLIM,
    provenance=PROVENANCE,
    accuracy_top5={"test": 0.99},
    accuracy_by_class={"test": {"cat": 0.7, "dog": 0.9, "a|b": 1.0}},
)


def measured(**facts: object) -> Measurement:
    one = session(1)
    assert one.baseline is not None
    dense = replace(
        one.baseline,
        artifact=replace(DENSE, accuracy_by_class={"test": {"cat": 0.8, "dog": 0.8, "a|b": 1.0}}),
    )
    placement = {
        "left_to_cpu": [],
        "inputs": [{"name": "input", "type": "tensor(float)", "shape": [1, 3, 8, 8]}],
    }
    return replace(
        one, artifact=replace(FACTS, **facts), baseline=dense, placement=placement, notes=("It was loud.",)
    )


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_a_card_has_every_fact() -> None:
    card = model_card(measured(), command="edgeprune run --model resnet20 --out r20")
    assert card.startswith(
        "# slim.onnx\n\nAn ONNX network that tells 10 classes of images apart, made of `resnet20`"
    )
    assert (
        "by removing channels (scheme `proximal-ns`). Of the dense network it has 0.333 of its bytes" in card
    )
    assert "Input `input`: tensor(float), shape (1, 3, 8, 8)." in section(card, "Use")
    assert "mean (0.5) and std (0.25)" in section(card, "Use")
    assert "The batch size is open." in section(card, "Use")
    assert f"`digits`, identity `{DATA['identity']}`" in section(card, "Data")
    assert "Images: val 359, test 359." in section(card, "Data")
    accuracy = section(card, "Accuracy")
    assert "| top-1, test | 90.00 % | 90.00 % |" in accuracy
    assert "| top-5, test | 99.00 % | - |" in accuracy
    assert accuracy.index("| cat |") < accuracy.index("| a\\|b |") < accuracy.index("| dog |")
    figures = section(card, "Size and speed")
    assert "| ONNX file | 100 kB | 300 kB |" in figures
    assert "| median latency | 1.0" in figures
    assert "On test device: a processor, x86\\_64, 1 thread(s), CPUExecutionProvider" in figures.replace(
        "_", "\\_"
    )
    made = section(card, "How it was made")
    assert "```console\nedgeprune run --model resnet20 --out r20\n```" in made
    for text in (
        "| seed | 7 |",
        "| refit | no |",
        "options l1 0.0045",
        f"commit {'56' * 20}, dirty no",
        "torch 2.15.0",
    ):
        assert text in made, text
    assert "macs" not in made
    for sha256 in (SLIM.sha256, DENSE.sha256, "12" * 32, "34" * 32):
        assert f"`{sha256}`" in section(card, "Hashes")
    assert "While it was measured: It was loud." in section(card, "Limits")
    assert "Not stated here" in section(card, "Licence")
    assert card == model_card(measured(), command="edgeprune run --model resnet20 --out r20")


def test_what_nobody_knows_is_left_out() -> None:
    one = measured(provenance={}, accuracy={}, parity_error=None, accuracy_top5={}, accuracy_by_class={})
    card = model_card(replace(one, baseline=None, notes=()))
    assert card.startswith("# slim.onnx\n\nAn ONNX network.\n")
    for title in ("Data", "Accuracy", "How it was made"):
        assert f"## {title}\n" not in card
    assert "None" not in card
    assert "## Hashes" in card


def test_many_classes_show_those_that_lost_most() -> None:
    shares = {f"class {number}": number / 100 for number in range(100)}
    card = model_card(measured(accuracy_by_class={"test": shares}))
    assert section(card, "Accuracy").count("| class ") == CLASSES + 1
    assert f"The other {100 - CLASSES} classes are in the sidecar." in card


def test_names_cannot_spoil_the_card() -> None:
    card = model_card(measured(provenance={**PROVENANCE, "source": {"name": "<b>`x`|y\n# z"}}))
    assert "<b>" not in card
    assert "\n# z" not in card


def test_counts_of_images_may_be_anything() -> None:
    data = {**DATA, "images": {"val": None, "test": "m|any", "train": 12345}}
    text = model_card(measured(provenance={**PROVENANCE, "data": data}))
    assert "Images: val None, test m\\|any, train 12,345." in text


def test_a_backtick_in_front_ends_no_cell() -> None:
    classes = {"test": {"`x|y": 0.5}}
    one = measured(path=Path("a|b <i>.onnx"), accuracy_by_class=classes)
    text = model_card(one)
    assert text.startswith("# a\\|b &lt;i>.onnx\n")
    assert "| class | a\\|b &lt;i>.onnx | dense.onnx |" in text
    assert "| \\`x\\|y | 50.00 % | - |" in text
    assert f"| weights | `{'12' * 32}` |" in text


def test_the_command_names_no_place() -> None:
    settings = Settings(model="resnet20", data="cifar10:/srv/data", weights="/srv/w.th", target="/srv/t.toml")
    command = command_without_places(settings, Path("/srv/runs/r20"))
    assert command == (
        "edgeprune run --model resnet20 --data cifar10:DIR --weights w.th --target t.toml --out r20"
    )
    plain = Settings(model="a.b:net", data="my.module:images")
    assert "--data my.module:images" in command_without_places(plain, Path())
