"""The stages that need torch: train, score, plan, slim, refit, finetune, export."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.artifact import Artifact
from edgeprune.channels import ChannelGroup
from edgeprune.data import Data, load_data
from edgeprune.errors import InexactWarning, ModelError, PlanError, RunError, UsageError
from edgeprune.files import replacing, sha256_file, write_text
from edgeprune.group_facts import group_facts
from edgeprune.groups import find_groups
from edgeprune.launch import world
from edgeprune.models import build, load_model, normalization_of, source_of
from edgeprune.onnx_export import export
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.device import identity_of_machine
from edgeprune.pipeline.provenance import code_of, provenance_of
from edgeprune.pipeline.recipes import batch_size_of, checkpoints_of, recipe_of, scheme_options
from edgeprune.plan import Plan
from edgeprune.refitting import refit
from edgeprune.schemes import SCHEMES, Scheme, make_scheme
from edgeprune.selection import make_plan
from edgeprune.surgery import layer_widths, load_slim, read_file, save_slim, slim, write_weights
from edgeprune.training import evaluate, predict, train

FACTS_BYTES = 1_800
"""What accuracy, data and scheme add to the metadata of the final file, beyond a probe for ``max_size``."""


# --- what decides a stage's result besides settings and files -------------------------------------------


def identity_of_data(context: Context) -> Any:
    """Hash of images, labels and split; images per batch."""
    return [context.data.identity, batch_size_of(context.run.settings)]


def identity_of_dense(context: Context) -> Any:
    """Initial weights, data, how it is trained, and the user's own code."""
    settings = context.run.settings
    weights = Path(settings.weights) if settings.weights else None
    return {
        "data": identity_of_data(context),
        "weights": sha256_file(weights) if weights and weights.is_file() else None,
        "recipe": recipe_of(settings, "dense").to_json(),
        "code": code_of(settings.model),
    }


def identity_of_scoring(context: Context) -> Any:
    """Data, and how a scheme that trains does it."""
    settings = context.run.settings
    trains = getattr(SCHEMES.get(settings.scheme), "trains", True)
    return {
        "data": identity_of_data(context),
        "recipe": recipe_of(settings, "sparse").to_json() if trains else None,
        "code": code_of(settings.model),
    }


def identity_of_plan(context: Context) -> Any:
    """The channel multiple, which may be the target's; with a latency budget also where it is measured."""
    measured = context.run.settings.max_latency_ratio is not None
    return [channel_multiple(context), identity_of_machine(context) if measured else None]


def identity_of_finetuning(context: Context) -> Any:
    """Data, and how it is trained."""
    recipe = recipe_of(context.run.settings, "finetune")
    return {"data": identity_of_data(context), "recipe": recipe.to_json()}


# --- shared ------------------------------------------------------------------------------------------------


def device_of(name: str) -> torch.device:
    """The device to train on; of several ranks on a machine each has a GPU of its own.

    Raises:
        UsageError: ``cuda`` is asked for and there is none, or there are fewer GPUs than ranks.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(
            "could not choose a device", where="--device", value=name, expected="auto, cpu or cuda"
        )
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "could not choose a device", where="--device", value="cuda", expected="a GPU that torch can use"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = world(), torch.cuda.device_count()
    if here.local_rank >= gpus:
        raise UsageError(
            "could not choose a device",
            where="--nproc-per-node",
            value=f"more than {gpus}",
            expected="a GPU for each process of a machine",
            hint="Start fewer processes, or train on the CPU with --device cpu.",
        )
    return torch.device("cuda", here.local_rank) if here.size > 1 else torch.device("cuda")


def data_of(context: Context) -> Data:
    """Load the run's data as its network wants it normalised."""
    settings = context.run.settings

    def load(normalization: Any) -> Data:
        return load_data(
            settings.data, batch_size=batch_size_of(settings), seed=settings.seed,
            normalization=normalization, download=context.download, image_size=settings.image_size,
            cutout=settings.cutout,
        )  # fmt: skip

    data = load(None)
    classes = settings.num_classes or len(data.classes)
    if classes < len(data.classes):
        raise UsageError(
            "could not match network and data",
            where="--num-classes",
            value=classes,
            expected=f"at least {len(data.classes)}, the classes of {settings.data}",
        )
    wanted = normalization_of(build({"name": settings.model, "num_classes": classes}))
    return data if wanted == data.normalization else load(wanted)


def channel_multiple(context: Context) -> int:
    """What widths are a multiple of: as asked for, else as the target says."""
    given = context.run.settings.channel_multiple
    return context.target.channel_multiple if given is None else given


