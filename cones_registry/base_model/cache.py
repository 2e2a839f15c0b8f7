"""Base models shared in one process: one load for many threads, a bound on memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What the cache holds: something with a size in bytes."""

    @property
    def byte_count(self) -> int: ...


Model = TypeVar("Model", bound=Sized)


class ModelCache(Generic[Model]):
    """Least recently used models up to ``limit`` bytes a device.

    limit: None for ``own_limit(device)``, what the device itself allows (None again: no bound).
    A model that falls out is only forgotten here: who still holds it keeps using it, and its memory
    goes with the last of them. The newest model always stays, however large.
    """

    def __init__(
        self,
        limit: int | None = None,
        own_limit: Callable[[str], int | None] = lambda device: None,
    ) -> None:
        self._limit = limit
        self._own_limit = own_limit
        self._lock = threading.Lock()
        self._models: OrderedDict[Hashable, tuple[str, Future[Model]]] = OrderedDict()

    @property
    def limit(self) -> int | None:
        """Bound in bytes for each device; None: what each device itself allows."""
        return self._limit

    @limit.setter
    def limit(self, value: int | None) -> None:
        with self._lock:
            self._limit = value
            for device in {device for device, _ in self._models.values()}:
                self._shrink(device)

    def get(self, key: Hashable, device: str, load: Callable[[], Model]) -> Model:
        """The model under ``key``; loaded by the first caller while the others wait for it.

        A load that fails is forgotten, and every caller that waited for it gets its error.
        """
        with self._lock:
            held = self._models.get(key)
            if held is None:
                future: Future[Model] = Future()
                self._models[key] = device, future
            else:
                future = held[1]
                self._models.move_to_end(key)
        if held is not None:
            return future.result()
        try:
            model = load()
        except BaseException as error:
            with self._lock:
                self._models.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(model)
        with self._lock:
            self._shrink(device)
        return model

    def discard(self, model: Model) -> None:
        """Forget ``model``."""
        with self._lock:
            for key, (_, future) in list(self._models.items()):
                if future.done() and future.exception() is None and future.result() is model:
                    del self._models[key]

    def clear(self) -> None:
        """Forget every model that is loaded."""
        with self._lock:
            for key, (_, future) in list(self._models.items()):
                if future.done():
                    del self._models[key]

    def __len__(self) -> int:
        return len(self._models)

    def _shrink(self, device: str) -> None:
        limit = self._own_limit(device) if self._limit is None else self._limit
        if limit is None:
            return
        held = [
            (key, future.result().byte_count)
            for key, (place, future) in self._models.items()
            if place == device and future.done() and future.exception() is None
        ]
        total = sum(size for _, size in held)
        for key, size in held[:-1]:
            if total <= limit:
                return
            del self._models[key]
            total -= size
