"""The options of the command line: one definition each, shared by every command that takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from edgeprune.errors import UsageError
from edgeprune.units import parse_quantity

if TYPE_CHECKING:
    from edgeprune.target import Target

Command = TypeVar("Command", bound=Callable[..., Any])
Number = TypeVar("Number", int, float)

Option = Callable[[Any], Any]


def _option(*names: str, text: str, default: str = "", **facts: Any) -> Option:
    """An option that is None unless it is given, so that a run's own settings are not overwritten."""
    shown = f"  [default: {default}]" if default else ""
    return click.option(*names, help=text + shown, default=None if not facts.get("multiple") else (), **facts)


COUNT, POSITIVE, SHARE = click.IntRange(0), click.IntRange(1), click.FloatRange(0)
THE_RECIPES = "the recipe's"
FILE = click.Path(path_type=Path)

MODEL = [
    _option(
        "--model",
        metavar="NAME",
        text="Built-in name, torchvision:NAME, timm:NAME or package.module:function.",
    ),
    _option("--weights", metavar="FILE", text="State dict of the dense network (.pt .pth .th .safetensors)."),
    _option("--num-classes", type=POSITIVE, text="Outputs.", default="classes of the data"),
]
DATA = [
    _option(
        "--data",
        metavar="SPEC",
        text="digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR or package.module:function.",
        default="digits",
    ),
    click.option("--download", is_flag=True, help="Fetch the data set into DIR if it is not there."),
    _option("--batch-size", type=click.IntRange(2), text="Images per batch.", default="the recipe's"),
    _option("--image-size", type=POSITIVE, text="Height and width for imagefolder.", default="224"),
    _option("--seed", type=COUNT, text="Of all that is drawn.", default="0"),
    _option("--device", text="auto, cpu or cuda, for training.", default="auto"),
]
EPOCHS = _option("--epochs", type=COUNT, text="Epochs of each training that has no number of its own.")
RECIPE = [
    _option(
        "--recipe",
        metavar="NAME",
        text="How to train: default, quick, proximal-ns-cifar or apib-cifar.",
        default="default",
    ),
    EPOCHS,
    _option("--optimizer", type=click.Choice(["sgd", "adamw"]), text="Optimizer.", default=THE_RECIPES),
    _option(
        "--schedule",
        type=click.Choice(["cosine", "step", "one-cycle"]),
        text="Of the learning rate.",
        default=THE_RECIPES,
    ),
    _option("--warmup-epochs", type=SHARE, text="Epochs in which the rate rises.", default=THE_RECIPES),
    _option("--weight-decay", type=SHARE, text="Weight decay.", default=THE_RECIPES),
    _option(
        "--label-smoothing", type=SHARE, text="Share of the target for all classes.", default=THE_RECIPES
    ),
    _option("--mixup", type=SHARE, text="alpha of the mixing of images; 0: off.", default=THE_RECIPES),
    _option(
        "--cutout", type=COUNT, text="Side in pixels of a square blanked in training images.", default="0"
    ),
    _option("--ema", type=SHARE, text="Decay of a mean of the weights; 0: off.", default=THE_RECIPES),
    _option("--clip", type=SHARE, text="Largest norm of the gradient; 0: off.", default=THE_RECIPES),
    _option(
        "--patience",
        type=COUNT,
        text="Stop after so many epochs without a better validation; 0: off.",
        default=THE_RECIPES,
    ),
    _option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        text="Of the training steps; files have the target's.",
        default=THE_RECIPES,
    ),
    _option("--compile/--no-compile", text="Train through torch.compile.", default=THE_RECIPES),
    _option(
        "--sync-norms/--no-sync-norms",
        text="Several processes: batch norms see the images of all.",
        default="sync-norms",
    ),
    _option(
        "--checkpoint-steps",
        type=COUNT,
        text="Write a checkpoint every so many steps too.",
        default="once a minute",
    ),
    _option("--keep-checkpoints", type=POSITIVE, text="Checkpoints that are kept.", default="2"),
    _option("--tensorboard/--no-tensorboard", text="Write for TensorBoard.", default="no"),
]
TRAIN = [
    _option("--train-epochs", type=COUNT, text="Dense training.", default=f"{THE_RECIPES}; 0 with --weights"),
    _option("--train-lr", type=float, text="Its learning rate.", default=THE_RECIPES),
]
CHANNEL_SELECT = _option(
    "--channel-select/--no-channel-select",
    text="Let a norm that reads a shared stream choose its own channels of it.",
    default="no",
)
INEXACT = _option(
    "--inexact/--exact",
    text="Offer channels too whose removal changes what the others compute.",
    default="exact",
)
SCHEME_NAMES = (
    "proximal-ns, sglp-ib, stlp-ib, hsic-lasso, taylor, activation-weight, obs, magnitude, bn-scale"
    " or random."
)
SCHEME = [
    _option("--scheme", metavar="NAME", text=SCHEME_NAMES, default="proximal-ns"),
    _option(
        "--scheme-option",
        "scheme_options",
        metavar="KEY=VALUE",
        multiple=True,
        text="Hyper-parameter of the scheme, e.g. l1=0.002; repeatable.",
    ),
]
PLAN = [
    _option("--prune-epochs", type=COUNT, text="Epochs of a scheme that trains.", default=THE_RECIPES),
    _option("--max-macs-ratio", type=float, text="Multiply-adds, slim / dense."),
    _option("--max-params-ratio", type=float, text="Parameters, slim / dense."),
    _option("--max-latency-ratio", type=float, text="Latency on the target, slim / dense; measured there."),
    _option("--max-size", "max_size_bytes", metavar="SIZE", text='Size of the ONNX file, e.g. "300 kB".'),
    _option(
        "--channel-multiple", type=POSITIVE, text="Widths are multiples of this.", default="the target's"
    ),
    _option("--min-channels", type=POSITIVE, text="Units that stay in each group.", default="1"),
    _option(
        "--min-share",
        "--omega",
        type=click.FloatRange(0, 1),
        text="Share of each group's units that stays, 0 to 1.",
        default="0",
    ),
    _option("--keep", metavar="GROUP", multiple=True, text="Group to keep whole (* ? match); repeatable."),
    _option(
        "--constants",
        type=click.Choice(["auto", "fold", "carrier", "off"]),
        text="What becomes of channels whose gamma is 0.",
        default="auto",
    ),
    CHANNEL_SELECT,
    INEXACT,
]
PRUNE = [*SCHEME, *PLAN]
REFIT = [
    _option(
        "--refit/--no-refit",
        text="Let the weights that are left make up for those that are gone, by least squares.",
        default="refit",
    ),
    _option("--refit-images", type=POSITIVE, text="Calibration images for that, at most.", default="300"),
]
FINETUNE = [
    _option("--finetune-epochs", type=COUNT, text="Epochs of fine-tuning.", default=THE_RECIPES),
    _option("--finetune-lr", type=float, text="Its learning rate.", default=THE_RECIPES),
    _option("--distill/--no-distill", text="With the dense network as teacher.", default="distill"),
]
EXPORT = [
    _option("--opset", type=int, text="ONNX opset.", default="18"),
    _option("--dynamic-batch/--no-dynamic-batch", text="Leave the batch size open.", default="no"),
    _option("--tolerance", type=float, text="Largest relative difference to torch.", default="1e-4"),
    _option(
        "--variant-tolerance",
        type=float,
        text="The same of the target's precision to fp32.",
        default="fp16 0.02, int8 0.5",
    ),
    _option(
        "--ort-format/--no-ort-format",
        text="Write files in onnxruntime's own format too.",
        default="no",
    ),
]
TARGET = [
    _option("--target", metavar="NAME", text="A shipped target's name or a .toml file.", default="local-cpu")
]
TARGETS = _option(
    "--target",
    "targets",
    metavar="NAME",
    multiple=True,
    text="A shipped target's name or a .toml file; repeatable.",
    default="local-cpu, or the run's",
)
AGAINST = _option(
    "--against", metavar="FILE", text="An earlier release, for the budgets that end in _vs_release."
)
BENCH = [
    _option("--processes", type=click.IntRange(2), text="Fresh processes to time in, at most.", default="30"),
    _option(
        "--budget-seconds",
        type=click.FloatRange(0, min_open=True),
        text="Time for the measurement. It ends before if the interval is narrow.",
    ),
    _option(
        "--instructions/--no-instructions",
        text="Count the instructions of an inference (callgrind, or an emulated processor).",
        default="if a budget needs them",
    ),
    _option("--latency/--no-latency", text="Time the networks.", default="latency"),
]
SIZES = [
    _option(
        "--input",
        "inputs",
        metavar="[NAME=]N,C,H,W",
        multiple=True,
        text="Shape of the first input, or of the one of that name; repeatable.",
        default="the file's",
    ),
    _option(
        "--dim",
        "dims",
        metavar="NAME=SIZE",
        multiple=True,
        text="Size of a dimension that the file leaves open, e.g. height=224; repeatable.",
        default="1 for a batch",
    ),
]
BROWSER = [
    _option(
        "--runner",
        type=click.Choice(["local", "ssh", "adb", "browser"]),
        text="Where to measure.",
        default="the target's",
    ),
    _option(
        "--host",
        metavar="ADDRESS",
        text="browser: serve on this address of this machine; lan: on the local network.",
        default="the target's, or 127.0.0.1",
    ),
    _option("--port", type=click.IntRange(0, 65535), text="browser: serve on this port.", default="any"),
    _option(
        "--web", metavar="FOLDER", text="browser: onnxruntime-web.", default="the target's, or node_modules"
    ),
    _option(
        "--wait",
        "wait_s",
        type=click.FloatRange(0, min_open=True),
        text="browser: seconds to wait for it.",
        default="300",
    ),
]
OUT = click.option("--out", type=FILE, metavar="FOLDER", help="Run folder.")
WHY = click.option(
    "--why", is_flag=True, help="Say where bytes, MACs and time sit, and what would have to go."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

ALL = [*MODEL, *DATA, *RECIPE, *TRAIN, *PRUNE, *REFIT, *FINETUNE, *EXPORT, *TARGET, *BENCH, AGAINST]
BY_COMMAND: dict[str, list[Any]] = {
    "run": ALL,
    "sweep": [option for option in ALL if option not in SCHEME],  # it has schemes and options of its own
    "train": [*MODEL, *DATA, *RECIPE, *TRAIN],
    "prune": [*DATA, *RECIPE, *PRUNE, *REFIT, *TARGET],
    "finetune": [*DATA, *RECIPE, *FINETUNE],
    "export": [*DATA, *EXPORT, *TARGET],
    "bench": [*TARGET, *BENCH],
    "report": [*TARGET],
}


def with_sizes(target: Target, inputs: Sequence[str], dims: Sequence[str]) -> Target:
    """A target with the shapes of ``--input`` and the sizes of ``--dim`` laid over its own.

    Raises:
        UsageError: One is not written as it should be, or given twice.
    """

    def fail(option: str, text: str, expected: str) -> NoReturn:
        raise UsageError("could not read an option", where=option, value=repr(text), expected=expected)

    def read(option: str, texts: Sequence[str], expected: str) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for text in texts:
            name, _, sizes = text.rpartition("=")
            parts = [part.strip() for part in sizes.replace("x", ",").split(",")]
            if text.startswith("=") or not all(
                part.isascii() and part.isdecimal() and 0 < int(part[:10]) < 2**31 for part in parts
            ):
                fail(option, text, expected)
            if name in found:
                fail(option, text, f"{repr(name) if name else 'the first input'} once")
            found[name] = tuple(map(int, parts))
        return found

    shapes = read("--input", inputs, "sizes of at least 1 as 1,3,224,224 or NAME=1,3,224,224")
    rule = "NAME=SIZE with a size of at least 1, e.g. height=224"
    sizes = read("--dim", dims, rule)
    for name, size in sizes.items():
        if not name or len(size) != 1:
            fail("--dim", f"{name}={','.join(map(str, size))}", rule)
    runtime = target.runtime
    first = shapes.pop("", runtime.input)
    all_dims = runtime.dims | {name: size[0] for name, size in sizes.items()}
    runtime = replace(runtime, input=first, inputs=runtime.inputs | shapes, dims=all_dims)
    return replace(target, runtime=runtime)


def take(*options: Any) -> Callable[[Command], Command]:
    """Decorator: the given options, in that order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def numbers(option: str, text: str | None, kind: type[Number], rule: str) -> tuple[Number, ...]:
    """The numbers of a list like 1,2,4; none without the option.

    Raises:
        UsageError: The text is no such list.
    """
    try:
        return () if text is None else tuple(kind(word) for word in text.split(","))
    except ValueError:
        raise UsageError("could not read an option", where=option, value=repr(text), expected=rule) from None


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given on the command line, in SI units.

    Raises:
        UsageError: A hyper-parameter is not KEY=VALUE, or a size has no unit.
    """
    settings = {key: value for key, value in options.items() if value is not None and value != ()}
    if "max_size_bytes" in settings:
        settings["max_size_bytes"] = int(
            parse_quantity(settings["max_size_bytes"], "size", where="--max-size")
        )
    if "scheme_options" in settings:
        pairs = [text.partition("=") for text in settings["scheme_options"]]
        for key, equals, value in pairs:
            if not key or not equals or not value:
                raise UsageError(
                    "could not read an option",
                    where="--scheme-option",
                    value=repr(key + equals + value),
                    expected="KEY=VALUE, e.g. l1=0.002",
                )
        settings["scheme_options"] = {key: value for key, _, value in pairs}
    if "keep" in settings:
        settings["keep"] = tuple(settings["keep"])
    return settings
