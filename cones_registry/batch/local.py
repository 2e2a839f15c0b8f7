"""The local engine: this process, one worker per device."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import BaseIdentity, EngineSettings, Result, Work, identity_of
from cones_registry.batch.worker import Worker


class LocalEngine:
    """Works in this process.

    compositions: where concepts come from, shared with ``run_batch``.
    devices: one worker for each; None: one, on the device of the run's settings.
    """

    def __init__(self, compositions: Compositions, devices: Sequence[str] | None = None) -> None:
        self._compositions = compositions
        self._devices = devices
        self._workers: list[Worker] = []

    def start(self, settings: EngineSettings) -> BaseIdentity:
        """Load the base model on each device. Raises what ``BaseModel.load`` raises."""
        for device in self._devices or [settings.device]:
            base = BaseModel.load(settings.base, device=device, dtype=settings.dtype)
            self._workers.append(Worker(base, self._compositions, format=settings.format))
        return identity_of(self._workers[0].base)

    def run(self, work: Sequence[Work[Result]]) -> Iterator[Result]:
        """Do all work; an idle worker takes the next piece."""
        if len(self._workers) == 1:
            for number, piece in enumerate(work):
                if number + 1 < len(work):
                    work[number + 1].prepare(self._compositions)
                yield piece.do(self._workers[0])
            return
        waiting = deque(work)
        done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
        stop = threading.Event()

        def serve(worker: Worker) -> None:
            while not stop.is_set():
                try:
                    piece = waiting.popleft()
                except IndexError:
                    return
                try:
                    for upcoming in list(waiting)[:1]:  # this worker's or another's
                        upcoming.prepare(self._compositions)
                    done.put((piece.do(worker), None))
                except BaseException as error:
                    done.put((None, error))
                    return

        threads = [
            threading.Thread(target=serve, args=(worker,), daemon=True) for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in work:
                result, error = done.get()
                if error is not None:
                    raise error
                yield cast(Result, result)
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def stop(self) -> None:
        """Forget the workers; the base models stay in the process's cache."""
        self._workers.clear()
