"""Latency of candidate networks on a target: each is slimmed, exported and timed beside the dense one."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from edgeprune.benchmark import bench
from edgeprune.errors import InexactWarning, MeasurementError, PlanError
from edgeprune.latency_budget import NAME, Candidate, LatencySearch
from edgeprune.metrics import Estimate
from edgeprune.onnx_export import export
from edgeprune.plan import Plan
from edgeprune.runners import open_runner
from edgeprune.statistics import ratio_estimate
from edgeprune.surgery import slim
from edgeprune.target import Target
from edgeprune.turns import time_in_turns

QUICK: dict[str, Any] = {"processes": 4, "runs": 40, "seconds": 1.0}
"""A quick measurement."""

OnProgress = Callable[[int, int, str], None]
_LOG = logging.getLogger(__name__)  # for what a person must do at a device


def check_latency_budget(limit: float | None, target: Target | None) -> None:
    """Refuse a budget that makes no sense, before anything is done for it.

    Raises:
        PlanError: It is not in 0..1, or there is no target.
    """
    problem = "could not make a plan"
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < 1:
        raise PlanError(problem, where=NAME, value=limit, expected="a number above 0 and below 1")
    if target is None:
        rule = f"a Target: {NAME} is measured on it"
        raise PlanError(problem, where="target", value="missing", expected=rule)


class LatencyProbe:
    """Measures candidates; a context manager, since their files are temporary.

    Args:
        dense: The network that candidates are cut from.
        example: Its input (N, C, H, W), or a tuple of inputs.
        target: The device.
        plan_of: The plan at a threshold.
        on_progress: Called with (measurements done, most measurements, what comes next).

    Raises:
        MeasurementError: The target asks for a precision that candidates are not exported in.
    """

    def __init__(
        self,
        dense: nn.Module,
        example: Tensor | tuple[Tensor, ...],
        target: Target,
        plan_of: Callable[[float], Plan],
        on_progress: OnProgress | None = None,
    ) -> None:
        if target.runtime.precision != "fp32":
            raise MeasurementError(
                "could not hold candidates against the latency budget",
                where="runtime.precision",
                value=f"'{target.runtime.precision}'",
                expected="'fp32'",
                hint="Candidates are measured as they are exported.",
            )
        self.dense, self.example, self.target = dense, example, target
        self.plan_of, self.on_progress = plan_of, on_progress
        shape = tuple((example if isinstance(example, Tensor) else example[0]).shape)
        # A target that feeds another shape needs a file that takes it.
        self.dynamic_batch = target.runtime.input is not None and target.runtime.input != shape
        self.runner = open_runner(target.runtime, say=_LOG.warning)
        self._files: dict[float | None, Path] = {}

    def __enter__(self) -> LatencyProbe:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeprune-")
        self.runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.runner.__exit__(kind, error, trace)
        finally:
            self._folder.cleanup()

    def search(
        self, limit: float, largest: Candidate, smallest: Candidate, at_most: Callable[[float], Candidate]
    ) -> tuple[float, dict[str, Any]]:
        """The threshold of the largest network that is fast enough, and what was measured.

        The arguments are those of ``LatencySearch``.

        Raises:
            PlanError: No network is.
            MeasurementError: Nothing can be measured, or the device is too noisy to tell.
        """

        def measure(one: Candidate, full: bool) -> Estimate:
            if self.on_progress:
                how = "in full" if full else "with few processes"
                text = f"latency at {one.macs_ratio:.3f} of the MACs, {how}"
                self.on_progress(len(search.trials), search.most, text)
            return self.ratio(one.threshold, full=full)

        search = LatencySearch(limit, largest, smallest, at_most, measure)
        found = search.run()
        trials = [trial.to_json() for trial in search.trials]
        facts = {"target": self.target.name, "limit": limit, **found.to_json(), "trials": trials}
        size_bytes = self._file(found.candidate.threshold).stat().st_size
        return found.candidate.threshold, {"latency": facts, "size_bytes": size_bytes}

    def ratio(self, threshold: float, *, full: bool) -> Estimate:
        """Latency of the slim network / latency of the dense one.

        Args:
            threshold: On the scores.
            full: Measure as ``edgeprune bench`` does: until the interval is narrow, since on a noisy device a
                network would else be refused for the noise alone.

        Raises:
            MeasurementError: The provider, the interpreter or the device is absent, or took no part.
        """
        dense, small = self._file(None), self._file(threshold)
        if not full:
            timed = time_in_turns(self.runner, [small, dense], **QUICK)
            return ratio_estimate([list(zip(*pair, strict=True)) for pair in zip(*timed, strict=True)])
        measured = bench(small, self.target, baseline=dense, runner=self.runner)
        ratio = measured.latency_ratio
        if ratio is None:
            raise MeasurementError(
                "could not hold candidates against the latency budget",
                where=f"latency on {self.target.name}",
                value=f"not measured ({measured.why_unmeasured('latency_ratio')})",
                expected="a device whose time means something",
            )
        return ratio

    def _file(self, threshold: float | None) -> Path:
        """The ONNX file of a candidate, None: of the dense network; exported on first use."""
        if threshold not in self._files:
            network = self.dense
            if threshold is not None:
                with warnings.catch_warnings():
                    # Whoever cuts for good hears it; candidates come and go.
                    warnings.simplefilter("ignore", InexactWarning)
                    network = slim(self.dense, self.plan_of(threshold))
            path = Path(self._folder.name, f"{len(self._files)}.onnx")
            export(network, self.example, path, dynamic_batch=self.dynamic_batch)
            self._files[threshold] = path
        return self._files[threshold]
