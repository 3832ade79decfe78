from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune import units
from edgeprune.errors import UsageError
from edgeprune.units import KINDS, format_interval, format_quantity, parse_quantity, show_value


@pytest.mark.parametrize(
    ("written", "quantity", "expected"),
    [
        ("12 ms", "time", 0.012),
        ("1.5 s", "time", 1.5),
        ("800 us", "time", 0.0008),
        ("800 µs", "time", 0.0008),  # MICRO SIGN
        ("800 μs", "time", 0.0008),  # GREEK SMALL LETTER MU
        ("12ms", "time", 0.012),
        ("  1e1  ms ", "time", 0.01),
        ("1.1 ms", "time", 0.0011),  # 1.1 * 1e-3 in floats is 0.0011000000000000001
        ("1.5 MB", "size", 1_500_000),
        ("300 kB", "size", 300_000),
        ("2 MiB", "size", 2 * 1024**2),
        ("3 KiB", "size", 3 * 1024),
        ("1 GiB", "size", 1024**3),
        ("2 GB", "size", 2e9),
        ("512 B", "size", 512),
        ("0.5 pp", "drop", 0.005),
        ("-0.5 pp", "drop", -0.005),
        ("0 pp", "drop", 0.0),
        ("91.5 %", "fraction", 0.915),
        ("100 %", "fraction", 1.0),
        ("30 /s", "rate", 30.0),
        (0.6, "ratio", 0.6),
        ("0.6", "ratio", 0.6),
        (2, "ratio", 2.0),
        (40_000_000, "count", 4e7),
        (4e7, "count", 4e7),
        (0, "count", 0.0),
        (1e-4, "error", 1e-4),
        (0, "error", 0.0),
        (".5 s", "time", 0.5),
    ],
)
def test_reads_what_people_write(written, quantity, expected):
    assert parse_quantity(written, quantity) == expected


@pytest.mark.parametrize(
    ("written", "quantity", "message"),
    [
        ("12", "time", r'is "12", expected a time with its unit, e\.g\. "12 ms"'),
        (12, "time", r"is 12, expected a time with its unit"),
        (1.5, "size", r'is 1\.5, expected a size with its unit, e\.g\. "1\.5 MB"'),
        (0.9, "fraction", r'with its unit, e\.g\. "91\.5 %"'),
        ("0.5", "drop", r'with its unit, e\.g\. "0\.5 pp"'),
        (30, "rate", r'with its unit, e\.g\. "30 /s"'),
        ("12 sec", "time", r"in one of the units s, ms, us, µs, e\.g\."),
        ("1 mb", "size", r'units B, kB, MB, GB, KiB, MiB, GiB, e\.g\. "1\.5 MB"\. Did you mean "MB"\?'),
        ("1 KB", "size", r'Did you mean "kB"\?'),
        ("1 pp", "fraction", r"in the unit %"),
        ("1 %", "drop", r"in the unit pp"),
        ("0.6 x", "ratio", r"a plain number without a unit, e\.g\. 0\.6"),
        ("60 %", "ratio", r"a plain number without a unit"),
        ("many", "count", r"expected a count, e\.g\. 40000000"),
        ("", "time", r'is "", expected a time'),
        ("1,5 MB", "size", r'is "1,5 MB", expected a size, e\.g\.'),
        ("1.2.3 s", "time", r"expected a time, e\.g\."),
        ("nan s", "time", r"expected a time, e\.g\."),
        (float("nan"), "ratio", r"expected a ratio, e\.g\."),
        (float("inf"), "error", r"expected an error, e\.g\."),
        (True, "ratio", r"is true, expected a ratio"),
        (None, "ratio", r"is null, expected a ratio"),
        ([1], "count", r"is \[1\], expected a count"),
        ("0 ms", "time", r"expected a time, above 0"),
        ("-1 MB", "size", r"expected a size, above 0"),
        (0, "ratio", r"expected a ratio, above 0"),
        (-1e-9, "error", r"expected an error, of at least 0"),
        (-1, "count", r"a whole number of at least 0"),
        (2.5, "count", r"a whole number of at least 0"),
        ("101 %", "fraction", r"from 0 % to 100 %"),
        ("-101 pp", "drop", r"from -100 pp to 100 pp"),
        ("1e400 s", "time", r"expected a time, above 0"),
        ("1e99999999999999999999 s", "time", r"expected a time, above 0"),
        (10**500, "ratio", r"is 1000000000.*…, expected a ratio"),
        ("1 MB\0", "size", r"in one of the units"),
    ],
)
def test_refuses_what_has_no_one_meaning(written, quantity, message):
    with pytest.raises(UsageError, match=message):
        parse_quantity(written, quantity)


