"""A time limit for queries, which DuckDB does not have: one thread stops what takes too long."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class Deadline:
    """When to stop something; `expired` says whether it came to that."""

    at: float
    number: int
    stop: Callable[[], None] | None = field(compare=False)
    expired: bool = field(default=False, compare=False)


class Watchdog:
    """Calls `stop` of every deadline that passes before it is cancelled.

    One thread for all queries: starting one for each would cost more than a point lookup.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: list[Deadline] = []
        self._numbers = itertools.count()
        self._process = 0

    def watch(self, seconds: float, stop: Callable[[], None]) -> Deadline:
        """Call `stop` in `seconds`, unless cancelled before."""
        deadline = Deadline(time.monotonic() + seconds, next(self._numbers), stop)
        with self._changed:
            heapq.heappush(self._deadlines, deadline)
            if self._process != os.getpid():  # the first, or after a fork
                self._process = os.getpid()
                threading.Thread(target=self._run, name="cones-watchdog", daemon=True).start()
            elif self._deadlines[0] is deadline:
                self._changed.notify()
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Forget a deadline; after this its `stop` is not called."""
        with self._changed:
            deadline.stop = None

    def _run(self) -> None:
        with self._changed:
            while True:
                while self._deadlines and self._deadlines[0].stop is None:
                    heapq.heappop(self._deadlines)
                if not self._deadlines:
                    self._changed.wait()
                    continue
                left = self._deadlines[0].at - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                deadline = heapq.heappop(self._deadlines)
                if deadline.stop is not None:
                    deadline.expired = True
                    deadline.stop()