def load_network(path: Path) -> nn.Module:
    """A dense network from a run's file: built from its source, then filled.

    Raises:
        ModelError: The file is broken or its source builds something else.
    """
    about, state = read_file(path)
    model = build(about["source"])
    try:
        model.load_state_dict(state)
    except RuntimeError as reason:
        raise ModelError(
            "could not load the run's network",
            where=str(path),
            value=f"not what its source builds ({str(reason).splitlines()[0]})",
            expected="the network as this run has written it",
            hint="Delete the file and run again.",
        ) from None
    return model


def save_network(model: nn.Module, path: Path) -> None:
    """Write a dense network with its source."""
    write_weights(model, path, {"source": source_of(model)})


def accuracies(model: nn.Module, data: Data) -> dict[str, float]:
    """Top-1 on the validation and the test split; the test split decides nothing."""
    return {"val_accuracy": evaluate(model, data.val), "test_accuracy": evaluate(model, data.test)}


def scheme_of(context: Context) -> Scheme:
    """The run's scheme; what its options do not name comes from the recipe, the seed from the settings."""
    settings = context.run.settings
    options = dict(settings.scheme_options)
    kind = SCHEMES.get(settings.scheme)
    known = getattr(kind, "__dataclass_fields__", {})
    if "seed" in known:
        options.setdefault("seed", settings.seed)
    if getattr(kind, "trains", False):
        options = scheme_options(settings, known) | options
    return make_scheme(settings.scheme, **options)


# --- stages ------------------------------------------------------------------------------------------------


def train_dense(context: Context) -> dict[str, Any]:
    """Make the dense network: from weights, by training, or both."""
    run, data = context.run, context.data
    settings = run.settings
    scheme_of(context)  # a wrong scheme, option or recipe should not wait for the end of a training
    recipe_of(settings, "finetune")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classes = settings.num_classes or len(data.classes)
        model = load_model(settings.model, num_classes=classes, weights=settings.weights)
    model.to(context.device)
    recipe = recipe_of(settings, "dense")
    history = train(
        model, data, recipe=recipe, seed=settings.seed, checkpoint=checkpoints_of(run, "train"),
        phase="train", on_progress=context.listener.training,
    )  # fmt: skip
    facts = {
        "history": history.to_json(),
        "recipe": recipe.to_json(),
        "source": source_of(model),
        **accuracies(model, data),
    }
    save_network(model, run.file("dense.safetensors"))
    return facts


def groups_of(context: Context, model: nn.Module) -> tuple[ChannelGroup, ...]:
    """Channel groups of the run's network."""
    settings = context.run.settings
    return find_groups(
        model, context.data.example, exact=not settings.inexact, channel_select=settings.channel_select
    )


def score(context: Context) -> dict[str, Any]:
    """Score the channels; a scheme that trains makes the network sparse on the way."""
    run, data = context.run, context.data
    scheme = scheme_of(context)
    model = load_network(run.file("dense.safetensors")).to(context.device)
    groups = groups_of(context, model)
    how: dict[str, Any] = {"checkpoint": checkpoints_of(run, "score")}
    if "recipe" in inspect.signature(scheme.fit).parameters:  # what its own options do not say
        how["recipe"] = recipe_of(run.settings, "sparse")
    scores = scheme.fit(model, groups, data, on_progress=context.listener.training, **how)
    facts = {
        "scheme": scheme.name,
        "options": dict(vars(scheme)),
        "scheme_facts": scores.facts,
        "zero_units": int(sum(int((score == 0).sum()) for score in scores.values())),
        "scored_units": int(sum(score.numel() for score in scores.values())),
        "groups": len(groups),
        "frozen": {group.name: group.frozen_because for group in groups if group.frozen_because},
        **accuracies(model, data),
    }
    save_network(model, run.file("sparse.safetensors"))
    with replacing(run.file("scores.npz")) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {name: score.numpy() for name, score in scores.items()}
        np.savez(file, **arrays)
    return facts


