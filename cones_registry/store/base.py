"""Store: what every backend can do, with retries and one translation of foreign errors.

A write is always *create*: it makes an object that was not there, or says that another one is.
There is no overwrite, so nothing a reader holds can change under it. Putting the same bytes under
the same key twice is one put: a retry after a lost acknowledgement finds its own work and is
content.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, TypeVar

import tenacity

from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.store.fault import Fault, no_fault
from cones_registry.store.keys import check_key
from cones_registry.store.trouble import Trouble, classify

ATTEMPTS: Final = 6
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 2.0
"""Seconds between attempts: random up to 0.05, 0.1, 0.2, … capped at 2 (full jitter)."""

LONGEST_TROUBLE: Final = 15.0
"""Seconds after which no further attempt is made; the second always is."""

PARALLEL: Final = 16
MAX_OBJECT_BYTES: Final = 4 * 2**30
"""Largest object read or written: a conditional create is one PUT, which ends at 5 GiB."""

CLOCKS: Final = "clocks/"
"""Folder of objects that live for a moment and show the store's time."""

T = TypeVar("T")


class KeyExistsError(ConflictError):
    """A create met an object of other content under its key."""


class _Retry(Exception):
    """An attempt failed in a way that the next one may not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it.

    Attributes:
        key: path below the store's URL, `/` between parts.
        size: bytes.
        modified: seconds since 1970, by the store's clock.
    """

    key: str
    size: int
    modified: float


