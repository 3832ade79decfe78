"""Finds onnxruntime-web on this machine. It is never loaded from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from edgeprune.errors import MeasurementError

PACKAGE = "onnxruntime-web"
OLDEST = (1, 24)
_CPU_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_GPU_FILES = ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
# Provider -> what onnxruntime-web calls it, its script, its WebAssembly.
BACKENDS = {
    "CPUExecutionProvider": ("wasm", *_CPU_FILES),
    "WebGpuExecutionProvider": ("webgpu", *_GPU_FILES),
    "WebNNExecutionProvider": ("webnn", *_GPU_FILES),
}


class Library(NamedTuple):
    """The two files of onnxruntime-web that one provider needs."""

    backend: str
    version: str
    script: Path
    wasm: Path


def find_library(provider: str, folder: str | None = None, start: Path | None = None) -> Library:
    """The files for a provider.

    Args:
        provider: A key of ``BACKENDS``.
        folder: The package's folder, its ``dist``, or the one where npm installed it; None: ``node_modules``
            of ``start`` or of a folder above it, as npm looks for packages.
        start: None: the current folder.

    Raises:
        MeasurementError: A browser has no such provider, or the library is absent, too old or incomplete.
    """
    problem = "could not serve onnxruntime-web"
    if provider not in BACKENDS:
        raise MeasurementError(
            "could not measure in a browser",
            where="runtime.provider",
            value=f"'{provider}'",
            expected=f"one of {', '.join(BACKENDS)}",
            hint="CPUExecutionProvider is WebAssembly there.",
        )
    package = next((path for path in _places(folder, start) if _version(path)), None)
    if package is None:
        raise MeasurementError(
            problem,
            where=PACKAGE,
            value="not there" if folder is None else f"not in '{folder}'",
            expected=f"the npm package, at least {_dotted(OLDEST)}",
            hint=f"Get it with `npm install {PACKAGE}`; --web or runtime.web names its folder.",
        )
    version = _version(package)
    backend, script, wasm = BACKENDS[provider]
    absent = [name for name in (script, wasm) if not (package / "dist" / name).is_file()]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST or absent:
        raise MeasurementError(
            problem,
            where=str(package),
            value=f"version {version}" + (f" without {', '.join(absent)}" if absent else ""),
            expected=f"{PACKAGE} of at least {_dotted(OLDEST)}",
            hint=f"Get it with `npm install {PACKAGE}@latest`.",
        )
    return Library(backend, version, package / "dist" / script, package / "dist" / wasm)


def _places(folder: str | None, start: Path | None) -> list[Path]:
    if folder is None:
        here = (start or Path()).resolve()
        return [parent / "node_modules" / PACKAGE for parent in (here, *here.parents)]
    given = Path(folder).expanduser()
    inside = given.parent if given.name == "dist" else given
    return [inside, given / PACKAGE, given / "node_modules" / PACKAGE]


def _version(package: Path) -> str:
    """What the package.json of a folder says, if it is the one of onnxruntime-web."""
    try:
        content = json.loads((package / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    named = isinstance(content, dict) and content.get("name") == PACKAGE
    return str(content.get("version", "")) if named else ""


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
