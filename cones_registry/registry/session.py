"""Session: one handle's view of a registry: its store, its log, and the local copy of both."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

from ulid import ULID

from cones_registry.cache_folder import cache_folder
from cones_registry.catalog import keys
from cones_registry.catalog.clock import CLOCK_BOUND, Clock, parse_stamp
from cones_registry.catalog.copy import LocalCopy, State
from cones_registry.catalog.documents import parse_json, seal, unseal
from cones_registry.catalog.events import Event
from cones_registry.catalog.segments import MAX_ACTOR_LENGTH, Segment, encode_segment
from cones_registry.catalog.syncing import Syncer, SyncReport
from cones_registry.errors import (
    ClockError,
    ConflictError,
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.quantities import counted
from cones_registry.registry.deletions import Notices
from cones_registry.registry.mask_files import MaskFiles
from cones_registry.registry.memory import DEFAULT_BYTES, Memory
from cones_registry.store import KeyExistsError, Store

CLOCK_SECONDS: Final = 3600.0
"""How long a look at the store's clock is good for."""

COLD_READS: Final = 4
"""Reads of one handle without a local copy; whoever reads more has use for one."""

T = TypeVar("T")


class OnProgress(Protocol):
    """Is told of long work, what it is and how many of how many steps are done."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


class Session:
    """Reads and appends the log of one registry.

    Attributes:
        store: bytes by key.
        registry_id: random, made with the registry.
        read_only: refuse every change.
        max_staleness: seconds for which a read may go on with the copy it has.
    """

    def __init__(
        self,
        store: Store,
        registry_id: str,
        *,
        read_only: bool,
        cache: str | os.PathLike[str] | None,
        max_staleness: float,
        memory: int = DEFAULT_BYTES,
    ) -> None:
        self.store = store
        self.registry_id = registry_id
        self.read_only = read_only
        self.max_staleness = max_staleness
        self.clock = Clock()
        self.notices = Notices(store)
        folder = cache_folder(cache)
        # A copied registry keeps its id and goes its own way: the place is part of the key.
        place = hashlib.sha256(store.place.encode()).hexdigest()[:12]
        self.copy = LocalCopy(folder / "registries" / f"{registry_id}-{place}")
        self.masks = MaskFiles(store, folder / "masks")
        self.memory = Memory(memory)
        self._syncer = Syncer(store, self.copy, registry_id, self.clock, self.tell)
        self.on_progress: OnProgress | None = None
        self.chain = self._syncer.chain
        self._synced = float("-inf")
        self._cold_reads = 0
        self._clock_seen = self._clock_step = float("-inf")
        self.has_synced = False

    def tell(self, what: str, done: int, total: int) -> None:
        """Tell whoever watches that ``done`` of ``total`` steps of some work are done."""
        if self.on_progress is not None:
            self.on_progress(what, done, total)

    def watched(self, what: str, work: Iterable[T], total: int) -> Iterator[T]:
        """The items of some work, told of one by one."""
        for done, each in enumerate(work):
            self.tell(what, done, total)
            yield each
        self.tell(what, total, total)

    def sync(self) -> SyncReport:
        """Bring the local copy up to the log."""
        return self._sync()[0]

    def _sync(self) -> tuple[SyncReport, State]:
        started = time.monotonic()
        report, state = self._syncer.sync()
        self.has_synced = True
        self._synced = started
        for digest in report.purged_blobs:
            self.masks.forget(digest)
            self.memory.forget(digest)
        if state.meta.latest:
            self.clock.observe(state.meta.latest)
        return report, state

    def fresh(self) -> State:
        """The local copy, synced unless that was less than `max_staleness` seconds ago."""
        if time.monotonic() - self._synced >= self.max_staleness:
            return self._sync()[1]
        return self.state()

    def fresh_unless_cold(self) -> State | None:
        """As ``fresh``; None where there is no local copy, for the first few times."""
        if self.has_synced or self._cold_reads >= COLD_READS or self.copy.state() is not None:
            return self.fresh()
        self._cold_reads += 1
        return None

    def fresh_now(self) -> State:
        """The local copy, synced now."""
        return self._sync()[1]

    def state(self) -> State:
        """The local copy as it is; synced if there is none yet, or nothing in it."""
        for _ in range(3):
            state = self.copy.state()
            if state is not None:
                if state.meta.latest:
                    self.clock.observe(state.meta.latest)
                return state
            self.copy.forget()  # damaged, or none yet: built again from the store
            self._sync()
        raise StoreUnavailableError(
            f"the local copy in {self.copy.folder} cannot be read. Remove that folder and try again"
        )

    def require_writable(self) -> None:
        """Raise unless this handle may change something.

        Raises:
            UsageError: this registry was opened read-only.
            ClockError: the clock of this machine is too far from the store's.
        """
        if self.read_only:
            raise UsageError(
                f"{self.store.url} was opened read-only. Open it without read_only to change it"
            )

        self._require_clock()

    def _require_clock(self) -> None:
        """``ClockError`` if this clock differs too much from the store's, looked at now and then.

        Of two statements about one fact the later one holds, and what is old enough is pruned: a
        machine of another time would overrule others, be overruled, or delete too early.
        """
        steady, step = time.monotonic(), time.time() - time.monotonic()
        if steady - self._clock_seen < CLOCK_SECONDS and abs(step - self._clock_step) < 1:
            return
        before = time.time()
        there = self.store.now()
        after = time.time()
        if there is not None and not before - CLOCK_BOUND <= there <= after + CLOCK_BOUND:
            off, way = (before - there, "ahead of") if there < before else (there - after, "behind")
            raise ClockError(
                f"the clock of this machine is {_duration(off)} {way} that of {self.store.url}; at "
                f"most {_duration(CLOCK_BOUND)} are allowed, since of two changes the later one "
                "holds. Set it right (most systems do it by themselves: timedatectl set-ntp true), "
                "then try again"
            )
        self._clock_seen, self._clock_step = steady, step

    def commit(self, events: Sequence[Event], *, verb: str = "") -> Segment:
        """Append one segment; when this returns it is in the log for good, whole."""
        segment = self.segment(events, verb=verb)
        self.publish(segment, *encode_segment(segment))
        return segment

    def segment(self, events: Sequence[Event], *, verb: str = "") -> Segment:
        """A commit of this actor, later than all that this handle has seen."""
        return Segment(self.clock.next(), tuple(events), actor(), verb)

    def publish(self, segment: Segment, key: str, data: bytes) -> None:
        """Append a segment that was encoded before; once or again, it is one commit."""
        self.require_writable()
        self.store.put_new(key, data)
        self._syncer.remember(segment)
        self.expire()

    def expire(self) -> None:
        """Have the next read ask the store, whatever staleness is allowed."""
        self._synced = float("-inf")

    def forget_other_copies(self) -> None:
        """Remove this machine's local copies of the registry under every other URL it had.

        A folder that was moved, or opened as something else, would never sync those again. What is
        in use still is built again by its next read.
        """
        own = self.copy.folder
        for folder in own.parent.glob(f"{self.registry_id}-*"):
            if folder != own and folder.is_dir():
                LocalCopy(folder).forget()

    def close(self) -> None:
        """Close the local copy."""
        self.copy.close()


def _duration(seconds: float) -> str:
    """Seconds in words: "30 days"."""
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return counted(round(seconds / size), name)
    return counted(round(seconds), "second")


def actor() -> str:
    """Who makes changes: ``CONES_ACTOR``, else this system's user and host."""
    said = os.environ.get("CONES_ACTOR", "").strip()
    if not said:
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a container whose user has no name
            user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
        said = f"{user}@{socket.gethostname()}"
    return "".join(each for each in said if each.isprintable())[:MAX_ACTOR_LENGTH]


