"""A scheme's hyper-parameters: declared once, checked the same way from Python and from the command line."""

from __future__ import annotations

import math
from dataclasses import Field, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from edgeprune.errors import UsageError


def option(
    default: Any,
    text: str,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A dataclass field with its meaning and its range; choices come from a ``Literal`` annotation.

    Args:
        default: Default value.
        text: What it is, for people.
        above: The value must be more than this.
        at_least: The value must not be less than this.
        below: The value must be less than this.
    """
    limits = {"above": above, "at_least": at_least, "below": below}
    return field(default=default, metadata={"text": text, **limits})


def check_options(scheme: Any) -> None:
    """Check every option of a scheme; for its ``__post_init__``.

    Raises:
        UsageError: A value has the wrong type or is out of range.
    """
    kinds = get_type_hints(type(scheme))
    for item in fields(scheme):
        value, kind = getattr(scheme, item.name), kinds[item.name]
        if not _fits(value, kind, item):
            raise UsageError(
                f"could not set up the scheme {scheme.name}",
                where=item.name,
                value=repr(value),
                expected=_rule(kind, item),
            )


def parse_option(scheme: type[Any], name: str, value: Any) -> Any:
    """The value of an option of ``scheme``; text, as from a command line, is converted to its type.

    Raises:
        UsageError: The scheme has no such option.
    """
    known = [item.name for item in fields(scheme)]
    if name not in known:
        raise UsageError(
            f"could not set up the scheme {scheme.name}",
            where="an option",
            value=repr(name),
            expected=f"one of {', '.join(known)}" if known else "none of its own",
        )
    if not isinstance(value, str):
        return value
    kind = get_type_hints(scheme)[name]
    readers = [type(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else [kind]
    for reader in readers:
        if reader is bool:
            value = {"true": True, "false": False}.get(value.lower(), value)
        else:
            try:
                return reader(value)
            except ValueError:  # left as text: the scheme then refuses it by its rule
                continue
    return value


def _fits(value: Any, kind: Any, item: Field[Any]) -> bool:
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if kind is bool:
        return isinstance(value, bool)
    numbers = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value):
        return False
    limits = item.metadata
    return bool(limits["at_least"] <= value < limits["below"] and value > limits["above"])


def _rule(kind: Any, item: Field[Any]) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    rule = "a number" if kind is float else "a whole number"
    above, at_least = item.metadata["above"], item.metadata["at_least"]
    if above > -math.inf:
        rule += f" above {above:g}"
    if at_least > -math.inf:
        rule += f", {at_least:g} or more"
    if item.metadata["below"] < math.inf:
        rule += f", below {item.metadata['below']:g}"
    return rule
