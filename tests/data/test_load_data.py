from __future__ import annotations

import pytest

from edgeprune.data import Normalization, load_data
from edgeprune.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"--data is 'digit', expected digits, cifar10:DIR.* Did you mean digits\?"),
        ("", r"--data is '', expected digits"),
        ("digits:folder", "expected digits without a folder"),
        ("cifar10", "--data is cifar10, expected cifar10:DIR"),
        ("imagefolder:", "expected imagefolder:DIR"),
        ("cifar1O:folder", r"in no module that Python finds.* Did you mean cifar10:…\?"),
    ],
)
def test_an_unknown_data_set_is_named_with_what_there_is(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_options_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(UsageError, match=r"image_size is 64, expected .* for imagefolder:DIR only"):
        load_data("digits", image_size=64)
    with pytest.raises(UsageError, match="image_size is 0"):
        load_data("imagefolder:x", image_size=0)
    with pytest.raises(UsageError, match="--download is given for digits, expected cifar10:DIR"):
        load_data("digits", download=True)
    with pytest.raises(DataError, match="the normalization is of 1 channels, expected 3"):
        load_data("digits", normalization=Normalization((0.5,), (0.5,)))
