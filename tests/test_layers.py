"""The layers: who may import whom, who may print, and that torch stays out of the device side."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeprune

PACKAGE = Path(edgeprune.__file__).parent

# A module or package imports only from names before its own.
DEVICE_SIDE = [
    "errors", "launch", "files", "repository", "units", "telemetry", "metrics", "toml_table", "budget",
    "target", "external_data", "artifact", "statistics", "protobuf", "onnx_nodes", "precision", "runners",
    "availability", "noise", "instructions", "placement", "measurement_format", "measurement", "record",
    "comparison", "compared", "benchmark", "verdict", "outcome", "release", "integrity", "parts", "advice",
    "explanation", "sweep", "onnx_writer", "turns", "widths", "budget_search", "report", "card",
    "steadiness", "machine",
]  # fmt: skip
HOST_SIDE = [
    "data", "models", "labels", "operators", "channels", "lasso", "cutting", "scratch",
    "channel_select", "cost", "oracle", "tracing", "kinds", "trial", "groups", "shares", "plan", "constants",
    "surgery", "group_facts", "parity", "onnx_files", "onnx_macs", "onnx_export", "quantization",
    "half_floats", "variants", "ort_format", "latency_budget", "probe", "selection", "training",
    "calibration", "slabs", "gram", "moments", "flow", "refitting", "schemes", "mobile", "pipeline",
    "verification",
]  # fmt: skip
LAYERS = [*DEVICE_SIDE, *HOST_SIDE, "cli", "__main__"]

# Third-party packages, besides the standard library.
OPTIONAL_PACKAGES = {"cryptography", "segno", "matplotlib", "dask", "distributed"}  # of extras
DEVICE_PACKAGES = {"jinja2", "numpy", "onnxruntime", "rich"} | OPTIONAL_PACKAGES
PLUGINS = {"onnxruntime_qnn", "onnxruntime_ep_webgpu"}  # providers, for the worker alone
HOST_PACKAGES = DEVICE_PACKAGES | {
    "torch", "torchvision", "onnx", "safetensors", "scipy", "sklearn", "timm", "PIL"
}  # fmt: skip
CLI_PACKAGES = HOST_PACKAGES | {"click"}

WORKER = "runners.worker"  # one self-contained folder: it prints its result, and imports nothing else of ours
CLI_MAY_IMPORT_ON_TOP = {"cli", "errors", "launch", "units"}


def in_type_checking(tree: ast.Module) -> set[ast.AST]:
    """Everything under ``if TYPE_CHECKING``: never executed."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


def in_functions(tree: ast.Module) -> set[ast.AST]:
    """Everything in the body of a function: executed only when it is called."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {inner for function in functions for statement in function.body for inner in ast.walk(statement)}


def imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of each import; ``from edgeprune import x`` counts as ``edgeprune.x``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "edgeprune" else [base]
            yield from ((node, name) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node, str(node.args[0].value)


def is_worker(module: str) -> bool:
    """Whether a module belongs to the worker."""
    return f"{module}.".startswith(f"{WORKER}.")


def import_faults(module: str, source: str) -> Iterator[str]:
    """What is wrong with the imports of ``module`` (dotted, without the leading ``edgeprune.``)."""
    tree = ast.parse(source)
    own = module.split(".")[0]
    if own not in LAYERS:
        yield f"{module} has no place in LAYERS"
        return
    in_worker = is_worker(module)
    idle, late = in_type_checking(tree), in_functions(tree)
    packages = (
        DEVICE_PACKAGES
        if own in DEVICE_SIDE
        else CLI_PACKAGES
        if own in {"cli", "__main__"}
        else HOST_PACKAGES
    )
    for node, name in imports(tree):
        root, _, rest = name.partition(".")
        layer = rest.split(".")[0]
        on_top = node not in late and node not in idle
        if not root and in_worker and not name.startswith(".."):
            continue  # it does not know what it is called where it runs
        if not root:
            yield f"{module} imports {name}: relative"
        elif root == "edgeprune":
            if layer.startswith("__") and layer != "__main__":
                continue
            if in_worker:
                yield f"{module} imports {name}: it must stand alone"
            if layer != own and (layer not in LAYERS or LAYERS.index(layer) > LAYERS.index(own)):
                yield f"{module} imports {name}: not a layer below"
            if own == "cli" and on_top and layer not in CLI_MAY_IMPORT_ON_TOP:
                yield f"{module} imports {name}: outside a function"
        elif root not in sys.stdlib_module_names:
            if root not in (packages | PLUGINS if in_worker else packages):
                yield f"{module} imports {name}: not for this layer"
            if root in {"onnxruntime", *OPTIONAL_PACKAGES} and on_top and not in_worker:
                yield f"{module} imports {name}: outside a function"
            if own == "cli" and on_top and root not in {"click", "rich"}:
                yield f"{module} imports {name}: outside a function"


def output_faults(module: str, source: str) -> Iterator[str]:
    """Where ``module`` prints or ends the process although it is neither the CLI nor the worker."""
    if module.split(".")[0] == "cli" or is_worker(module):
        return
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute | ast.alias) else ""
        if text in {"print", "exit", "quit", "SystemExit", "Console", "rich.print"} or text in {
            f"{owner}.{name}"
            for owner, name in [("sys", "exit"), ("os", "_exit"), ("sys", "stdout"), ("sys", "stderr")]
        }:
            yield f"{module} uses {text}"


def modules() -> list[tuple[str, str]]:
    """(dotted name, source) of every module of the package but the root."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found.append((name, path.read_text(encoding="utf-8")))
    return found


