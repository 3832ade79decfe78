"""Nothing imports onnxruntime before its reports are switched off."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeprune
from edgeprune import telemetry

PACKAGE = Path(edgeprune.__file__).parent


def loud_imports(source: str) -> Iterator[int]:
    """Lines of functions that import onnxruntime without a call of ``switch_off`` above."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        quiet = [
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "switch_off"
        ]
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            is_it = any(name.split(".")[0] == "onnxruntime" for name in names)
            if is_it and min(quiet, default=node.lineno) >= node.lineno:
                yield node.lineno


def test_every_import_is_quiet() -> None:
    worker = PACKAGE / "runners" / "worker"
    files = [path for path in PACKAGE.rglob("*.py") if worker not in path.parents]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert {name: list(loud_imports(text)) for name, text in texts.items() if list(loud_imports(text))} == {}
    assert sum("switch_off()" in text for text in texts.values()) >= 5


def test_a_loud_import_is_found() -> None:
    assert list(loud_imports("def f():\n    from onnxruntime import quantization")) == [2]
    assert list(loud_imports("def f():\n    import onnxruntime\n    switch_off()")) == [2]
    assert list(loud_imports("def f():\n    switch_off()\n    import onnxruntime.tools")) == []


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_the_users_word_counts(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.delenv(telemetry.VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(telemetry.VARIABLE, before)
    telemetry.switch_off()
    assert os.environ[telemetry.VARIABLE] == after
