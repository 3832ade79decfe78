"""A measurement beside an earlier release: what the gate asks of both together. Device side: no torch."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

from edgeprune.comparison import change, why_unknown
from edgeprune.measurement import Measurement
from edgeprune.metrics import GATED, Estimate
from edgeprune.record import Record, record_of

NO_RELEASE = "No earlier release was given: `--against release.json` names one."


class Earlier(Protocol):
    """What is asked of a release."""

    def record_for(self, measurement: Measurement, /) -> Record | None:
        """What was released for the way in which a measurement was run; None: nothing."""


class Compared:
    """A measurement, and what an earlier release says of the same way to run.

    Args:
        measurement: Of the network to be released.
        release: The earlier release; None: there is none.
    """

    def __init__(self, measurement: Measurement, release: Earlier | None) -> None:
        self.measurement, self.release = measurement, release

    def value(self, metric: str) -> float | Estimate | None:
        """A metric of ``GATED`` in SI units; None if it was not measured."""
        basis = GATED[metric].basis
        if not basis:
            return self.measurement.value(metric)
        if self._before is None:
            return None
        moved = change(basis, self._now, self._before)
        return None if isinstance(moved, float) and math.isinf(moved) else moved

    def why_unmeasured(self, metric: str) -> str | None:
        """Why ``value`` is None, as one sentence; None if it is not."""
        basis = GATED[metric].basis
        if not basis:
            return self.measurement.why_unmeasured(metric)
        if self.release is None:
            return NO_RELEASE
        if self._before is None:
            return (
                "The release holds nothing that was run in this way (runner, provider, threads, precision)."
            )
        if self.value(metric) is not None:
            return None
        now = self.measurement.why_unmeasured(basis)
        unknown = now or why_unknown(basis, self._now, self._before)
        return unknown or "It was 0 in the release, and is not now."

    def is_out_of_reach(self, metric: str) -> bool:
        """Whether no measurement on this device could have it."""
        basis = GATED[metric].basis
        if basis and self._before is None:  # a release may be given
            return False
        return self.measurement.is_out_of_reach(basis or metric)

    @cached_property
    def _now(self) -> Record:
        return record_of(self.measurement)

    @cached_property
    def _before(self) -> Record | None:
        return self.release.record_for(self.measurement) if self.release else None