def test_imports_go_down() -> None:
    assert [fault for module in modules() for fault in import_faults(*module)] == []


def test_only_the_command_line_prints_and_exits() -> None:
    assert [fault for module in modules() for fault in output_faults(*module)] == []


def test_every_layer_is_there() -> None:
    assert {name.split(".")[0] for name, _ in modules()} == set(LAYERS)


def test_the_root_imports_nothing_of_its_own() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    idle = in_type_checking(tree)
    assert {name for node, name in imports(tree) if node not in idle} <= {"__future__", "importlib", "typing"}


def test_no_public_name_is_hidden_by_a_module() -> None:
    """Importing a submodule binds its name in the package."""
    assert set(edgeprune.__all__) & {name.split(".")[0] for name, _ in modules()} <= {"schemes"}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("errors", "from edgeprune.files import write_text", "not a layer below"),
        ("verdict", "from edgeprune.report import junit_xml", "not a layer below"),
        ("verdict", "def f():\n    import edgeprune.report.junit", "not a layer below"),
        ("verdict", "from edgeprune import report", "not a layer below"),
        ("verdict", "from edgeprune import slim", "not a layer below"),
        ("runners", "if TYPE_CHECKING:\n    from edgeprune.cli import main", "not a layer below"),
        ("data.loaders", "from edgeprune.schemes import Scores", "not a layer below"),
        ("plan", "from .groups import ChannelGroup", "relative"),
        ("measurement", "import torch", "not for this layer"),
        ("report.page", "def f():\n    from torch.nn import functional", "not for this layer"),
        ("artifact", "def f():\n    import onnx", "not for this layer"),
        ("artifact", "torch = importlib.import_module('torch')", "not for this layer"),
        ("artifact", "torch = __import__('torch.nn')", "not for this layer"),
        ("statistics", "import scipy.stats", "not for this layer"),
        ("schemes.magnitude", "import click", "not for this layer"),
        ("schemes.magnitude", "import tensorflow", "not for this layer"),
        ("parity", "import onnxruntime", "outside a function"),
        ("measurement", "import onnxruntime as ort", "outside a function"),
        ("cli.stages", "import torch", "outside a function"),
        ("cli.stages", "from edgeprune.benchmark import bench", "outside a function"),
        ("runners.worker.memory", "from edgeprune.errors import UsageError", "must stand alone"),
        ("runners.local", "import onnxruntime_qnn", "not for this layer"),
        ("runners.worker.memory", "from ..local import LocalRunner", "relative"),
        ("helpers", "", "no place in LAYERS"),
    ],
)
def test_planted_import_is_found(module: str, source: str, fault: str) -> None:
    assert any(fault in found for found in import_faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("verdict", "from edgeprune.units import format_quantity\nimport json, numpy as np"),
        ("report.page", "from edgeprune.report.content import Report"),
        ("parity", "def f():\n    import onnxruntime"),
        ("runners.worker.common", "import onnxruntime"),
        ("runners.worker.memory", "from .common import Fault"),
        ("cli.stages", "import click\ndef f():\n    import torch\n    from edgeprune.pipeline import STAGES"),
        ("cli.stages", "if TYPE_CHECKING:\n    from edgeprune.pipeline import STAGES"),
        ("onnx_export", "from edgeprune import __version__\nimport torch"),
    ],
)
def test_right_imports_are_not_complained_about(module: str, source: str) -> None:
    assert list(import_faults(module, source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "log = print",
        "import sys\nsys.exit(1)",
        "from rich.console import Console",
        "raise SystemExit(2)",
        "import os\nos._exit(0)",
        "import sys\nsys.stderr.write('x')",
        "import rich\nrich.print('x')",
    ],
)
def test_planted_output_is_found(source: str) -> None:
    assert list(output_faults("training.loop", source))
    assert not list(output_faults("cli.stages", source))
    assert not list(output_faults("runners.worker.jobs", source))


HEAVY = ("torch", "torchvision", "onnx", "onnxsim", "scipy", "sklearn", "safetensors", "matplotlib")


def loaded_after(statement: str) -> tuple[int, str, set[str]]:
    """Exit code, output and the heavy packages in sys.modules after a statement in a fresh interpreter."""
    program = f"""
import sys
try:
    {statement}
except SystemExit as end:
    code = end.code or 0
else:
    code = 0
print("HEAVY", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    output, _, heavy = child.stdout.rpartition("HEAVY")
    return child.returncode, output + child.stderr, set(heavy.split())


def test_import_edgeprune_leaves_torch_out() -> None:
    assert loaded_after("import edgeprune") == (0, "", set())


def test_the_device_side_leaves_torch_out() -> None:
    names = ", ".join(f"edgeprune.{name}" for name in DEVICE_SIDE)
    assert loaded_after(f"import {names}") == (0, "", set())


@pytest.mark.parametrize("command", ["gate", "bench", "run", "release", "compare", "verify"])
def test_help_leaves_torch_out(command: str) -> None:
    code, output, heavy = loaded_after(f"from edgeprune.cli import main; main(['{command}', '--help'])")
    assert (code, heavy) == (0, set())
    assert output.startswith(f"Usage: edgeprune {command} ")


def test_loaded_packages_are_seen() -> None:
    assert loaded_after("import scipy") == (0, "", {"scipy"})
