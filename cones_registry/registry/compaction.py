"""Compaction: fold the log into numbered snapshots. Safe anywhere, at any time, by several at once.

Snapshot n+1 is made from a local copy that holds exactly snapshot n and some segments, and its
manifest is created exclusively: of several compactors one wins, the others' work is thrown away,
and no snapshot ever lacks what one before it had. Folded segments are removed only when the pointer
to their snapshot is older than the grace, so a reader has always one or the other.
"""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass
from typing import Any, Final

import pyarrow.parquet as pq
from ulid import ULID

from cones_registry.catalog import segments, snapshots
from cones_registry.catalog.copy import State
from cones_registry.errors import NotFoundError, UsageError
from cones_registry.registry.ledger import Ledger
from cones_registry.store import Entry, KeyExistsError

DEFAULT_GRACE: Final = 3600.0
"""Seconds: longer than clocks differ, and than a reader takes from listing to last object."""

_ROWS_PER_GROUP: Final = 122_880
_ZSTD_LEVEL: Final = 3
_PARQUET: Final = re.compile(r"snapshots/([0-9]{6,9})-[0-9a-f]{64}\.parquet", re.ASCII)


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        snapshot: number of the snapshot it made, None if there was nothing to fold, or another
            compactor was first.
        rows, snapshot_bytes: versions in it, and its size.
        folded: segments it folded.
        removed: objects it removed: segments folded before the grace, and older snapshots.
        freed_bytes: bytes of those.
    """

    snapshot: int | None
    rows: int
    snapshot_bytes: int
    folded: int
    removed: int
    freed_bytes: int


def compact(ledger: Ledger, *, grace: float, minimum: int) -> CompactReport:
    """Fold what is in the log, then remove what was folded longer than `grace` seconds ago."""
    ledger.require_writable()
    check_grace(grace)
    previous = publish_newest(ledger)
    state = ledger.fresh_now()
    made: tuple[int | None, int, int, int] = (None, 0, 0, 0)
    # A state behind the newest snapshot would make one that lacks something.
    if state.meta.snapshot == (previous.number if previous else 0):
        made = _fold(ledger, state, previous, minimum)
    removed, freed = clean(ledger, grace)
    return CompactReport(*made, removed, freed)


def check_grace(grace: float) -> None:
    """`UsageError` unless `grace` is a number of seconds."""
    if not isinstance(grace, int | float) or not 0 <= grace < 10**10:
        raise UsageError(f"grace is {grace!r}; expected seconds, 0 or more")


def publish_newest(ledger: Ledger) -> snapshots.Manifest | None:
    """The newest snapshot, with a pointer to it in the log whoever made it."""
    newest = snapshots.newest_manifest(ledger.store)
    if newest is None:
        return None
    state = ledger.fresh_now()
    if state.meta.snapshot < newest.number:
        # Its maker was killed before it could say so.
        before = _folded_before(ledger, newest.number)
        _publish(ledger, newest.number, newest.digest, set(newest.folded) - before)
    return newest


def _folded_before(ledger: Ledger, number: int) -> set[str]:
    try:
        return (
            set(snapshots.read_manifest(ledger.store, number - 1).folded) if number > 1 else set()
        )
    except NotFoundError:
        return set()


def _publish(ledger: Ledger, number: int, manifest: str, folded: set[str]) -> None:
    ledger.commit(
        [{"type": "pointer", "number": number, "manifest": manifest, "folded": sorted(folded)}]
    )


def _fold(
    ledger: Ledger, state: State, previous: snapshots.Manifest | None, minimum: int
) -> tuple[int | None, int, int, int]:
    """(number, rows, bytes, segments folded) of a new snapshot."""
    before = set(previous.folded) if previous else set()
    pointers = {
        segments.parse_name(entry.key)[0]
        for entry in ledger.store.list(segments.PREFIX)
        if segments.is_pointer(entry.key)
    }
    held = set(state.applied) - pointers
    new = held - before
    if len(new) < max(1, minimum):
        return None, 0, 0, 0
    number = (previous.number if previous else 0) + 1
    parquet, rows = _parquet(state)
    store = ledger.store
    manifest = snapshots.encode_manifest(
        number, parquet, rows, sorted(held), state.meta, str(ULID())
    )
    described = snapshots.decode_manifest(number, manifest)
    key = snapshots.parquet_key(number, described.parquet)
    store.put_new(key, parquet)
    try:
        store.put_new(snapshots.manifest_key(number), manifest)
    except KeyExistsError:
        winner = snapshots.read_manifest(store, number)
        if winner.parquet != described.parquet:
            store.delete(key)
        return None, 0, 0, 0
    _publish(ledger, number, described.digest, new)
    return number, rows, len(parquet), len(new)


def _parquet(state: State) -> tuple[bytes, int]:
    """The rows of a local copy as the Parquet bytes of a snapshot."""
    buffer = io.BytesIO()
    cursor = state.connection.cursor()
    try:
        reader: Any = cursor.sql(snapshots.EXPORT).to_arrow_reader(_ROWS_PER_GROUP)
        with pq.ParquetWriter(
            buffer,
            reader.schema,
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            store_schema=False,
        ) as writer:
            rows = 0
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
        return buffer.getvalue(), rows
    finally:
        cursor.close()


def clean(ledger: Ledger, grace: float) -> tuple[int, int]:
    """Remove what a snapshot older than `grace` seconds makes superfluous; (objects, bytes)."""
    store = ledger.store
    log = {entry.key: entry for entry in store.list(segments.PREFIX)}
    pointers: dict[int, list[Entry]] = {}
    for key, data in store.get_many(key for key in log if segments.is_pointer(key)):
        if data is not None:
            event = segments.decode_segment(key, data).events[0]
            pointers.setdefault(event["number"], []).append(log[key])
    before = time.time() - grace
    old = [n for n, found in pointers.items() if min(e.modified for e in found) <= before]
    if not old:
        return 0, 0
    number = max(old)
    try:
        manifest = snapshots.read_manifest(store, number)
    except NotFoundError:
        return 0, 0  # another compactor is further
    folded = set(manifest.folded)
    doomed = [
        entry
        for key, entry in log.items()
        if not segments.is_pointer(key) and segments.parse_name(key)[0] in folded
    ]
    # What leads readers to something goes after the thing's successor is in place, segments first.
    old_pointers = [entry for n, found in sorted(pointers.items()) if n < number for entry in found]
    manifests, parquets = _old_snapshots(store.list(snapshots.PREFIX), manifest, before)
    # Stage by stage, since deletes of one stage run side by side: a kill between any two leaves
    # nothing that names what is gone.
    stages = (doomed, old_pointers, manifests, parquets)
    for stage in stages:
        store.delete_many(entry.key for entry in stage)
    gone = [entry for stage in stages for entry in stage]
    return len(gone), sum(entry.size for entry in gone)


def _old_snapshots(
    entries: list[Entry], keep: snapshots.Manifest, before: float
) -> tuple[list[Entry], list[Entry]]:
    """(manifests, Parquet objects) of snapshots before `keep`, and what losing compactors left."""
    kept = snapshots.parquet_key(keep.number, keep.parquet)
    manifests, parquets = [], []
    for entry in entries:
        match = _PARQUET.fullmatch(entry.key)
        if match:
            number = int(match[1])
            lost = number == keep.number and entry.key != kept and entry.modified <= before
            if number < keep.number or lost:
                parquets.append(entry)
        elif entry.key < snapshots.manifest_key(keep.number):
            manifests.append(entry)
    return manifests, parquets