class Store(ABC):
    """Bytes by key under `url`.

    Raises, from every method:
        StoreUnavailableError: the backend refused, or did not answer after all attempts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fault: Fault = no_fault
        self._pool = ThreadPoolExecutor(PARALLEL)
        self._pool_of = os.getpid()

    # -- what a backend does; may raise anything, `classify` says what it means ------------------

    @abstractmethod
    def _get(self, key: str) -> bytes: ...

    @abstractmethod
    def _get_range(self, key: str, start: int, end: int) -> bytes: ...

    @abstractmethod
    def _create(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _delete(self, key: str) -> None: ...

    @abstractmethod
    def _list(self, prefix: str) -> list[Entry]: ...

    @abstractmethod
    def _head(self, key: str) -> Entry: ...

    def require_place(self) -> None:  # noqa: B027  (a folder is made when it is needed)
        """`NotFoundError` if what must be there before anything can be put, a bucket, is not."""

    def _settle(self, keys: Iterable[str]) -> None:  # noqa: B027  (most stores need do nothing)
        """Make the names of created objects as durable as their bytes are already."""

    # -- what everyone uses -----------------------------------------------------------------------

    @property
    def place(self) -> str:
        """Text that tells this store from every other: one URL may be a place on many servers."""
        return self.url

    def get(self, key: str) -> bytes:
        """The bytes under `key`; `NotFoundError` if there are none."""
        check_key(key)
        return self._attempt(lambda: self._get(key), "read", key)

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes `start` up to `end` of `key`, fewer where it ends before; `NotFoundError` if there
        is no such object."""
        check_key(key)
        if not 0 <= start < end:
            raise UsageError(f"bytes {start} to {end} of {key} are no range")
        return self._attempt(lambda: self._get_range(key, start, end), "read", key)

    def put_new(self, key: str, data: bytes) -> None:
        """Create `key`. Durable when this returns.

        Raises:
            KeyExistsError: another object is there. (The very same bytes: not an error.)
        """
        self._put(key, data)
        self._settle((key,))
        self.fault("put-done", key)

    def put_many(self, objects: Iterable[tuple[str, bytes]]) -> builtins.list[str]:
        """Create several objects side by side. Those that were put are durable when this returns.

        Args:
            objects: (key, bytes) of each; taken one by one, so making one overlaps with writing
                those before it.

        Returns:
            the keys under which another object is; it stays.
        """
        put: builtins.list[str] = []
        taken: builtins.list[str] = []
        waiting: deque[tuple[str, Future[None]]] = deque()

        def await_one() -> None:
            key, write = waiting.popleft()
            try:
                write.result()
                put.append(key)
            except KeyExistsError:
                taken.append(key)

        pool = self._workers()
        try:
            for key, data in objects:
                waiting.append((key, pool.submit(self._put, key, data)))
                if len(waiting) == 4 * PARALLEL:
                    await_one()
            while waiting:
                await_one()
        finally:
            wait(write for _, write in waiting)
        self._settle(put)
        for key in put:
            self.fault("put-done", key)
        return taken

    def _workers(self) -> ThreadPoolExecutor:
        """Threads for puts: kept, since one push would take longer to start its own than to use
        them."""
        if self._pool_of != os.getpid():  # threads do not survive a fork
            self._pool, self._pool_of = ThreadPoolExecutor(PARALLEL), os.getpid()
        return self._pool

    def _put(self, key: str, data: bytes) -> None:
        check_key(key)
        if len(data) > MAX_OBJECT_BYTES:
            raise UsageError(f"{key} would have {len(data)} bytes; at most {MAX_OBJECT_BYTES} fit")
        self.fault("put", key)
        try:
            self._attempt(lambda: self._create(key, data), "create", key)
        except KeyExistsError:
            # Ours, if an earlier attempt (here, or inside the client library) arrived
            # unacknowledged. Read again before saying no: a bit may flip on the way.
            if all(self.get(key) != data for _ in range(4)):
                raise

    def delete(self, key: str) -> None:
        """Remove `key`; none there is fine."""
        check_key(key)
        self.fault("delete", key)
        with contextlib.suppress(NotFoundError):
            self._attempt(lambda: self._delete(key), "delete", key)
        self.fault("delete-done", key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove several objects, in any order; those that are not there are fine."""
        list(self.each(self.delete, keys))

    def keeps_deleted(self) -> str:
        """What the store itself keeps of what is deleted, as far as it says; "" if nothing."""
        return ""

    def tidy(self, prefix: str) -> None:  # noqa: B027  (object stores have no folders)
        """Remove what is left of empty folders below `prefix`: a purged name may not live on."""

    def list(self, prefix: str) -> list[Entry]:
        """All objects whose key starts with the folder `prefix` (ends in `/`, or empty), by key."""
        if prefix:
            check_key(prefix.removesuffix("/"))
        try:
            entries = self._attempt(lambda: self._list(prefix), "list", prefix)
        except NotFoundError:
            return []
        return sorted(entries, key=lambda entry: entry.key)

    def head(self, key: str) -> Entry | None:
        """Size and age of `key`, None if there is no such object."""
        check_key(key)
        try:
            return self._attempt(lambda: self._head(key), "look up", key)
        except NotFoundError:
            return None

    def now(self) -> float | None:
        """Seconds since 1970 by the store's clock, from an object that is made for it.

        None where the store does not say when its objects were made.
        """
        key = f"{CLOCKS}{secrets.token_hex(16)}"
        self._put(key, b"now")
        made = self.head(key)
        with contextlib.suppress(StoreUnavailableError):  # who may only add leaves it to a prune
            self.delete(key)
        return made.modified if made is not None and made.modified else None

    def get_many(
        self, keys: Iterable[str], *, parallel: int = PARALLEL
    ) -> Iterator[tuple[str, bytes | None]]:
        """(key, bytes) for each key, in order, read in parallel; None where there is no object."""

        def one(key: str) -> tuple[str, bytes | None]:
            try:
                return key, self.get(key)
            except NotFoundError:
                return key, None

        return self.each(one, keys, parallel=parallel)

    def each(
        self, work: Callable[[str], T], keys: Iterable[str], *, parallel: int = PARALLEL
    ) -> Iterator[T]:
        """`work(key)` for each key, in order; up to `parallel` at once, few held in memory."""
        listed = list(keys)
        if len(listed) <= 1 or parallel <= 1:
            for key in listed:
                yield work(key)
            return
        window = parallel * 4
        with ThreadPoolExecutor(min(parallel, len(listed))) as pool:
            for start in range(0, len(listed), window):
                yield from pool.map(work, listed[start : start + window])

    def _attempt(self, call: Callable[[], T], verb: str, key: str) -> T:
        """Run `call`, again while what goes wrong may pass, and say in our words what did not."""

        def once() -> T:
            try:
                return call()
            except Exception as error:
                trouble = classify(error)
                if trouble is Trouble.PASSING:
                    raise _Retry from error
                # Ceph and MiniStack answer 412 without naming the condition: s3fs calls it
                # "invalid argument". Whether something is there tells the two apart.
                unclear = trouble is Trouble.UNCLEAR_CREATE and verb == "create"
                if unclear and self.head(key) is not None:
                    trouble = Trouble.EXISTS
                raise _translated(trouble, error, verb, key, self.url) from error

        started = time.monotonic()
        # Nearly every call ends with its first attempt, which needs none of what follows.
        with contextlib.suppress(_Retry):
            return once()
        time.sleep(random.uniform(0, FIRST_WAIT))
        retrying = tenacity.Retrying(
            stop=lambda state: (
                state.attempt_number >= ATTEMPTS - 1
                or time.monotonic() - started >= LONGEST_TROUBLE
            ),
            wait=_wait,
            retry=tenacity.retry_if_exception_type(_Retry),
            reraise=True,
        )
        try:
            return retrying(once)
        except _Retry as error:
            tries = retrying.statistics["attempt_number"] + 1
            raise StoreUnavailableError(
                f"cannot {verb} {key!r} in {self.url}: {tries} attempts failed, the last with "
                f"{_shown(error.__cause__)}. Try again; what was acknowledged is safe"
            ) from error.__cause__


def _wait(state: tenacity.RetryCallState) -> float:
    ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2**state.attempt_number)
    return random.uniform(0, ceiling)


def _shown(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}" if str(error) else type(error).__name__


def _translated(trouble: Trouble, error: Exception, verb: str, key: str, url: str) -> Exception:
    if trouble is Trouble.EXISTS:
        return KeyExistsError(f"{key!r} exists already in {url}; objects are never overwritten")
    if trouble is Trouble.MISSING:
        return NotFoundError(f"no object {key!r} in {url}")
    if trouble is Trouble.TOO_LARGE:
        return CorruptDataError(
            f"{key!r} in {url} is larger than {MAX_OBJECT_BYTES} bytes; no such object belongs here"
        )
    if trouble is Trouble.FULL:
        return StoreUnavailableError(
            f"cannot {verb} {key!r}: no room is left in {url}: {_shown(error)}. Free some, then "
            "try again; what was acknowledged is safe"
        )
    # An answer to HEAD is a bare number: 400 says that something about the request, and so most
    # often about who sends it, is wrong.
    if trouble is Trouble.CREDENTIALS or (trouble is Trouble.UNCLEAR_CREATE and verb != "create"):
        return StoreUnavailableError(
            f"cannot {verb} {key!r} in {url}: the server does not accept these credentials, or "
            f"not in this region: {_shown(error)}. Get new credentials (temporary ones expire), "
            "and check AWS_DEFAULT_REGION"
        )
    if trouble is Trouble.ELSEWHERE:
        return StoreUnavailableError(
            f"cannot {verb} {key!r} in {url}: the bucket is in another region, or at another "
            f"address: {_shown(error)}. Set AWS_DEFAULT_REGION, or the endpoint, to the bucket's"
        )
    if trouble is Trouble.DENIED:
        return StoreUnavailableError(
            f"may not {verb} {key!r} in {url}: {_shown(error)}. Check credentials and permissions"
        )
    return StoreUnavailableError(f"cannot {verb} {key!r} in {url}: {_shown(error)}")
