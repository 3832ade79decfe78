"""Several models in turns in several processes, on a device that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.turns import time_in_turns


class Counting:
    """Model k takes k + 1 ms in the first process and one more in each that follows."""

    def __init__(self) -> None:
        self.orders: list[list[str]] = []

    def notes(self) -> list[str]:
        return []

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, job: str, models: Sequence[Path] = (), **options: Any) -> dict[str, Any]:
        assert job == "latency"
        assert options == {"runs": 3, "min_runs": 1, "seconds": 2.0}
        self.orders.append([path.stem for path in models])
        ms = [int(path.stem) + len(self.orders) for path in models]
        return {"models": [{"samples_ns": [time * 10**6] * options["runs"]} for time in ms]}


def test_figures_come_back_in_the_order_of_the_models() -> None:
    runner, texts = Counting(), list[str]()
    paths = [Path(f"{number}.onnx") for number in range(3)]
    found = time_in_turns(runner, paths, processes=2, runs=3, seconds=2.0, on_step=texts.append)
    assert found == [[[(k + 1) / 1e3] * 3, [(k + 2) / 1e3] * 3] for k in range(3)]
    # Who goes first changes.
    assert runner.orders == [["0", "1", "2"], ["2", "1", "0"]]
    assert texts == ["process 1 of 2", "process 2 of 2"]
