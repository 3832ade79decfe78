"""SIGINT and SIGTERM while a training runs: it ends after the step, with its checkpoint written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from edgeprune.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the two signals instead of obeying them at once; a second one is obeyed at once.

    A context manager; the handlers from before come back at its end. Outside of the main thread, and for a
    signal that the process ignores, nothing is changed.

    Args:
        active: False: signals do what they did before.

    Attributes:
        number: Of the signal that came, or None.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.number: int | None = None
        self.immediate = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in SIGNALS if self.active else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        again, self.number = self.number is not None, number
        if again or self.immediate:
            raise Interrupted(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Obey at once, for work that is long, changes nothing, and can be done again.

        Raises:
            Interrupted: A signal comes, or has come before.
        """
        self.immediate = True
        try:
            if self.number is not None:
                raise Interrupted(self.number)
            yield
        finally:
            self.immediate = False
