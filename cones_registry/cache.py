"""What is kept in memory: values by key, bounded in bytes, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Loaded values up to a number of bytes. A value that falls out is only forgotten here.

    A value that several threads ask for at once is loaded once, and the others wait for it.

    Args:
        limit: Bytes of all values together, or what says it each time; None is no bound.
        size_of: Bytes of one value.
        keep_newest: Whether the value that was loaded last stays, however large. Otherwise a value
            above ``limit`` is never kept.
    """

    def __init__(
        self,
        limit: int | Callable[[], int | None] | None,
        size_of: Callable[[Value], int],
        *,
        keep_newest: bool = False,
    ) -> None:
        self._limit = limit
        self._size_of = size_of
        self._keep_newest = keep_newest
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

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

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
            size = self._size_of(value)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            self._values[key] = value, size
            self._bytes += size
            if self._is_above(size) and not self._keep_newest:
                self._drop(key)
            self._shrink()
        own.set_result(value)
        return value

    def shrink(self) -> None:
        """Keep the bound, where it has become smaller."""
        with self._lock:
            self._shrink()

    def forget(self, fits: Callable[[Hashable, Value], bool]) -> None:
        """Drop every value for which ``fits(key, value)`` holds."""
        with self._lock:
            for key in [key for key, (value, _) in self._values.items() if fits(key, value)]:
                self._drop(key)

    def _shrink(self) -> None:
        stays = 1 if self._keep_newest else 0
        while len(self._values) > stays and self._is_above(self._bytes):
            self._drop(next(iter(self._values)))

    def _is_above(self, size: int) -> bool:
        limit = self._limit() if callable(self._limit) else self._limit
        return limit is not None and size > limit

    def _drop(self, key: Hashable) -> None:
        self._bytes -= self._values.pop(key)[1]
