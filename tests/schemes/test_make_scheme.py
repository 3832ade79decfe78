from __future__ import annotations

import math

import pytest

from edgeprune.errors import UsageError
from edgeprune.schemes import Magnitude, ProximalNS, Random, make_scheme


def test_options_may_be_text_as_from_a_command_line():
    assert make_scheme("proximal-ns", l1="1e-3", epochs="5", criterion="gamma") == ProximalNS(
        l1=1e-3, epochs=5, criterion="gamma"
    )
    assert make_scheme("magnitude", p="2", normalize="none") == Magnitude(p=2, normalize="none")
    assert make_scheme("random") == Random()


def test_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(
        UsageError, match="'magic', expected one of proximal-ns, sglp-ib, stlp-ib, hsic-lasso, taylor"
    ):
        make_scheme("magic")


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UsageError, match="scheme magnitude: an option is 'q', expected one of p, normalize"):
        make_scheme("magnitude", q=1)
    with pytest.raises(UsageError, match="scheme bn-scale: an option is 'p', expected none of its own"):
        make_scheme("bn-scale", p=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("proximal-ns", {"l1": "much"}, "l1 is 'much', expected a number, 0 or more"),
        ("proximal-ns", {"l1": -1.0}, "l1 is -1.0, expected a number, 0 or more"),
        ("proximal-ns", {"l1": math.nan}, "l1 is nan"),
        ("proximal-ns", {"lr": "inf"}, "lr is inf"),
        ("proximal-ns", {"beta": 0}, "beta is 0, expected a number above 0"),
        ("proximal-ns", {"epochs": 2.0}, "epochs is 2.0, expected a whole number, 0 or more"),
        ("proximal-ns", {"epochs": "2.5"}, "epochs is '2.5', expected a whole number"),
        ("proximal-ns", {"epochs": True}, "epochs is True"),
        ("proximal-ns", {"criterion": "beta"}, "criterion is 'beta', expected one of xi, gamma"),
        ("magnitude", {"p": 3}, "p is 3, expected one of 1, 2"),
        ("magnitude", {"p": 1.0}, "p is 1.0, expected one of 1, 2"),
        ("magnitude", {"p": None}, "p is None, expected one of 1, 2"),
        ("random", {"seed": -1}, "seed is -1, expected a whole number, 0 or more"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(name, options, message):
    with pytest.raises(UsageError, match=f"could not set up the scheme {name}: {message}"):
        make_scheme(name, **options)


def test_the_class_checks_as_the_helper_does():
    with pytest.raises(UsageError, match="beta is -1, expected a number above 0"):
        ProximalNS(beta=-1)
