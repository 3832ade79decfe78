"""A table of a TOML file, read so that all faults of the file are told at once. Device side: no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from edgeprune.units import show_value

T = TypeVar("T")


class TomlTable:
    """A table of the file. What is taken is checked; faults are gathered, not raised."""

    def __init__(self, name: str, values: dict[str, Any], faults: list[str]) -> None:
        self.name, self.values, self.faults = name, values, faults

    def fault(self, key: str, rule: str) -> None:
        """Note what is wrong with a key."""
        full_key = f"{self.name}.{key}" if self.name else key
        self.faults.append(f"{full_key} = {show_value(self.values[key])}: {rule}")

    def take(self, key: str, read: Callable[[Any], T | None], rule: str, default: T) -> T:
        """What ``read`` makes of ``key``; ``default`` if it is absent or, with a fault, breaks the rule."""
        if key not in self.values:
            return default
        value = read(self.values[key])
        if value is None:
            self.fault(key, f"expected {rule}")
            return default
        return value

    def table(self, key: str) -> TomlTable:
        """The table under a key; an empty one if it is absent or, with a fault, no table."""
        name = f"{self.name}.{key}" if self.name else key
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.fault(key, f"expected a table, [{name}]")
            value = {}
        return TomlTable(name, value, self.faults)

    def refuse_unknown(
        self, known: tuple[str, ...], known_text: str = "", *, hint: Callable[[str, str], str]
    ) -> None:
        """A fault for each key that is not known: a misspelt one must not be ignored.

        The first of them lists what is known, which may be long; each has its own hint.

        Args:
            known: The keys.
            known_text: How to list them; empty: one after the other.
            hint: Where an unknown key (of this table's name) belongs, a sentence after a space, or nothing.
        """
        expected = f", expected {known_text or 'one of ' + ', '.join(known)}"
        for key in self.values:
            if key not in known:
                what = "table" if isinstance(self.values[key], dict) else "key"
                rule, expected = f"unknown {what}{expected}.", ""
                self.fault(key, f"{rule}{hint(key, self.name) or did_you_mean(key, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word that is closest, as a question after a space; empty if none is close."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), list(folded), n=1)
    return f' Did you mean "{folded[close[0]]}"?' if close else ""
