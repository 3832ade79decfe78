from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from edgeprune.errors import UsageError
from edgeprune.schemes.options import check_options, option, parse_option


@dataclass(frozen=True)
class Example:
    flag: bool = option(False, "a switch")
    share: float = option(0.5, "a share", above=0)
    part: float = option(0.5, "a part", at_least=0, below=1)
    mode: Literal["1", 1, "a"] = option("a", "a choice of two types")

    name: ClassVar[str] = "example"

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("flag", "True", True), ("flag", "false", False), ("share", "1e-3", 1e-3), ("mode", "a", "a")],
)
def test_text_becomes_the_options_type(name, text, value):
    assert parse_option(Example, name, text) == value
    Example(**{name: value})


def test_what_is_not_text_is_left_alone():
    assert parse_option(Example, "share", 3) == 3
    assert Example(share=3).share == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flag": "maybe"}, "flag is 'maybe', expected true or false"),
        ({"flag": 1}, "flag is 1, expected true or false"),
        ({"share": "x"}, "share is 'x', expected a number above 0"),
        ({"share": True}, "share is True, expected a number above 0"),
        ({"part": 1.0}, "part is 1.0, expected a number, 0 or more, below 1"),
        ({"part": -0.1}, "part is -0.1, expected a number, 0 or more, below 1"),
        ({"mode": "b"}, "mode is 'b', expected one of 1, 1, a"),
    ],
)
def test_wrong_values_are_refused(values, message):
    parsed = {name: parse_option(Example, name, value) for name, value in values.items()}
    with pytest.raises(UsageError, match=f"scheme example: {message}"):
        Example(**parsed)
