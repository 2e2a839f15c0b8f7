"""Ledger: a store with its log and the local copy of what the log comes to."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from ulid import ULID

from cones_registry.cache_folder import cache_folder
from cones_registry.catalog.clock import Clock, parse_stamp
from cones_registry.catalog.copy import LocalCopy, State
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.events import Event
from cones_registry.catalog.segments import Segment, encode_segment
from cones_registry.catalog.syncing import Syncer, SyncReport
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.registry.blob_cache import BlobCache
from cones_registry.registry.memory import Memory
from cones_registry.store import KeyExistsError, Store

ROOT_KEY: Final = "cones.json"
LAYOUT: Final = 1


class Ledger:
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
    ) -> None:
        self.store = store
        self.registry_id = registry_id
        self.read_only = read_only
        self.max_staleness = max_staleness
        self.clock = Clock()
        folder = cache_folder(cache)
        # A copied registry keeps its id and goes its own way: where it is is part of the key.
        place = hashlib.sha256(store.place.encode()).hexdigest()[:12]
        self.copy = LocalCopy(folder / "registries" / f"{registry_id}-{place}")
        self.blobs = BlobCache(store, folder / "blobs")
        self.memory = Memory()
        self._syncer = Syncer(store, self.copy, registry_id, self.clock)
        self.chain = self._syncer.chain
        self._synced = float("-inf")
        self.has_synced = False

    def sync(self) -> SyncReport:
        """Bring the local copy up to the log."""
        return self._sync()[0]

    def _sync(self) -> tuple[SyncReport, State]:
        started = time.monotonic()
        report, state = self._syncer.sync()
        self.has_synced = True
        self._synced = started
        for digest in report.purged_blobs:
            self.blobs.forget(digest)
            self.memory.forget(digest)
        return report, state

    def fresh(self) -> State:
        """The local copy, synced unless that was less than `max_staleness` seconds ago."""
        if time.monotonic() - self._synced >= self.max_staleness:
            return self._sync()[1]
        return self.state()

    def fresh_now(self) -> State:
        """The local copy, synced now."""
        return self._sync()[1]

    def state(self) -> State:
        """The local copy as it is; synced if there is none yet, or nothing in it."""
        for _ in range(3):
            state = self.copy.state()
            if state is not None:
                return state
            self.copy.forget()  # damaged, or none yet: built again from the store
            self._sync()
        raise StoreUnavailableError(
            f"the local copy in {self.copy.folder} cannot be read. Remove that folder and try again"
        )

    def require_writable(self) -> None:
        """`UsageError` if this registry was opened read-only."""
        if self.read_only:
            raise UsageError(
                f"{self.store.url} was opened read-only. Open it without read_only to change it"
            )

    def commit(self, events: Sequence[Event]) -> Segment:
        """Append one segment; when this returns it is in the log for good, whole."""
        segment = Segment(self.clock.next(), tuple(events))
        key, data = encode_segment(segment.stamp, events)
        self.publish(segment, key, data)
        return segment

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


def create_root(store: Store) -> str:
    """Make `cones.json`; the id of the new registry.

    Raises:
        ConflictError: there is a registry already.
    """
    registry_id = str(ULID())
    try:
        store.put_new(ROOT_KEY, seal("registry", {"id": registry_id, "layout": LAYOUT}))
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
        CorruptDataError: `cones.json` is damaged, or of a later layout.
    """
    try:
        data = store.get(ROOT_KEY)
    except NotFoundError as error:
        store.require_place()
        raise NotFoundError(
            f"there is no registry at {store.url}: it has no {ROOT_KEY}. "
            f"To make one: cones init {store.url}"
        ) from error
    body: dict[str, Any] = unseal("registry", data, f"{store.url}/{ROOT_KEY}")
    registry_id = body.get("id")
    if body.get("layout") != LAYOUT or not isinstance(registry_id, str):
        raise CorruptDataError(
            f"{store.url}/{ROOT_KEY} says layout {body.get('layout')!r}; this version reads "
            f"{LAYOUT}"
        )
    return parse_stamp(registry_id)
