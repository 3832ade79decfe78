"""Surgery: a new, physically smaller network, handed over only if the oracle agrees."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from edgeprune.channel_select import add_selects
from edgeprune.constants import fold_constants
from edgeprune.cost import as_inputs, shell_of
from edgeprune.cutting import (
    assign,
    cut,
    device_of,
    first_line,
    places,
    shared,
    tensors_of,
)
from edgeprune.errors import EdgepruneError, InexactWarning, ModelError, PlanError, SlimError
from edgeprune.files import replacing
from edgeprune.models import build, source_of
from edgeprune.oracle import Double, Inputs, disagreement, random_inputs, smallest
from edgeprune.plan import Plan

SLIM_FORMAT = 1
ABOUT = "edgeprune"
"""Entry of a weights file's metadata that holds the facts about the network."""

TOLERANCE = 1e-10
"""Largest relative difference between slim and dense outputs in float64."""


def slim(model: nn.Module, plan: Plan, *, example: Tensor | Inputs | None = None) -> nn.Module:
    """Cut the removed units of a plan out of a copy of the network.

    Before the copy is handed over the oracle runs: the dense network with the columns that consume removed
    units set to zero (constant units excepted: what they contribute is kept) must give the same outputs as
    the slim one, in float64, to ``TOLERANCE`` relative, on every input.

    A plan with inexact groups (see ``find_groups``) must hold so far without them; with them the network only
    has to run, and a warning says by how much its outputs differ from the oracle's.

    Args:
        model: Dense network that the plan was made for; it is not changed.
        plan: The kept units.
        example: An input (N, C, H, W), or a tuple of inputs, to check on; without it only random inputs of
            the smallest size that the network accepts are used.

    Returns:
        A new module of the same class, with the dtype, device and training mode of ``model``.

    Raises:
        PlanError: The plan is for another network.
        ModelError: The dense network does not run.
        SlimError: The slim network would compute something else, or does not run.

    Warns:
        InexactWarning: The plan has inexact groups.
    """
    plan.check_fits(model)
    exact = tuple(group for group in plan.groups if group.inexact_because is None)
    inexact = [group for group in plan.groups if group.inexact_because]
    if inexact and exact:
        slim(model, dataclasses.replace(plan, groups=exact), example=example)
    batches = oracle_inputs(model, plan, example)
    reference = Double(model, dropped_columns(plan))
    try:
        theirs = [reference.outputs(inputs) for inputs in batches]
    except Exception as reason:
        raise ModelError(
            "could not run the dense network",
            where="its forward pass in float64",
            value=f"failing ({first_line(reason)})",
            expected=f"inputs of {[shape for shape, _ in plan.inputs]} to go through",
        ) from reason
    with _cutting():
        small = shared(model).eval()
        add_selects(small, plan.channel_selects)
        add_biases(small, plan)
        folded = Double(small)
        fold_constants(folded, plan, batches)
        for key, tensor in folded.owned.items():
            assign(places(small)[key], tensor)
        cut(small, plan.cuts())
        _tell_plain_norms(small, plan)
        work = Double(small)
        ours = [work.outputs(inputs) for inputs in batches]
    error = max(disagreement(*outputs) for outputs in zip(ours, theirs, strict=True))
    if inexact and error < float("inf"):
        warnings.warn(
            f"slimming changed the function: its outputs are off by {error:.1e} relative (0 would mean that "
            "just the removed channels are missing), because of "
            + f"{inexact[0].name} ({inexact[0].inexact_because})"
            + (f" and {len(inexact) - 1} more." if len(inexact) > 1 else "."),
            InexactWarning,
            stacklevel=2,
        )
    elif not error <= TOLERANCE:
        raise SlimError(
            "could not slim the network",
            where="the largest relative change of its outputs",
            value=f"{error:.1e}",
            expected=f"at most {TOLERANCE:.0e} in float64",
            hint="Nothing was changed; please report the network, this should not happen.",
        )
    return _like(small, model)


@contextlib.contextmanager
def _cutting() -> Iterator[None]:
    """Whatever goes wrong while a network is cut is one clear error."""
    try:
        yield
    except EdgepruneError:
        raise
    except Exception as reason:
        raise SlimError(
            "could not slim the network",
            where="the slim network",
            value=f"broken ({first_line(reason)})",
            expected="one that runs",
            hint="Nothing was changed; please report the network, this should not happen.",
        ) from reason


