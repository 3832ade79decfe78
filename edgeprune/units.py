"""Quantities as people write them, and SI numbers inside. Device side: no torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Literal

from edgeprune.errors import UsageError

Quantity = Literal["time", "rate", "size", "count", "fraction", "drop", "ratio", "error"]

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([^0-9.,]*?)\s*")
_ARITHMETIC = Context(traps=[])  # too large a number becomes infinite instead of raising


@dataclass(frozen=True)
class Kind:
    """How one kind of quantity is written.

    Attributes:
        noun: What it is called, with its article.
        example: A correct value, as a target file writes it.
        units: Unit to its factor (a decimal, so that "1.1 ms" is exactly 0.0011); empty for a plain number.
        rule: Which numbers make sense, e.g. ``"above 0"``.
        low: Smallest number that makes sense, in SI.
        high: Largest number that makes sense, in SI.
        open_low: True if ``low`` itself makes no sense.
    """

    noun: str
    example: str
    rule: str
    units: dict[str, str] = field(default_factory=dict)
    low: float = 0.0
    high: float = math.inf
    open_low: bool = False


_TIME = {"s": "1", "ms": "1e-3", "us": "1e-6", "µs": "1e-6", "μs": "1e-6"}  # both micro signs of Unicode
_SIZE = {
    "B": "1",
    "kB": "1e3",
    "MB": "1e6",
    "GB": "1e9",
    "KiB": "1024",
    "MiB": "1048576",
    "GiB": "1073741824",
}

KINDS: dict[Quantity, Kind] = {
    "time": Kind("a time", '"12 ms"', "above 0", _TIME, open_low=True),
    "rate": Kind("a rate", '"30 /s"', "above 0", {"/s": "1"}, open_low=True),
    "size": Kind("a size", '"1.5 MB"', "above 0", _SIZE, open_low=True),
    "count": Kind("a count", "40000000", "a whole number of at least 0"),
    "fraction": Kind("a fraction", '"91.5 %"', "from 0 % to 100 %", {"%": "0.01"}, high=1.0),
    "drop": Kind("a drop", '"0.5 pp"', "from -100 pp to 100 pp", {"pp": "0.01"}, low=-1.0, high=1.0),
    "ratio": Kind("a ratio", "0.6", "above 0", open_low=True),
    "error": Kind("an error", "1e-4", "of at least 0"),
}


def parse_quantity(written: object, quantity: Quantity, *, where: str = "the value") -> float:
    """Read a quantity that somebody wrote, into SI units (seconds, bytes, 0..1, 1/second).

    Quantities with a unit are text, ``"12 ms"``; a ratio, count or error is a plain number. The result is the
    float nearest to the decimal that was written, so a limit of 1.1 ms is met by a value of 0.0011 s.

    Args:
        written: Text or number.
        quantity: What it should be.
        where: The option or key, for the message.

    Raises:
        UsageError: It is no number, lacks its unit, has a wrong one, or makes no sense (a negative size).

    Example:
        >>> parse_quantity("1.5 MB", "size")
        1500000.0
        >>> parse_quantity("0.5 pp", "drop")
        0.005
    """
    kind = KINDS[quantity]
    number, unit = _split(written)
    if number is None:
        raise _error(kind, where, written, f"{kind.noun}, e.g. {kind.example}")
    if kind.units and not unit:
        raise _error(kind, where, written, f"{kind.noun} with its unit, e.g. {kind.example}")
    if unit and not kind.units:
        raise _error(kind, where, written, f"{kind.noun}: a plain number without a unit, e.g. {kind.example}")
    if unit and unit not in kind.units:
        known = [name for name in kind.units if name != "μs"]  # looks the same as the other micro sign
        meant = [name for name in known if name.casefold() == unit.casefold()]
        hint = f'Did you mean "{meant[0]}"?' if len(meant) == 1 else ""
        one_of = "the unit" if len(known) == 1 else "one of the units"
        raise _error(
            kind, where, written, f"{kind.noun} in {one_of} {', '.join(known)}, e.g. {kind.example}", hint
        )
    value = float(_ARITHMETIC.multiply(number, Decimal(kind.units[unit] if unit else "1")))
    outside = not kind.low <= value <= kind.high or (kind.open_low and value == kind.low)
    if not math.isfinite(value) or outside or (quantity == "count" and not value.is_integer()):
        raise _error(kind, where, written, f"{kind.noun}, {kind.rule}, e.g. {kind.example}")
    return value


def _split(written: object) -> tuple[Decimal | None, str]:
    """The number (None if there is none) and the unit ("" if there is none) of what was written."""
    if isinstance(written, bool) or not isinstance(written, str | int | float):
        return None, ""
    if isinstance(written, float):
        return (Decimal(repr(written)) if math.isfinite(written) else None), ""
    if isinstance(written, int):
        return Decimal(written), ""
    match = _NUMBER.fullmatch(written)
    return (_ARITHMETIC.create_decimal(match[1]), match[2]) if match else (None, "")


def _error(kind: Kind, where: str, written: object, expected: str, hint: str = "") -> UsageError:
    problem = f"could not read {kind.noun}"
    return UsageError(problem, where=where, value=show_value(written), expected=expected, hint=hint)


def show_value(value: object) -> str:
    """Write a value for an error message as a TOML file has it, cut to a line.

    Example:
        >>> show_value("12 ms"), show_value(True), show_value([1, 3])
        ('"12 ms"', 'true', '[1, 3]')
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"


