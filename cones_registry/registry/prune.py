"""Prune: the only everyday way in which bytes go. Two phases, with a grace between.

Phase one condemns: removals older than the grace are final, and masks that nothing in use refers to
are marked. Phase two, at least one grace later, looks again and removes the masks that were marked
that long and are still referred to by nothing. A mask younger than the grace is never touched, nor
one that a record younger than the grace names: its push may be about to commit.

Between a plan and its execution the world moves: what was used since is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cones_registry.catalog import keys
from cones_registry.catalog.clock import stamp_milliseconds
from cones_registry.catalog.copy import State
from cones_registry.catalog.events import Condemned, Key, Swept
from cones_registry.catalog.reader import any_of, versions_where
from cones_registry.digest import Digest
from cones_registry.registry.claims import claimed_records
from cones_registry.registry.compaction import check_grace
from cones_registry.registry.deletions import Stopwatch
from cones_registry.registry.session import Session
from cones_registry.store import Entry
from cones_registry.store.local import LocalStore

DEFAULT_GRACE: Final = 7 * 24 * 3600.0
"""Seconds between removal and condemning, and between condemning and deleting."""

_UNFINISHED_SECONDS: Final = 3600.0
_PER_EVENT: Final = 20_000
_PER_DELETE: Final = 1_000


@dataclass(frozen=True)
class PruneReport:
    """What a prune did.

    Attributes:
        freed_bytes: bytes of the deleted masks.
        deleted: their digests.
        condemned_versions: versions that can no longer be restored, as refs.
        condemned_bytes: bytes of masks marked now, to go after the grace.
        spared: masks that were to be deleted and are referred to again.
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
        versions: (owner, name, version, stamp of its removal) of removed versions that will be
            beyond restoring.
        condemn: mask digest -> bytes, to be marked.
        delete: mask digest -> bytes, marked at least one grace ago.
        grace: seconds.
    """

    versions: tuple[tuple[str, str, int, str], ...]
    condemn: dict[Digest, int]
    delete: dict[Digest, int]
    grace: float
    _session: Session = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """Bytes that `execute` will free now. With grace 0 both phases run at once."""
        return sum(self.delete.values()) + (sum(self.condemn.values()) if not self.grace else 0)

    @property
    def condemned_bytes(self) -> int:
        """Bytes that `execute` will mark."""
        return sum(self.condemn.values())

    def execute(self) -> PruneReport:
        """Condemn, then delete what was condemned a grace ago and is still unreferred to.

        Planned again first: what is no longer to go (a version that was restored, a mask that was
        pushed again) is left alone, and nothing goes that was not planned.
        """
        session = self._session
        session.require_writable()
        now = plan_prune(session, self.grace)
        versions = tuple(each for each in self.versions if each in now.versions)
        condemn = {digest: now.condemn[digest] for digest in self.condemn if digest in now.condemn}
        delete = {digest: now.delete[digest] for digest in self.delete if digest in now.delete}
        for event in _condemnations(versions, condemn):
            session.commit([event])
        wanted = delete | (condemn if not self.grace else {})
        doomed, spared = self._sweep(wanted) if wanted else ([], [])
        session.notices.clean()
        if isinstance(session.store, LocalStore):
            session.store.sweep_unfinished(time.time() - max(self.grace, _UNFINISHED_SECONDS))
        return PruneReport(
            sum(wanted[digest] for digest in doomed),
            tuple(doomed),
            tuple(f"{owner}/{name}:{version}" for owner, name, version, _ in versions),
            sum(condemn.values()),
            tuple(spared),
        )

    def _sweep(self, wanted: dict[Digest, int]) -> tuple[list[Digest], list[Digest]]:
        """(masks deleted, masks spared) of those that may be deleted now."""
        session = self._session
        notice, since = session.clock.next(), Stopwatch()
        session.notices.write(notice, wanted)
        # Only now, with the notice in place: whoever uses one of them from here on sees it.
        state = session.fresh_now()
        used = _referenced(state) | _claimed(session, state, self.grace)
        before = (time.time() - self.grace) * 1000
        doomed, spared = [], []
        for digest in sorted(wanted):
            marked = state.meta.condemned.get(digest)
            if digest in used:
                spared.append(digest)
            elif marked is not None and stamp_milliseconds(marked[0]) <= before + 1:
                doomed.append(digest)
        for start in range(0, len(doomed), _PER_DELETE):
            session.notices.require_in_time(notice, since)
            some = doomed[start : start + _PER_DELETE]
            session.store.delete_many(keys.mask_key(digest) for digest in some)
        for digest in doomed:
            session.masks.forget(digest)
        gone = doomed + spared
        for start in range(0, len(gone), _PER_EVENT):
            session.commit([Swept(tuple(gone[start : start + _PER_EVENT]))])
        session.notices.done(notice)
        return doomed, spared


def plan_prune(session: Session, grace: float) -> PrunePlan:
    """What can go: see `PrunePlan`."""
    check_grace(grace)
    # Masks first: one that is put after this listing is not in it, so it cannot be condemned.
    masks = mask_entries(session)
    state = session.fresh_now()
    before = time.time() - grace
    versions = [
        (*version.record.place, version.removed_stamp)
        for version in versions_where(state, "removed AND NOT pruned")
        if stamp_milliseconds(version.removed_stamp) <= before * 1000 + 1
    ]
    used = _referenced(state, {each[:3] for each in versions}) | _claimed(session, state, grace)
    condemn, delete = {}, {}
    for digest, entry in masks.items():
        if digest in used or entry.modified > before:
            continue
        marked = state.meta.condemned.get(digest)
        if marked is None:
            condemn[digest] = entry.size
        elif stamp_milliseconds(marked[0]) <= before * 1000:
            delete[digest] = entry.size
    return PrunePlan(tuple(versions), condemn, delete, grace, session)


def mask_entries(session: Session) -> dict[Digest, Entry]:
    """digest -> entry of every mask object in the store."""
    entries = ((keys.mask_of(entry.key), entry) for entry in session.store.list(keys.MASKS))
    return {digest: entry for digest, entry in entries if digest is not None}


def _claimed(session: Session, state: State, grace: float) -> set[Digest]:
    """Masks that records name which are not in the catalogue, and not older than the grace."""
    before = time.time() - grace
    young = [
        place
        for entry in session.store.list(keys.VERSIONS)
        if entry.modified > before and (place := keys.version_of(entry.key))
    ]
    if not young:
        return set()
    condition, params = any_of(("owner", "name", "version"), young)
    known = {version.record.place for version in versions_where(state, condition, params)}
    unknown = [place for place in young if place not in known]
    return {record.blob_digest for record in claimed_records(session.store, unknown)}


def _referenced(state: State, without: set[Key] | None = None) -> set[Digest]:
    """Masks of versions that are in use or can be restored, without those of `without`."""
    cursor = state.connection.cursor()
    try:
        rows = cursor.execute(
            "SELECT owner, name, version, blob_digest FROM concepts WHERE NOT pruned"
        ).fetchall()
    finally:
        cursor.close()
    left_out = without or set()
    return {blob for owner, name, version, blob in rows if (owner, name, version) not in left_out}


def _condemnations(
    versions: tuple[tuple[str, str, int, str], ...], masks: dict[Digest, int]
) -> Iterable[Condemned]:
    listed = sorted(masks.items())
    for start in range(0, max(len(versions), len(listed)), _PER_EVENT):
        end = start + _PER_EVENT
        yield Condemned(versions[start:end], tuple(listed[start:end]))
