"""Sync: bring the local copy up to the log, with one listing and the objects that are new."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa
from ulid import ULID

from cones_registry.catalog import snapshots
from cones_registry.catalog.clock import Clock
from cones_registry.catalog.copy import LocalCopy, Meta, State, write_meta
from cones_registry.catalog.rows import drop_purged, insert, load_fold, store_fold
from cones_registry.catalog.segments import (
    PREFIX,
    Segment,
    decode_segment,
    is_pointer,
    parse_name,
)
from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from cones_registry.store import Store

_ATTEMPTS: Final = 12
_RELOAD_ABOVE: Final = 2000
"""Segments missing behind a pointer beyond which the snapshot is read instead of them."""


class _MovedError(Exception):
    """What the listing showed was folded and removed before it could be read."""


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Attributes:
        segments: commits that were applied one by one.
        snapshot: number of the snapshot that was read whole, None if none was.
        waiting: commits kept for the next sync, since what they speak of is not listed yet.
    """

    segments: int = 0
    snapshot: int | None = None
    waiting: int = 0
    purged_blobs: tuple[Digest, ...] = ()


class Syncer:
    """Brings a `LocalCopy` up to the log of a `Store`."""

    def __init__(self, store: Store, copy: LocalCopy, registry_id: str, clock: Clock) -> None:
        self.store = store
        self.copy = copy
        self.registry_id = registry_id
        self.clock = clock
        self._own: dict[str, Segment] = {}

    def remember(self, segment: Segment) -> None:
        """Keep a commit of this process, so that the next sync need not read it back."""
        if len(self._own) < 100_000:
            self._own[segment.stamp] = segment

    def sync(self) -> SyncReport:
        """Apply everything that is in the log now.

        Raises:
            CorruptDataError: a segment or snapshot is damaged.
            StoreUnavailableError: the store does not answer, or listings and objects do not agree.
        """
        for attempt in range(_ATTEMPTS):
            try:
                listed = self._listed()
                state = self.copy.state()
                if state is not None and not listed.keys() - state.applied:
                    return SyncReport()
                with self.copy.exclusive():
                    return self._apply(listed, self.copy.state())
            except _MovedError:
                time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
        raise StoreUnavailableError(
            f"the log in {self.store.url} lists objects that cannot be read, {_ATTEMPTS} times "
            "over. If this lasts, objects were removed by hand: run `cones check`"
        )

    def _listed(self) -> dict[str, str]:
        """stamp -> key of everything in the log."""
        return {parse_name(entry.key)[0]: entry.key for entry in self.store.list(PREFIX)}

    def _apply(self, listed: dict[str, str], state: State | None) -> SyncReport:
        applied = state.applied if state else frozenset[str]()
        # A copy: the state that is read from stays as it is, also when this fails.
        meta = dataclasses.replace(state.meta) if state else Meta()
        new = {stamp: key for stamp, key in listed.items() if stamp not in applied}
        pointers = self._pointers(new, meta.snapshot)
        manifest = self._to_reload(pointers, meta, applied, new)
        if manifest is not None:
            applied = frozenset(manifest.folded)
            new = {stamp: key for stamp, key in listed.items() if stamp not in applied}
        elif pointers:
            newest = pointers[max(pointers)]
            meta.snapshot, meta.manifest = newest["number"], newest["manifest"]
        segments = list(self._read(key for key in new.values() if not is_pointer(key)))
        latest = max(listed, default="")
        if latest:
            self.clock.observe(latest)
        pointer_stamps = {stamp for stamp, key in listed.items() if is_pointer(key)}
        report = self._build(
            None if manifest else state,
            manifest,
            meta,
            segments,
            {stamp for stamp in applied if stamp in listed} | pointer_stamps,
        )
        for stamp in listed:
            self._own.pop(stamp, None)
        return report

    def _pointers(self, new: dict[str, str], base: int) -> dict[int, dict[str, Any]]:
        """number -> pointer, of the unread pointers to snapshots newer than `base`."""
        found: dict[int, dict[str, Any]] = {}
        for segment in self._read(key for key in new.values() if is_pointer(key)):
            event = segment.events[0]
            if event["number"] > base:
                found[event["number"]] = event
        return found

    def _to_reload(
        self,
        pointers: dict[int, dict[str, Any]],
        meta: Meta,
        applied: frozenset[str],
        new: dict[str, str],
    ) -> snapshots.Manifest | None:
        """The snapshot that must be read whole, None if what is here and listed reaches further."""
        if not pointers:
            return None
        newest = max(pointers)
        chain = [pointers.get(number) for number in range(meta.snapshot + 1, newest + 1)]
        missing: set[str] = set()
        for event in chain:
            if event is None:
                break
            missing.update(stamp for stamp in event["folded"] if stamp not in applied)
        else:
            if missing <= new.keys() and len(missing) <= _RELOAD_ABOVE and meta.snapshot:
                return None
        try:
            return snapshots.read_manifest(self.store, newest, pointers[newest]["manifest"])
        except NotFoundError:
            raise _MovedError from None

    def _read(self, keys: Iterable[str]) -> Iterable[Segment]:
        wanted = []
        for key in sorted(keys):
            own = self._own.get(parse_name(key)[0])
            if own is not None:
                yield own
            else:
                wanted.append(key)
        for key, data in self.store.get_many(wanted):
            if data is None:
                raise _MovedError
            try:
                yield decode_segment(key, data)
            except CorruptDataError:
                # Once more: a bit may have flipped on the way, not in the store.
                yield decode_segment(key, self.store.get(key))

    def _build(
        self,
        source: State | None,
        manifest: snapshots.Manifest | None,
        meta: Meta,
        segments: list[Segment],
        applied: set[str],
    ) -> SyncReport:
        known_purged = set(meta.purged_blobs)
        if manifest is not None:
            meta = manifest.meta
        parquet = self._fetch(manifest) if manifest else None
        with self.copy.build(source) as builder:
            connection = builder.connection
            if parquet is not None and manifest is not None:
                path = self.copy.folder / f"snapshot-{ULID()}.parquet"
                path.write_bytes(parquet)
                del parquet
                try:
                    snapshots.load(connection, str(path))
                except duckdb.Error as error:
                    raise CorruptDataError(
                        f"snapshot {manifest.number} cannot be loaded: {str(error)[:300]}"
                    ) from error
                finally:
                    path.unlink()
            fold = load_fold(connection, self.registry_id, meta, segments)
            waiting = fold.apply_all(segments)
            if fold.purges:
                drop_purged(connection, fold)
            store_fold(connection, fold)
            late = {segment.stamp for segment in waiting}
            applied |= {segment.stamp for segment in segments} - late
            connection.execute("DELETE FROM internal.applied")
            stamps = pa.table({"stamp": pa.array(sorted(applied), pa.string())})
            insert(connection, "internal.applied", stamps)
            meta.latest = max([meta.latest, *applied])
            meta.condemned, meta.purged = fold.condemned, fold.purged
            meta.rewritten = fold.rewritten
            meta.purged_blobs = sorted({*meta.purged_blobs, *fold.purged_blobs})
            write_meta(connection, meta)
            builder.rewrite = fold.purges
        return SyncReport(
            len(segments) - len(waiting),
            manifest.number if manifest else None,
            len(waiting),
            tuple(sorted(set(meta.purged_blobs) - known_purged)),
        )

    def _fetch(self, manifest: snapshots.Manifest) -> bytes:
        try:
            return snapshots.read_parquet(self.store, manifest)
        except NotFoundError:
            raise _MovedError from None