def create_root(store: Store) -> str:
    """Make ``cones.json``; the id of the new registry.

    Raises:
        ConflictError: there is a registry already, or what is left of one.
    """
    registry_id = str(ULID())
    with contextlib.suppress(NotFoundError):
        store.get(keys.ROOT)
        raise ConflictError(
            f"there is a registry at {store.url} already. Open it, or choose another place"
        )
    for folder in (keys.VERSIONS, keys.PURGED, keys.LOG, "names/"):
        if store.list(folder):
            raise ConflictError(
                f"{store.url} has no {keys.ROOT}, but objects of a registry in {folder}. Put "
                f"{keys.ROOT} back from a backup, or choose another place: a new registry there "
                "would give numbers again that were given before"
            )
    try:
        store.put_new(keys.ROOT, seal("registry", {"id": registry_id}))
    except KeyExistsError as error:
        raise ConflictError(
            f"there is a registry at {store.url} already. Open it, or choose another place"
        ) from error
    except NotFoundError as error:
        store.require_place()
        raise StoreUnavailableError(
            f"{store.url} cannot hold a registry: nothing can be written in it. Is it a file, or "
            "in one? Choose another place"
        ) from error
    return registry_id


def read_root(store: Store) -> str:
    """The id of the registry at a store.

    Raises:
        NotFoundError: no registry is there.
        NewerFormatError: a newer version made it.
        CorruptDataError: ``cones.json`` is damaged, or version 0.1 made it.
    """
    try:
        data = store.get(keys.ROOT)
    except NotFoundError as error:
        store.require_place()
        raise NotFoundError(
            f"there is no registry at {store.url}: it has no {keys.ROOT}. "
            f"To make one: cones init {store.url}"
        ) from error
    source = f"{store.url}/{keys.ROOT}"
    document = parse_json(data, source)
    if isinstance(document, dict) and document.get("format") == "cones-registry/1":
        raise CorruptDataError(
            f"{store.url} is a registry of format 1, which this version does not read. Take its "
            "concepts along: with the cones-registry that made it `cones export all.tar.zst`, "
            "then with this one `cones init` a new place and `cones import all.tar.zst`"
        )
    body: dict[str, Any] = unseal("registry", data, source)
    registry_id = body.get("id")
    if not isinstance(registry_id, str):
        raise CorruptDataError(f"{source} names no registry")
    return parse_stamp(registry_id)
