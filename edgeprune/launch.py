"""The world that this process works in: alone, or as one rank of several; known without torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""


@dataclass(frozen=True)
class World:
    """The processes that do one job together, seen from one of them. This one is alone.

    `edgeprune.training.ranks.joined` makes one of several. Every rank has to call the same methods in the
    same order.

    Attributes:
        rank: This process, from 0.
        size: Number of ranks.
        local_rank: This process among those of its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, prints and measures."""
        return self.rank == 0

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` gives on rank 0, on every rank; the others wait.

        Inside ``work`` rank 0 is alone. If it fails there, every rank does.
        """
        return work()

    def gather(self, value: Result) -> list[Result]:
        """The value of every rank, by rank, on every rank."""
        return [value]

    def spread(
        self, items: Sequence[Item], costs: Sequence[float], work: Callable[[Item], Result]
    ) -> list[Result]:
        """``[work(item) for item in items]``, each item on one rank; the same bits as on one process."""
        mine = shares(costs, self.size)[self.rank]
        found = {number: work(items[number]) for number in mine}
        together = {number: result for part in self.gather(found) for number, result in part.items()}
        return [together[number] for number in range(len(items))]


ALONE = World()
_now = ALONE


def world() -> World:
    """The ranks that work together now."""
    return _now


@contextlib.contextmanager
def being(here: World) -> Iterator[None]:
    """Work in another world for a while."""
    global _now
    before, _now = _now, here
    try:
        yield
    finally:
        _now = before


def launched_rank() -> int | None:
    """This process's rank if torchrun has started several; None: it is alone."""
    environment = os.environ
    if any(name not in environment for name in VARIABLES) or int(environment["WORLD_SIZE"]) < 2:
        return None
    return int(environment["RANK"])


def shares(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """By rank, the numbers of the items it takes: the dearest first, each to whom has least.

    Example:
        >>> shares([1.0, 5.0, 2.0, 2.0], 2)
        [[1], [0, 2, 3]]
    """
    found: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        rank = min(range(ranks), key=loads.__getitem__)
        found[rank].append(number)
        loads[rank] += costs[number]
    return [sorted(numbers) for numbers in found]