def plan(context: Context) -> dict[str, Any]:
    """Choose the kept channels so that the budgets are met."""
    run, settings = context.run, context.run.settings
    model = load_network(run.file("sparse.safetensors"))
    with np.load(run.file("scores.npz")) as stored:
        scores = {name: torch.from_numpy(stored[name]) for name in stored.files}
    limit = settings.max_size_bytes
    if limit is not None:
        limit = max(1, limit - FACTS_BYTES)
    groups = groups_of(context, model)
    chosen = make_plan(
        model, groups, scores, context.data.example,
        max_macs_ratio=settings.max_macs_ratio, max_params_ratio=settings.max_params_ratio,
        max_size_bytes=limit, max_latency_ratio=settings.max_latency_ratio, target=context.target,
        channel_multiple=channel_multiple(context),
        min_channels=settings.min_channels, min_share=settings.min_share, keep=settings.keep,
        constants=settings.constants,  # type: ignore[arg-type]
        on_progress=context.listener.step,
    )  # fmt: skip
    write_text(run.file("plan.json"), chosen.to_json() + "\n")
    return {
        **chosen.facts,
        "groups": group_facts(model, groups, chosen, context.data.example),
        "widths": layer_widths(model, chosen),
    }


def read_plan(context: Context) -> Plan:
    """The run's plan."""
    path = context.run.file("plan.json")
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanError) as reason:
        raise RunError("could not read the run's plan", where=str(path), value=f"broken ({reason})") from None


def slim_down(context: Context) -> dict[str, Any]:
    """Cut the network, and say how its predictions on the test split compare with the uncut one's."""
    run, data = context.run, context.data
    chosen = read_plan(context)
    sparse = load_network(run.file("sparse.safetensors"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InexactWarning)
        small = slim(sparse, chosen, example=data.example)
    for warning in caught:
        if warning.category is not InexactWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    before, after = (predict(model.to(context.device), data.test).cpu() for model in (sparse, small))
    facts: dict[str, Any] = {
        "same_predictions": float((before == after).float().mean()),
        **accuracies(small, data),
    }
    inexact = [str(warning.message) for warning in caught if warning.category is InexactWarning]
    facts |= {"inexact": inexact[0]} if inexact else {}
    save_slim(small.cpu(), chosen, run.file("pruned.safetensors"))
    return facts


def refit_weights(context: Context) -> dict[str, Any]:
    """Let the weights that are left make up for those that are gone, towards the network that was cut."""
    run, data, settings = context.run, context.data, context.run.settings
    chosen = read_plan(context)
    small = load_slim(run.file("pruned.safetensors")).to(context.device)
    facts: dict[str, Any] = {}
    if settings.refit:
        whole = load_network(run.file("sparse.safetensors")).to(context.device)
        done = refit(small, whole, chosen, data, images=settings.refit_images, seed=settings.seed)
        facts = {"refit": asdict(done), **accuracies(small, data)}
    save_slim(small.cpu(), chosen, run.file("refitted.safetensors"))
    return facts


def finetune(context: Context) -> dict[str, Any]:
    """Train the slim network on, if asked for with the dense one as teacher; the best on validation stays."""
    run, data, settings = context.run, context.data, context.run.settings
    small = load_slim(run.file("refitted.safetensors")).to(context.device)
    teacher = load_network(run.file("dense.safetensors")).to(context.device) if settings.distill else None
    recipe = recipe_of(settings, "finetune")
    history = train(
        small, data, recipe=recipe, teacher=teacher, seed=settings.seed,
        checkpoint=checkpoints_of(run, "finetune"), phase="finetune", on_progress=context.listener.training,
    )  # fmt: skip
    facts = {"history": history.to_json(), "recipe": recipe.to_json(), **accuracies(small, data)}
    save_slim(small, read_plan(context), run.file("slim.safetensors"))
    return facts


def export_dense(context: Context) -> dict[str, Any]:
    """Write the dense ONNX file, checked against torch."""
    return {"dense": _exported(context, "dense")}


def export_slim(context: Context) -> dict[str, Any]:
    """Write the slim ONNX file, checked against torch; the facts are of both."""
    return {**context.run.facts("export-dense"), "slim": _exported(context, "slim")}


def _exported(context: Context, name: str) -> dict[str, Any]:
    """Write one of the two files, with its provenance."""
    run, data, settings = context.run, context.data, context.run.settings
    weights = run.file(f"{name}.safetensors")
    artifact = export(
        load_network(weights) if name == "dense" else load_slim(weights),
        data.example, run.file(f"{name}.onnx"), data=data, dynamic_batch=settings.dynamic_batch,
        opset=settings.opset, tolerance=settings.tolerance, provenance=provenance_of(context, name),
    )  # fmt: skip
    return facts_of(artifact)


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """What a run notes of a file that it has written."""
    names = ("sha256", "size_bytes", "macs", "params", "parity_error", "accuracy")
    return {name: getattr(artifact, name) for name in names}
