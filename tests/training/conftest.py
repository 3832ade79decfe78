from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from edgeprune.data import Data
from tests.training.fakes import TensorLoader, blobs, make_data, make_net


@pytest.fixture
def data() -> Data:
    return make_data()


@pytest.fixture
def net() -> Callable[..., nn.Sequential]:
    return make_net


@pytest.fixture
def loader() -> Callable[..., TensorLoader]:
    return blobs
