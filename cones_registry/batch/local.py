"""The local engine: this process, one worker per device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from cones_registry.base_model import BaseModel
from cones_registry.batch.compositions import Compositions
from cones_registry.batch.engine import BaseIdentity, EngineSettings, Task, identity_of
from cones_registry.batch.worker import Outcome, Worker


class LocalEngine:
    """Draws in this process.

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

    def draw(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        """Draw all tasks; an idle worker takes the next one."""
        waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            waiting.put(task)
        if len(self._workers) == 1:
            yield from self._one(self._workers[0], tasks)
            return
        done: queue.SimpleQueue[list[Outcome] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        threads = [
            threading.Thread(target=_serve, args=(worker, waiting, done, stop), daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in tasks:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _one(self, worker: Worker, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        for number, task in enumerate(tasks):
            if number + 1 < len(tasks):
                self._compositions.prefetch(tasks[number + 1].chunk)
            yield worker.draw(task.chunk, task.wanted)

    def stop(self) -> None:
        """Forget the workers; the base models stay in the process's cache."""
        self._workers.clear()


def _serve(
    worker: Worker,
    waiting: queue.SimpleQueue[Task],
    done: queue.SimpleQueue[list[Outcome] | BaseException],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        try:
            task = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            done.put(worker.draw(task.chunk, task.wanted))
        except BaseException as error:
            done.put(error)
            return
