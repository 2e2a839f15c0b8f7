"""What is kept in memory: values by key, bounded in bytes, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Loaded values up to ``limit`` bytes; a value larger than that is never kept.

    A value that several threads ask for at once is loaded once, and the others wait for it.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int]) -> None:
        self._limit = limit
        self._size_of = size_of
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._loading: dict[Hashable, Future[Value]] = {}
        self._bytes = 0

    @property
    def byte_count(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """The value under ``key``; raises what ``load`` raises, to every thread that waited."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            waiting = self._loading.get(key)
            if waiting is None:
                own: Future[Value] = Future()
                self._loading[key] = own
        if waiting is not None:
            return waiting.result()
        try:
            value = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            own.set_exception(error)
            raise
        size = self._size_of(value)
        with self._lock:
            del self._loading[key]
            if size <= self._limit:
                self._values[key] = value, size
                self._bytes += size
            while self._bytes > self._limit:
                _, (_, gone) = self._values.popitem(last=False)
                self._bytes -= gone
        own.set_result(value)
        return value

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def forget(self, key: Hashable) -> None:
        """Drop the value under ``key``, if there is one."""
        with self._lock:
            if key in self._values:
                self._bytes -= self._values.pop(key)[1]