def dropped_columns(plan: Plan) -> dict[tuple[str, int], Tensor]:
    """Positions of weight axes that read removed units which are not constant."""
    columns: dict[tuple[str, int], list[int]] = {}
    for group in plan.groups:
        lost = sorted(set(group.removed) - set(group.constant))
        for member in group.members:
            if member.role == "in":
                columns.setdefault((member.tensor, member.axis), []).extend(member.positions(lost))
    return {key: torch.tensor(positions, dtype=torch.int64) for key, positions in columns.items()}


def oracle_inputs(model: nn.Module, plan: Plan, example: Tensor | Inputs | None) -> list[Inputs]:
    """The example, if there is one, and noise of the smallest size that the network accepts; two at least.

    Float64, on the model's device, at batch 1.
    """
    device = device_of(model)
    shapes = [(shape, getattr(torch, dtype)) for shape, dtype in plan.inputs]
    small = smallest(model, random_inputs(shapes, device, seed=0))
    if example is not None:
        inputs = (x.double() if x.is_floating_point() else x for x in as_inputs(example))
        return [tuple(x.to(device) for x in inputs), small]
    shapes = [(tuple(x.shape), x.dtype) for x in small]
    return [small, random_inputs(shapes, device, seed=1)]


def add_biases(model: nn.Module, plan: Plan) -> None:
    """Give the layers that the plan names a bias of zeros, in place."""
    for name in plan.new_biases:
        layer = model.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        layer.register_parameter("bias", nn.Parameter(bias, requires_grad=weight.requires_grad))


def slim_structure(model: nn.Module, plan: Plan) -> None:
    """Give a network the slim structure in place, without caring for what it computes.

    Raises:
        PlanError: The plan is for another network.
        SlimError: The slim network does not run.
    """
    plan.check_fits(model)
    with _cutting():
        add_selects(model, plan.channel_selects)
        add_biases(model, plan)
        cut(model, plan.cuts())
        _tell_plain_norms(model, plan)


def layer_widths(model: nn.Module, plan: Plan) -> dict[str, tuple[int, int]]:
    """Output channels of each convolution and linear layer, before and after a plan, in the network's order.

    Raises:
        PlanError: The plan is for another network.
    """
    shell = shell_of(model)
    dense = _widths(shell)
    slim_structure(shell, plan)
    slim = _widths(shell)
    return {name: (width, slim[name]) for name, width in dense.items()}


def _widths(model: nn.Module) -> dict[str, int]:
    kinds = {"out_channels": nn.modules.conv._ConvNd, "out_features": nn.Linear}
    return {
        name: getattr(layer, key)
        for name, layer in model.named_modules()
        for key, kind in kinds.items()
        if isinstance(layer, kind)
    }