def test_the_message_names_the_option():
    with pytest.raises(UsageError, match=r'^could not read a size: --max-size is "3", expected'):
        parse_quantity("3", "size", where="--max-size")


@pytest.mark.parametrize("quantity", KINDS)
def test_the_examples_in_the_messages_are_right(quantity):
    kind = KINDS[quantity]
    example = kind.example.strip('"') if kind.units else float(kind.example)
    assert parse_quantity(example, quantity) > 0
    assert kind.example.startswith('"') == bool(kind.units)


def test_kinds_are_those_of_the_metrics():
    assert set(KINDS) == set(get_args(units.Quantity))


@pytest.mark.parametrize(
    ("value", "quantity", "expected"),
    [
        (0.003071, "time", "3.07 ms"),
        (0.012, "time", "12.0 ms"),
        (0.0009994, "time", "999 µs"),
        (0.0009996, "time", "1.00 ms"),
        (0.9996, "time", "1.00 s"),
        (4e-7, "time", "0.400 µs"),
        (0.0, "time", "0 ms"),
        (1_240_000, "size", "1.24 MB"),
        (999_600, "size", "1.00 MB"),
        (512, "size", "512 B"),
        (7, "size", "7 B"),
        (0.9174, "fraction", "91.74 %"),
        (0.005, "drop", "0.50 pp"),
        (-0.005, "drop", "-0.50 pp"),
        (-0.00001, "drop", "0.00 pp"),
        (12345.6, "rate", "12346 /s"),
        (0.61234, "ratio", "0.612"),
        (1.0, "ratio", "1.00"),
        (270_896, "count", "270,896"),
        (1.234e-7, "error", "1.23e-07"),
        (0, "error", "0"),
        (float("nan"), "ratio", "nan"),
        (float("nan"), "count", "nan"),
        (float("-inf"), "time", "-inf s"),
    ],
)
def test_writes_for_people(value, quantity, expected):
    assert format_quantity(value, quantity) == expected


def test_signs_and_intervals():
    assert format_quantity(0.00031, "time", signed=True) == "+310 µs"
    assert format_quantity(-0.00031, "time", signed=True) == "-310 µs"
    assert format_quantity(0.0, "drop", signed=True) == "0.00 pp"
    assert format_quantity(-0.00031, "time", signed=True, digits=2, like=0.012) == "-0.31 ms"
    assert format_quantity(66.4, "rate", digits=2) == "66 /s"
    assert format_quantity(664.0, "rate", digits=2) == "664 /s"  # never rounded before the point
    assert format_interval(0.003071, 0.003012, 0.00312, "time") == "3.07 ms [3.01, 3.12]"
    assert format_interval(0.612, 0.598, 0.627, "ratio") == "0.612 [0.598, 0.627]"
    assert format_interval(0.9174, 0.9, 0.93, "fraction") == "91.74 % [90.00, 93.00]"
    assert format_interval(0.00101, 0.00099, 0.00103, "time") == "1.01 ms [0.990, 1.03]"  # one unit for all


IN_RANGE = {"fraction": (1e-3, 1.0), "drop": (-1.0, 1.0), "size": (1.0, 1e12), "count": (0, 10**15)}


@settings(deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_round_trip_to_the_digits_that_are_written(quantity, data):
    low, high = IN_RANGE.get(quantity, (1e-9, 1e9))
    numbers = st.integers(low, high) if quantity == "count" else st.floats(low, high)
    value = data.draw(numbers)
    again = parse_quantity(format_quantity(value, quantity).replace(",", ""), quantity)
    step = (
        0.51e-4 if quantity in ("fraction", "drop") else 0.51 if quantity == "size" and value < 1e3 else 0.0
    )
    assert again == pytest.approx(value, rel=0 if quantity == "count" else 5.01e-3, abs=step)


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_the_reader_crash(text):
    for quantity in KINDS:
        try:
            assert parse_quantity(text, quantity) == pytest.approx(parse_quantity(f" {text} ", quantity))
        except UsageError as error:
            assert KINDS[quantity].example in str(error)  # noqa: PT017


def test_values_in_messages_are_one_short_line():
    with pytest.raises(UsageError, match="is a number of thousands of digits, expected a ratio"):
        parse_quantity(16**9999, "ratio")  # Python refuses to write it in decimals
    assert show_value("a\nb") == '"a\\nb"'
    assert len(show_value("x" * 1000)) == 80
    assert show_value(float) == "\"<class 'float'>\""