def format_quantity(
    value: float, quantity: Quantity, *, signed: bool = False, digits: int = 3, like: float | None = None
) -> str:
    """Write an SI number for people: three significant digits and the unit that fits.

    Counts are written in full, percentages and percentage points with two decimals.

    Args:
        value: In SI units.
        quantity: What it is.
        signed: Write the plus sign too.
        digits: Significant digits; what stands before the point is always written in full.
        like: Use the unit that fits this value instead.

    Example:
        >>> format_quantity(0.003071, "time"), format_quantity(1_240_000, "size")
        ('3.07 ms', '1.24 MB')
    """
    unit = _unit_for(value if like is None else like, quantity)
    return _with_unit(value, quantity, unit, signed=signed, digits=digits)


def format_interval(value: float, low: float, high: float, quantity: Quantity) -> str:
    """Write a value and its interval in one unit, the unit once.

    Example:
        >>> format_interval(0.003071, 0.003012, 0.00312, "time")
        '3.07 ms [3.01, 3.12]'
    """
    unit = _unit_for(value, quantity)
    bare = [_with_unit(end, quantity, unit).removesuffix(f" {unit}") for end in (low, high)]
    return f"{_with_unit(value, quantity, unit)} [{', '.join(bare)}]"


def _unit_for(value: float, quantity: Quantity) -> str:
    """The unit in which the rounded ``value`` has one to three digits before the point."""
    rounded = abs(float(f"{value:.3g}"))  # 999.7 us rounds to 1.00 ms, not to 1000 us
    if quantity == "time":
        return "s" if rounded >= 1 else "ms" if rounded >= 1e-3 or rounded == 0 else "µs"
    if quantity == "size":
        return "GB" if rounded >= 1e9 else "MB" if rounded >= 1e6 else "kB" if rounded >= 1e3 else "B"
    return next(iter(KINDS[quantity].units), "")


def _with_unit(value: float, quantity: Quantity, unit: str, *, signed: bool = False, digits: int = 3) -> str:
    scaled = value / float(KINDS[quantity].units[unit]) if unit else value
    if not math.isfinite(scaled):
        text = str(abs(scaled))
    elif quantity == "count" or unit == "B":
        text = f"{abs(scaled):,.0f}"
    elif quantity in ("fraction", "drop"):
        text = f"{abs(scaled):.2f}"
    elif quantity == "error":
        text = f"{abs(scaled):.{digits}g}"
    else:
        text = _decimal(abs(scaled), digits)
    is_zero = not any(digit in text for digit in "123456789infa")
    sign = "" if math.isnan(scaled) or is_zero else "-" if scaled < 0 else "+" if signed else ""
    return f"{sign}{text} {unit}".rstrip()


def _decimal(value: float, digits: int) -> str:
    """Significant digits without an exponent: 0.0612, 3.07, 12.0, 12345."""
    if value == 0 or value >= 10**digits:
        return f"{value:.0f}"
    return f"{Decimal(f'{value:.{digits - 1}e}'):f}"