def _tell_plain_norms(model: nn.Module, plan: Plan) -> None:
    """Bring the width of norms without any tensor in line with what they receive in a forward pass."""
    if not any(is_plain_norm(module) for module in model.modules()):
        return
    double = Double(model)
    twins = dict(zip(double.module.modules(), model.modules(), strict=True))

    def tell(norm: nn.Module, args: Inputs) -> None:
        twins[norm].num_features = args[0].shape[1]  # type: ignore[assignment]

    for module in filter(is_plain_norm, twins):
        module.register_forward_pre_hook(tell)
    shapes = [(shape, getattr(torch, dtype)) for shape, dtype in plan.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        double.outputs(random_inputs(shapes, device_of(model), seed=0))


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a batch or instance norm without any tensor."""
    return isinstance(module, _NormBase) and not module.state_dict()


def _like(small: nn.Module, model: nn.Module) -> nn.Module:
    """The slim network with tensors of its own, and the dtypes and training modes of the dense one."""
    theirs = tensors_of(model)
    dtypes = {key: tensor.dtype for key, tensor in theirs.items()}
    default = next((dtype for dtype in dtypes.values() if dtype.is_floating_point), torch.float32)
    held = {tensor.data_ptr() for tensor in theirs.values()}
    for key, spots in places(small).items():
        tensor = getattr(spots[0].module, spots[0].name).detach()
        dtype = dtypes.get(key, default if tensor.is_floating_point() else tensor.dtype)
        if tensor.dtype != dtype:
            assign(spots, tensor.to(dtype))
        elif tensor.data_ptr() in held:
            assign(spots, tensor.clone())
    for ours, dense in zip(small.modules(), model.modules(), strict=True):
        ours.training = dense.training
    return small


def save_slim(
    model: nn.Module, plan: Plan, path: Path | str, *, source: dict[str, object] | None = None
) -> None:
    """Save a slim network as one safetensors file: weights, plan and model source; nothing is pickled.

    Args:
        model: Slim network, as ``slim`` made it (fine-tuned or not).
        plan: The plan that made it.
        path: File to write, atomically.
        source: Where the dense network comes from (see ``edgeprune.models.source_of``); default: as recorded
            by ``load_model``.

    Raises:
        ModelError: The network does not know its source and none is given, source and plan build another
            network, or the file can not be written.
    """
    problem = "could not save the slim network"
    source = source or source_of(model)
    if source is None:
        raise ModelError(
            problem,
            where="its source",
            value="unknown",
            expected="a network made by load_model",
            hint='Load the dense network by load_model("package.module:function").',
        )
    structure = build(source)
    try:
        slim_structure(structure, plan)
    except (PlanError, SlimError) as reason:
        raise ModelError(
            problem,
            where="its plan",
            value=f"for another network than {source['name']} ({first_line(reason)})",
            expected="the plan that made it",
        ) from reason
    rebuilt = {key: tuple(tensor.shape) for key, tensor in structure.state_dict().items()}
    held = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    other = [key for key in {**held, **rebuilt} if held.get(key) != rebuilt.get(key)]
    if other:
        raise ModelError(
            problem,
            where=other[0],
            value=held.get(other[0], "not in the network"),
            expected=f"{rebuilt.get(other[0], 'nothing')}, as source and plan build it",
        )
    write_weights(model, Path(path), {"source": source, "plan": plan.to_json(), "format": SLIM_FORMAT})


def write_weights(model: nn.Module, path: Path, about: dict[str, Any]) -> None:
    """Write a network's state dict as safetensors, atomically; shared tensors are stored under each key.

    Equal networks give equal files.

    Args:
        model: Network.
        path: File to write.
        about: Facts to store with it, fit for JSON.

    Raises:
        ModelError: The file can not be written.
    """
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in model.state_dict().items()}
    try:
        with replacing(path) as temporary:
            # One entry: safetensors does not keep the order of several.
            save_file(tensors, temporary, {ABOUT: json.dumps(about)})
    except (OSError, SafetensorError) as reason:
        raise ModelError(
            "could not save the weights", where=str(path), value=f"not writable ({first_line(reason)})"
        ) from None


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and state dict in a file of ``write_weights``.

    Raises:
        ModelError: The file is absent, broken or not such a file.
    """
    problem, rule = "could not load the network", "a file of save_slim, or of a run"
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ModelError(problem, where=str(path), value="not there", expected=rule) from None
    except (SafetensorError, OSError, ValueError) as reason:
        value = f"broken ({first_line(reason)})"
        raise ModelError(problem, where=str(path), value=value, expected=rule) from None
    if not isinstance(about, dict) or "source" not in about:
        value = "a safetensors file that does not say what network it is of"
        raise ModelError(problem, where=str(path), value=value, expected=rule)
    return about, state


def load_slim(path: Path | str) -> nn.Module:
    """Rebuild a slim network from its file: the dense network from its source, cut by the plan, filled.

    Returns:
        The network on the CPU, in evaluation mode, with the dtypes that were saved.

    Raises:
        ModelError: The file is absent, not a slim network's, or does not fit its own plan.
    """
    path = Path(path)
    about, state = read_file(path)
    problem = "could not load the slim network"
    if about.get("format") != SLIM_FORMAT:
        value = f"of format {about['format']}" if "format" in about else "a dense network"
        raise ModelError(problem, where=str(path), value=value, expected=f"format {SLIM_FORMAT} of save_slim")
    try:
        model = build(about["source"])
        slim_structure(model, Plan.from_json(about.get("plan", "")))
        for key, spots in places(model).items():
            tensor = getattr(spots[0].module, spots[0].name)
            if key in state and state[key].dtype != tensor.dtype:
                assign(spots, tensor.detach().to(state[key].dtype))
        model.load_state_dict(state)
    except (EdgepruneError, RuntimeError) as reason:
        raise ModelError(
            problem,
            where=str(path),
            value=f"not what its source and plan build ({first_line(reason)})",
            expected="the same model source as when it was saved",
        ) from reason
    return model
