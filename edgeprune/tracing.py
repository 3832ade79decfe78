"""A network's ATen graph, and running it on labels."""

from __future__ import annotations

import contextlib
import gc
import logging
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.channel_select import can_select, selects_of
from edgeprune.cost import evaluating
from edgeprune.cutting import device_of, first_line, names_of
from edgeprune.errors import ModelError
from edgeprune.labels import FIXED, VARIES, Flow, Ledger, Parameter
from edgeprune.operators import RULES
from edgeprune.operators.common import module_of, operator_name, unknown

SILENT = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"}
"""Operators without a result."""

PRODUCERS = {
    *(f"{kind}{dimensions}d" for kind in ("conv", "conv_transpose") for dimensions in (1, 2, 3)),
    "linear",
}
"""Operators at which a stream ends, seen from its readers."""


@contextlib.contextmanager
def collector_at_rest() -> Iterator[None]:
    """Within the block Python does not look for garbage: it would walk exported graphs over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Trace:
    """The exported graph of a network.

    Args:
        model: Network; it is not changed.
        inputs: Positional inputs at batch 1.

    Raises:
        ModelError: The network does not run on the inputs, or ``torch.export`` refuses it.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.program = export(model, inputs)
        signature = self.program.graph_signature
        canonical = names_of(model)
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.names = {placeholder: canonical.get(key, key) for placeholder, key in held.items()}
        self.values: dict[str, Tensor] = {}
        for placeholder, key in {**held, **signature.inputs_to_lifted_tensor_constants}.items():
            value = self.program.state_dict.get(key, self.program.constants.get(key))
            if isinstance(value, Tensor):
                self.values[placeholder] = value.detach().cpu()
        self.selects = selects_of(model)

    @property
    def reads_all_parameters(self) -> bool:
        """Whether the forward pass reads every parameter; else it may be another one in training mode."""
        names = self.program.graph_signature.inputs_to_parameters
        return all(node.users for node in self.program.graph.nodes if node.name in names)

    def run(self, policy: dict[str, int], *, exact: bool = True) -> Ledger:
        """Run the graph on labels.

        Args:
            policy: Per node name, which of its policies is in force; 0 where absent.
            exact: Freeze what only an inexact cut can remove, instead of marking it.
        """
        ledger = Ledger(policy=policy, exact=exact, names=self.names)
        values: dict[Node, Any] = {}
        pending = {node: len(node.users) for node in self.program.graph.nodes}
        for node in self.program.graph.nodes:
            values[node] = self._value(ledger, node, values)
            changed = node.args[0] if node.args and is_in_place(node) else None
            if isinstance(changed, Node) and isinstance(values[node], Flow):
                values[changed] = values[node]  # whoever reads the first operand from now on reads the result
            for source in node.all_input_nodes:  # no label array is kept after its last use
                pending[source] -= 1
                if not pending[source]:
                    del values[source]
        return ledger

    def _value(self, ledger: Ledger, node: Node, values: dict[Node, Any]) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        args, kwargs = tree_map(
            lambda arg: values[arg] if isinstance(arg, Node) else arg,
            (list(node.args), dict(node.kwargs)),
            is_leaf=lambda arg: isinstance(arg, Node),
        )
        if node.op == "output":
            for leaf in tree_leaves(args):
                if isinstance(leaf, Flow):
                    ledger.freeze(leaf.unit, "reaches the output")
            return None
        if node.op != "call_function":
            return unknown(ledger, node, args, kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = operator_name(node)
        if name in SILENT:
            return None
        if not any(isinstance(leaf, (Flow, Parameter)) for leaf in tree_leaves((args, kwargs))):
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            return node.target(*args, **kwargs)  # type: ignore[operator]
        rule = RULES.get(name)
        return rule(ledger, node, args, kwargs) if rule else unknown(ledger, node, args, kwargs)

    def norms_on_streams(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the batch and instance norms that read a shared stream, in graph order.

        A stream is a norm's input with all that it was made of, back to the nearest convolutions or linear
        layers; it is shared if anything in it is read by something else too, or returned.

        Args:
            model: The network of this graph.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        first = {module: name for name, module in model.named_modules()}
        found = []
        for node in self.program.graph.nodes:
            if operator_name(node) not in ("batch_norm", "instance_norm"):
                continue
            source, norm = node.args[0], modules.get(module_of(node))
            # The operator's input must be the module's: it is the module that gets a select.
            direct = isinstance(source, Node) and modules.get(module_of(source)) is not norm
            if not direct or norm is model or not can_select(norm) or not self._is_shared(node):
                continue
            if norm.num_features == source.meta["val"].shape[1]:
                found.append(first[norm])
        return tuple(dict.fromkeys(found))

    def _is_shared(self, norm: Node) -> bool:
        """Whether a norm's operator reads a shared stream."""
        stream: set[Node] = set()
        pending = [norm.args[0]]
        while pending:
            node = pending.pop()
            if isinstance(node, Node) and node not in stream and node.name not in self.names:
                stream.add(node)
                pending += [] if operator_name(node) in PRODUCERS else node.all_input_nodes
        readers = {user for node in stream for user in node.users} - stream - {norm}
        return any(operator_name(reader) not in SILENT for reader in readers)

    def _placeholder(self, node: Node) -> Any:
        value = self.values.get(node.name)
        if node.name in self.names:
            # Whole numbers in buffers are positions: they take part as they are. A norm's select can be cut.
            select = self.names[node.name] in self.selects
            if value is not None and not value.is_floating_point() and not select:
                return value
            return Parameter(self.names[node.name], tuple(node.meta["val"].shape))
        if value is not None:
            return value
        shape = node.meta["val"].shape
        return Flow(torch.full((), FIXED).expand(shape), torch.full((), VARIES).expand(shape))


def is_in_place(node: Node) -> bool:
    """Whether the operator writes its result into its first operand."""
    schema = getattr(node.target, "_schema", None)
    first = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return first is not None and first.is_write


def export(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """``torch.export`` in evaluation mode, quietly, with one clear error.

    Raises:
        ModelError: The network does not run on the inputs, or ``torch.export`` refuses it.
    """
    inputs = tuple(tensor.to(device_of(model)) for tensor in inputs)
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), evaluating(model), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                return torch.export.export(model, inputs)
            except Exception as reason:
                _run(model, inputs)
                raise ModelError(
                    "could not read the network's graph",
                    where="torch.export",
                    value=first_line(reason),
                    expected="a forward pass without data-dependent control flow",
                ) from reason
    finally:
        logger.setLevel(level)


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A forward pass, with one clear error.

    Raises:
        ModelError: It fails.
    """
    try:
        model(*inputs)
    except Exception as reason:
        raise ModelError(
            "could not run the network",
            where="the example input",
            value=f"{[tuple(tensor.shape) for tensor in inputs]} ({first_line(reason)})",
            expected="an input that the network takes",
        ) from reason
