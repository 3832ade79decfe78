"""Functions that the user writes, given as ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError


def call_user_function(
    spec: str, error: type[EdgepruneError], problem: str, known: Iterable[str], **arguments: Any
) -> Any:
    """Import ``package.module:function`` and call it with those arguments that it takes.

    As for ``python -m``, modules are looked for in the current folder first.

    Args:
        spec: ``package.module:function``.
        error: The class to raise.
        problem: What could not be done, for the message.
        known: What else may stand before the colon: ``cifar1O:DIR`` is a slip rather than a module.
        **arguments: Offered by name; one that the function does not take is left out.

    Raises:
        EdgepruneError: There is no such function, or it raised.
    """
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        function = getattr(importlib.import_module(module_name), name, None)
    except Exception as reason:  # whatever the user's module raises
        absent = isinstance(reason, ModuleNotFoundError) and f"{module_name}.".startswith(f"{reason.name}.")
        raise error(
            problem,
            where=spec,
            value="in no module that Python finds" if absent else f"in a module that fails ({_told(reason)})",
            expected="package.module:function",
            hint=_hint(module_name, known, here) if absent else "",
        ) from (None if absent else reason)
    if not callable(function):
        raise error(
            problem,
            where=spec,
            value=f"not a function of {module_name}",
            expected="package.module:function",
        )
    try:
        return function(**_taken(function, arguments))
    except Exception as reason:
        raise error(problem, where=spec, value=f"a function that fails ({_told(reason)})") from reason


def _hint(name: str, known: Iterable[str], here: str) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    if close:
        return f"Did you mean {close[0]}:…?"
    return f"Modules are looked for in {here} and in the environment."


def _told(reason: Exception) -> str:
    return f"{type(reason).__name__}: {reason}"


def _taken(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in arguments.items() if key in named}
