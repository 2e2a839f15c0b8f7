"""Prune: the only everyday way in which bytes go. Two phases, with a grace between.

Phase one condemns: versions removed longer than the grace ago can no longer be restored, and blobs
that nothing in use refers to are marked. Phase two, at least one grace later, looks again and
removes the blobs that were marked that long and are still referred to by nothing. A blob younger
than the grace is never touched: its push may be about to commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cones_registry.catalog.clock import stamp_milliseconds
from cones_registry.catalog.copy import State
from cones_registry.catalog.events import Event
from cones_registry.catalog.fold import Key
from cones_registry.catalog.reader import versions_where
from cones_registry.digest import Digest
from cones_registry.registry.blob_cache import blob_key, digest_of_key
from cones_registry.registry.compaction import check_grace
from cones_registry.registry.ledger import Ledger
from cones_registry.store import Entry
from cones_registry.store.local import LocalStore

DEFAULT_GRACE: Final = 7 * 24 * 3600.0
"""Seconds between removal and condemning, and between condemning and deleting."""

_UNFINISHED_SECONDS: Final = 3600.0
_PER_EVENT: Final = 20_000


@dataclass(frozen=True)
class PruneReport:
    """What a prune did.

    Attributes:
        freed_bytes: bytes of the deleted blobs.
        deleted: their digests.
        condemned_versions: versions that can no longer be restored, as refs.
        condemned_bytes: bytes of blobs marked now, to go after the grace.
        spared: blobs that were to be deleted and are referred to again.
    """

    freed_bytes: int
    deleted: tuple[Digest, ...]
    condemned_versions: tuple[str, ...]
    condemned_bytes: int
    spared: tuple[Digest, ...]


@dataclass(frozen=True)
class PrunePlan:
    """What a prune would do; nothing changes until `execute`.

    Attributes:
        versions: (owner, name, version) of removed versions that will be beyond restoring.
        condemn: blob digest -> bytes, to be marked.
        delete: blob digest -> bytes, marked at least one grace ago.
        grace: seconds.
    """

    versions: tuple[Key, ...]
    condemn: dict[Digest, int]
    delete: dict[Digest, int]
    grace: float
    _ledger: Ledger = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """Bytes that `execute` will free now. With grace 0 both phases run at once."""
        return sum(self.delete.values()) + (sum(self.condemn.values()) if not self.grace else 0)

    @property
    def condemned_bytes(self) -> int:
        """Bytes that `execute` will mark."""
        return sum(self.condemn.values())

    def execute(self) -> PruneReport:
        """Condemn, then delete what was condemned a grace ago and is still unreferred to."""
        ledger = self._ledger
        ledger.require_writable()
        for event in _condemnations(self.versions, self.condemn):
            ledger.commit([event])
        state = ledger.fresh_now()
        used = _referenced(state)
        before = (time.time() - self.grace) * 1000
        wanted = self.delete | (self.condemn if not self.grace else {})
        doomed, spared = [], []
        for digest in sorted(wanted):
            marked = state.meta.condemned.get(digest)
            if digest in used:
                spared.append(digest)
            elif marked is not None and stamp_milliseconds(marked[0]) <= before + 1:
                doomed.append(digest)
        ledger.store.delete_many(blob_key(digest) for digest in doomed)
        for digest in doomed:
            ledger.blobs.forget(digest)
        gone = doomed + spared
        for start in range(0, len(gone), _PER_EVENT):
            ledger.commit([{"type": "swept", "blobs": gone[start : start + _PER_EVENT]}])
        if isinstance(ledger.store, LocalStore):
            ledger.store.sweep_unfinished(time.time() - max(self.grace, _UNFINISHED_SECONDS))
        return PruneReport(
            sum(wanted[digest] for digest in doomed),
            tuple(doomed),
            tuple(f"{owner}/{name}:{version}" for owner, name, version in self.versions),
            self.condemned_bytes,
            tuple(spared),
        )


def plan_prune(ledger: Ledger, grace: float) -> PrunePlan:
    """What can go: see `PrunePlan`."""
    check_grace(grace)
    # Blobs first: one that is put after this listing is not in it, so it cannot be condemned.
    blobs = blob_entries(ledger)
    state = ledger.fresh_now()
    before = time.time() - grace
    versions = [
        (version.record["owner"], version.record["name"], version.record["version"])
        for version in versions_where(state, "removed AND NOT pruned")
        if stamp_milliseconds(version.removed_stamp) <= before * 1000 + 1
    ]
    used = _referenced(state, set(versions))
    condemn, delete = {}, {}
    for digest, entry in blobs.items():
        if digest in used or entry.modified > before:
            continue
        marked = state.meta.condemned.get(digest)
        if marked is None:
            condemn[digest] = entry.size
        elif stamp_milliseconds(marked[0]) <= before * 1000:
            delete[digest] = entry.size
    return PrunePlan(tuple(versions), condemn, delete, grace, ledger)


def blob_entries(ledger: Ledger) -> dict[Digest, Entry]:
    """digest -> entry of every blob in the store."""
    entries = ((digest_of_key(entry.key), entry) for entry in ledger.store.list("blobs/"))
    return {digest: entry for digest, entry in entries if digest is not None}


def _referenced(state: State, without: set[Key] | None = None) -> set[Digest]:
    """Blobs of versions that are in use or can be restored, without those of `without`."""
    cursor = state.connection.cursor()
    try:
        rows = cursor.execute(
            "SELECT owner, name, version, blob_digest FROM concepts WHERE NOT pruned"
        ).fetchall()
    finally:
        cursor.close()
    left_out = without or set()
    return {blob for owner, name, version, blob in rows if (owner, name, version) not in left_out}


def _condemnations(versions: tuple[Key, ...], blobs: dict[Digest, int]) -> Iterable[Event]:
    listed = sorted(blobs.items())
    for start in range(0, max(len(versions), len(listed)), _PER_EVENT):
        yield {
            "type": "condemn",
            "versions": [list(key) for key in versions[start : start + _PER_EVENT]],
            "blobs": [list(pair) for pair in listed[start : start + _PER_EVENT]],
        }
