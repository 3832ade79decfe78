"""Where the runner lays out jobs and the page of one browser hands in answers."""

from __future__ import annotations

import threading
import time
from typing import Any

ONCE_S = 0.2  # how often a wait looks up, so that Ctrl-C is heard


class Gone(Exception):  # noqa: N818 - the page is
    """The page did not come, went away, or did not answer in time; the text says which."""


class Desk:
    """One job at a time, for the page that came first.

    The first page to ask for work has the desk until the end: a second browser would mix two devices in one
    measurement. A page that is loaded anew in the same tab keeps its name, and gets the job again.

    Args:
        wait_s: How long to wait for a page.
        lost_s: How long a page may be silent. One that works on a job is not, since it asks in between.
    """

    def __init__(self, wait_s: float = 300.0, lost_s: float = 60.0) -> None:
        self.wait_s, self.lost_s = wait_s, lost_s
        self.changed = threading.Condition()
        self.page: str | None = None
        self.seen = 0.0
        self.left = False
        self.count = 0
        self.job: dict[str, Any] | None = None
        self.answer: dict[str, Any] | None = None
        self.status: dict[str, Any] = {}
        self.ended: dict[str, Any] | None = None
        self.told_end = False

    # --- the page's side, in threads of the server ----------------------------------------------------------

    def admits(self, page: str) -> bool:
        """Whether this page may work here; the first one may."""
        with self.changed:
            if self.page is None and self.ended is None:
                self.page = page
            if self.page != page:
                return False
            self.seen, self.left = time.monotonic(), False
            self.changed.notify_all()
            return True

    def next(self, _: str, have: object, wait_s: float) -> dict[str, Any]:
        """The job after the one that the page has, or the end; after ``wait_s`` only the status.

        A page that has the job that is laid out is at work on it, and asks to be seen.
        """
        with self.changed:
            count = self.count
            if self.job is None or have == count:
                self.changed.wait_for(lambda: self.count != count or self.ended is not None, wait_s)
            self.seen = time.monotonic()
            if self.ended is not None:
                self.told_end = True
                self.changed.notify_all()
                return {"ended": self.ended, "status": self.status}
            job = None if self.job is None or have == self.count else {**self.job, "id": self.count}
            return {"job": job, "status": self.status}

    def hand_in(self, _: str, number: object, answer: object) -> dict[str, Any]:
        """An answer; one to an earlier job, or a second one, is dropped."""
        with self.changed:
            wanted = self.job is not None and number == self.count and isinstance(answer, dict)
            if wanted:
                assert isinstance(answer, dict)
                self.answer, self.job = answer, None
                self.changed.notify_all()
            return {"taken": wanted}

    def leave(self, _: str) -> dict[str, Any]:
        """The page is closed, or loaded anew."""
        with self.changed:
            self.left = True
            self.changed.notify_all()
            return {}

    # --- the runner's side ----------------------------------------------------------------------------------

    def ask(self, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Lay out a job and wait for its answer.

        Raises:
            Gone: There is none in time.
        """
        with self.changed:
            self.count += 1
            self.job, self.answer = job, None
            self.changed.notify_all()
        self._wait_for_page()
        deadline = time.monotonic() + timeout_s
        with self.changed:
            while self.answer is None:
                silent_s = time.monotonic() - self.seen
                if silent_s > (self.lost_s / 2 if self.left else self.lost_s):
                    raise Gone("closed before it had done its work" if self.left else "no longer there")
                if time.monotonic() > deadline:
                    raise Gone(f"still busy after {timeout_s:.0f} s")
                self.changed.wait(ONCE_S)
            answer, self.answer = self.answer, None
            return answer

    def _wait_for_page(self) -> None:
        deadline = time.monotonic() + self.wait_s
        with self.changed:
            while self.page is None:
                if time.monotonic() > deadline:
                    raise Gone(f"not opened by any browser within {self.wait_s:.0f} s")
                self.changed.wait(ONCE_S)

    def end(self, result: dict[str, Any], wait_s: float) -> None:
        """Tell the page how it ended, if one is there, and wait a moment for it to hear."""
        with self.changed:
            self.ended = result
            self.changed.notify_all()
            if self.page is not None and not self.left:
                self.changed.wait_for(lambda: self.told_end, wait_s)
        if self.told_end:
            time.sleep(ONCE_S)  # what the page was told is still on its way
