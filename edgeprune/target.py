"""A device and its budgets, read from a TOML file. Device side: no torch."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.budget import BUDGET_KEYS, Budget, read_budgets
from edgeprune.errors import TargetError
from edgeprune.toml_table import TomlTable, did_you_mean
from edgeprune.units import show_value

CHANNEL_MULTIPLE = 8  # when the file says nothing: what the vector units of CPUs take at once
RUNNERS = ("local", "ssh", "adb", "browser")
PRECISIONS = ("fp32", "fp16", "int8")
TOP_KEYS = ("name", "channel_multiple", "runtime", "budgets")
RUNTIME_KEYS = (
    "runner", "provider", "provider_options", "strict", "host", "python", "perf_test", "web", "threads",
    "precision", "input", "inputs", "dims",
)  # fmt: skip
SHAPE_RULE = "whole numbers of at least 1, e.g. [1, 3, 32, 32]"

# Every execution provider that a build of onnxruntime can have; the bench says whether this one has it.
PROVIDERS = (
    "ACLExecutionProvider",
    "ArmNNExecutionProvider",
    "AzureExecutionProvider",
    "CANNExecutionProvider",
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
    "DnnlExecutionProvider",
    "JsExecutionProvider",
    "MIGraphXExecutionProvider",
    "NnapiExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    "OpenVINOExecutionProvider",
    "QNNExecutionProvider",
    "ROCMExecutionProvider",
    "RknpuExecutionProvider",
    "SNPEExecutionProvider",
    "TensorrtExecutionProvider",
    "TvmExecutionProvider",
    "VSINPUExecutionProvider",
    "VitisAIExecutionProvider",
    "WebGpuExecutionProvider",
    "WebNNExecutionProvider",
    "XnnpackExecutionProvider",
)


@dataclass(frozen=True)
class Runtime:
    """How the network is run on the device.

    Attributes:
        runner: ``"local"``, ``"ssh"``, ``"adb"`` or ``"browser"``.
        provider: Execution provider of onnxruntime.
        provider_options: Handed to the provider as they are.
        strict: Refuse a network of which the provider leaves a node to the CPU.
        host: ``user@machine`` for ssh, a device serial for adb, the address to serve on or ``"lan"`` for
            browser.
        python: Interpreter that has the provider's onnxruntime; None: the one that runs edgeprune, on a board
            ``python3``.
        perf_test: onnxruntime_perf_test for the device behind ``"adb"``, a file on this machine; libraries
            (``*.so``) in its folder go with it.
        web: Folder of onnxruntime-web, for browser; None: ``node_modules`` here or above.
        threads: Threads of one inference.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        input: Shape of the first input (N, C, H, W); None: as in the ONNX file.
        inputs: Shapes of inputs by their names, where the ONNX file leaves sizes open.
        dims: Sizes of dimensions that the ONNX file leaves open and names, e.g. ``{"height": 224}``.
    """

    runner: str = "local"
    provider: str = "CPUExecutionProvider"
    provider_options: dict[str, str] = field(default_factory=dict)
    host: str | None = None
    python: str | None = None
    perf_test: str | None = None
    web: str | None = None
    threads: int = 1
    precision: str = "fp32"
    input: tuple[int, ...] | None = None
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class Target:
    """A device and what a network must keep to there.

    Attributes:
        name: For people.
        channel_multiple: Widths of a slim network are multiples of this.
        runtime: How the network is run.
        budgets: Limits, in the order of the file.
        path: The file.
        sha256: Of the file, hex.
    """

    name: str
    channel_multiple: int
    runtime: Runtime
    budgets: tuple[Budget, ...]
    path: Path
    sha256: str

    @property
    def option(self) -> str:
        """What a command line gives as ``--target``: the name of a shipped one, else its path."""
        shipped = list_targets().get(self.path.stem) == self.path
        return self.path.stem if shipped else shlex.quote(str(self.path))


def list_targets() -> dict[str, Path]:
    """The target files that ship with edgeprune, by name, sorted."""
    package = Path(__file__).resolve().parent
    # A wheel has the files inside the package; a source checkout has them beside it.
    folder = next((path for path in (package / "targets", package.parent / "targets") if path.is_dir()), None)
    found = {path.stem: path for path in folder.glob("*.toml")} if folder else {}
    return dict(sorted(found.items()))


def load_target(name_or_path: str | Path) -> Target:
    """Read a target file.

    Args:
        name_or_path: A path if it ends in ``.toml`` or has a path separator, else a shipped target's name.

    Raises:
        TargetError: There is no such file or name, or the file has faults: the message lists all of them.

    Example:
        >>> load_target("local-cpu").runtime.provider
        'CPUExecutionProvider'
    """
    path = _find(str(name_or_path))
    content, table = _read(path)
    faults: list[str] = []
    top = TomlTable("", table, faults)
    name = top.take("name", _text, "a text that is not empty", "")
    if "name" not in table:
        faults.append('name: missing, expected the device in words, e.g. name = "Raspberry Pi 5"')
    channel_multiple = top.take(
        "channel_multiple", _positive, "a whole number of at least 1", CHANNEL_MULTIPLE
    )
    runtime = _runtime(top.table("runtime"))
    budgets = read_budgets(top.table("budgets"), _belongs)
    top.refuse_unknown(TOP_KEYS, hint=_belongs)
    if faults:
        count = f"{len(faults)} place{'s' if len(faults) > 1 else ''}"
        lines = "".join(f"\n  {number}. {fault}" for number, fault in enumerate(faults, 1))
        raise TargetError("could not use the target file", where=str(path), value=f"wrong in {count}:{lines}")
    sha256 = hashlib.sha256(content).hexdigest()
    return Target(name, channel_multiple, runtime, budgets, path, sha256)


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml") or os.sep in name_or_path or "/" in name_or_path:
        return Path(name_or_path)
    shipped = list_targets()
    if name_or_path not in shipped:
        own = " A file of your own is given by its path, e.g. ./mine.toml."
        raise TargetError(
            "could not find the target",
            where="--target",
            value=show_value(name_or_path),
            expected=f"one of {', '.join(shipped) or 'none'}, or a path",
            hint=f"{did_you_mean(name_or_path, shipped)}{own}".strip(),
        )
    return shipped[name_or_path]


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    problem = "could not read the target file"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        hint = f"Targets that ship with edgeprune: {', '.join(list_targets()) or 'none'}."
        raise TargetError(
            problem, where=str(path), value="not there", expected="a .toml file", hint=hint
        ) from None
    except OSError as reason:
        value = "a folder" if isinstance(reason, IsADirectoryError) else f"unreadable ({reason.strerror})"
        raise TargetError(problem, where=str(path), value=value, expected="a .toml file") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = content[: reason.start].count(b"\n") + 1
        value = f"not UTF-8 text (line {line})"
        raise TargetError(
            problem, where=str(path), value=value, expected="TOML, which is always UTF-8"
        ) from None
    try:
        return content, tomllib.loads(text)
    except (ValueError, RecursionError) as reason:  # ValueError: TOMLDecodeError, or a number of 4300 digits
        found = re.search(r"at line (\d+)", str(reason))
        lines = text.splitlines() or [""]
        line = min(int(found[1]), len(lines)) if found else len(lines)
        what = str(reason) if isinstance(reason, ValueError) else "nested too deeply"
        value = f"not TOML: {what}\n  line {line}: `{lines[line - 1].strip()[:100]}`"
        raise TargetError(problem, where=str(path), value=value) from None


def _belongs(key: str, table: str) -> str:
    """A hint for a key that is known in another table."""
    homes = {"": TOP_KEYS, "runtime": RUNTIME_KEYS, "budgets": BUDGET_KEYS}
    home = next((name for name, keys in homes.items() if name != table and key in keys), None)
    if home is None:
        return ""
    return f" It belongs under [{home}]." if home else " It belongs above the first table."


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() and value.isprintable() else None


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _bool(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _shape(value: Any) -> tuple[int, ...] | None:
    sizes = [_positive(size) for size in value] if isinstance(value, list) else []
    return tuple(size for size in sizes if size) if sizes and None not in sizes else None


def _one_of(known: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: value if value in known else None


def _option(value: Any) -> str | None:
    """A provider takes its options as text; a whole number has only one way to be written."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _runtime(table: TomlTable) -> Runtime:
    default = Runtime()
    options, inputs, dims = (table.table(key) for key in ("provider_options", "inputs", "dims"))
    provider_rule = "the name of an execution provider of onnxruntime."
    provider = table.values.get("provider")
    if isinstance(provider, str):
        provider_rule += did_you_mean(provider, PROVIDERS) or f" Known: {', '.join(PROVIDERS)}."
    text_rule = "a text that is not empty"
    runtime = Runtime(
        runner=table.take("runner", _one_of(RUNNERS), f"one of {', '.join(RUNNERS)}", default.runner),
        provider=table.take("provider", _one_of(PROVIDERS), provider_rule, default.provider),
        provider_options={
            key: options.take(key, _option, "a text or a whole number, as the provider takes it", "")
            for key in options.values
        },
        host=table.take("host", _text, text_rule, default.host),
        python=table.take("python", _text, text_rule, default.python),
        perf_test=table.take("perf_test", _text, text_rule, default.perf_test),
        web=table.take("web", _text, text_rule, default.web),
        threads=table.take("threads", _positive, "a whole number of at least 1", default.threads),
        precision=table.take(
            "precision", _one_of(PRECISIONS), f"one of {', '.join(PRECISIONS)}", default.precision
        ),
        input=table.take("input", _shape, SHAPE_RULE, default.input),
        inputs={key: inputs.take(key, _shape, SHAPE_RULE, ()) for key in inputs.values},
        dims={key: dims.take(key, _positive, "a whole number of at least 1", 1) for key in dims.values},
        strict=table.take("strict", _bool, "true or false", default.strict),
    )
    runner = table.values.get("runner", default.runner)
    if runner == "ssh" and "host" not in table.values:
        table.fault("runner", 'needs a host, e.g. host = "pi@raspberrypi.local"')
    if runner == "local" and "host" in table.values:
        rule = 'the runner "local" has none, expected runner = "ssh", "adb" or "browser", or no host'
        table.fault("host", rule)
    if runner != "adb" and "perf_test" in table.values:
        table.fault(
            "perf_test", f'the runner "{runner}" takes none, expected runner = "adb", or no perf_test'
        )
    if runner in ("adb", "browser") and "python" in table.values:
        table.fault(
            "python", f'the runner "{runner}" has none, expected runner = "local" or "ssh", or no python'
        )
    if runner != "browser" and "web" in table.values:
        table.fault("web", 'is for the runner "browser" alone')
    table.refuse_unknown(RUNTIME_KEYS, hint=_belongs)
    return runtime
