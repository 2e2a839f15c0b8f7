"""Deletions: how those who delete masks and those who begin to use them see each other.

Who deletes masks first writes a notice that names them, then looks once more at who uses them,
deletes what nobody uses, and marks the notice as done. Who begins to use a mask (a push, an import,
a restore) commits that first and then looks at the notices. Whatever either is delayed by, one of
the two sees the other: a notice that is not there yet when its reader looks is followed by a look
that finds the use, which spares the mask. Where a notice is there, the reader waits until it is
done, puts the mask again if it is gone, and looks again.

Notices are kept for a day. Who stood still for longer than half of it (a computer that slept)
relies on none: a user looks at the masks themselves, a deleter deletes nothing more.

    deletions/<stamp>.json    the notice
    deletions/<stamp>.done    it is done
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from cones_registry.catalog import keys
from cones_registry.catalog.clock import CLOCK_BOUND, stamp_milliseconds
from cones_registry.catalog.documents import seal, unseal
from cones_registry.digest import Digest
from cones_registry.errors import ConflictError, CorruptDataError, NotFoundError
from cones_registry.store import Entry, Store
from cones_registry.store.base import CLOCKS

WAIT_SECONDS: Final = 30.0
KEEP_SECONDS: Final = 24 * 3600.0
"""How long a notice is kept."""

LATE_SECONDS: Final = KEEP_SECONDS / 2
"""Who took longer than this relies on no notice: those that concern it may be gone."""

DELETE_SECONDS: Final = 1800.0
"""How long after its notice a deletion may still begin to delete something."""

EXPIRED_SECONDS: Final = 2 * DELETE_SECONDS + CLOCK_BOUND
"""Age from which a notice that is not done keeps nobody waiting: its maker was broken off, and will
delete nothing more if it wakes."""

_DONE: Final = ".done"
_OPEN: Final = ".json"


class Stopwatch:
    """Says how long ago it was made, by whichever clock says more: one may stand still while a
    computer sleeps, the other may be set back."""

    def __init__(self) -> None:
        self._wall, self._steady = time.time(), time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return max(time.time() - self._wall, time.monotonic() - self._steady)

    @property
    def is_late(self) -> bool:
        """Whether notices of then may be gone."""
        return self.seconds > LATE_SECONDS


class Notices:
    """The notices of one registry; those that were read are remembered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._read: dict[str, tuple[frozenset[Digest], bool]] = {}

    def write(self, stamp: str, masks: Iterable[Digest], *, purge: bool = False) -> None:
        """Say that masks are about to be deleted; only then may they be looked at again."""
        body = {"masks": sorted(masks), "purge": purge}
        self._store.put_new(keys.deletion_key(stamp), seal("deletion", body))

    def done(self, stamp: str) -> None:
        """Say that nothing more of a notice will be deleted."""
        key = keys.deletion_key(stamp).removesuffix(_OPEN) + _DONE
        self._store.put_new(key, seal("deletion-done", {}))

    def require_in_time(self, stamp: str, since: Stopwatch) -> None:
        """``ConflictError`` if a notice that was written then may count no more; it is marked done.

        Asked before each delete: whoever uses the masks may not have waited for the notice.
        """
        if since.seconds > DELETE_SECONDS:
            self.done(stamp)
            raise ConflictError(
                f"this process took more than {DELETE_SECONDS / 60:g} minutes, so that others may "
                "use what it was about to delete. Nothing more is deleted; run it again"
            )

    def clean(self) -> None:
        """Remove notices that are older than anybody can still be concerned by."""
        old = [
            entry.key
            for entry in self._store.list(keys.DELETIONS)
            if _is_notice(entry.key) and _is_older(entry, KEEP_SECONDS)
        ]
        # The notice before its mark: one without the other would stand in the way.
        self._store.delete_many(key for key in old if key.endswith(_OPEN))
        self._store.delete_many(key for key in old if key.endswith(_DONE))
        before = time.time() - KEEP_SECONDS
        shown = [entry.key for entry in self._store.list(CLOCKS) if entry.modified < before]
        self._store.delete_many(shown)

    def settle(
        self,
        masks: Collection[Digest],
        put_again: Callable[[list[Digest]], None],
        since: Stopwatch,
    ) -> bool:
        """Return when masks that are used now are in the store, and nobody will delete them.

        Args:
            masks: what this process has just committed to use.
            put_again: puts those that were deleted meanwhile, or raises.
            since: when it first looked at them, or put them.

        Returns:
            whether there may have been a purge since, which may have taken numbers away.

        Raises:
            ConflictError: a deletion that names one of them is not done.
        """
        started = time.monotonic()
        while True:
            named, open_notices = self._about(masks)
            if open_notices:
                if time.monotonic() - started > WAIT_SECONDS:
                    raise ConflictError(
                        f"a prune or purge that was begun and not finished names "
                        f"{len(named)} of these masks ({open_notices[0]}). Push again when it has "
                        f"ended, or {EXPIRED_SECONDS / 60:g} minutes after it was broken off"
                    )
                time.sleep(random.uniform(0.01, 0.2))
                continue
            late = since.is_late
            missing = [
                digest
                for digest in sorted(masks if late else named)
                if self._store.head(keys.mask_key(digest)) is None
            ]
            if not missing:
                return late or any(purge for _, purge in self._read.values())
            put_again(missing)

    def _about(self, masks: Collection[Digest]) -> tuple[set[Digest], list[str]]:
        """(which of the masks notices name, keys of those notices that are not done)."""
        listed = {entry.key: entry for entry in self._store.list(keys.DELETIONS)}
        notices = [key for key in listed if _is_notice(key) and key.endswith(_OPEN)]
        with self._lock:
            unread = [key for key in notices if key not in self._read]
            for key, data in self._store.get_many(unread):
                if data is not None:
                    self._read[key] = _parse(key, data)
            for key in self._read.keys() - listed.keys():
                del self._read[key]
            about = {key: found & set(masks) for key, (found, _) in self._read.items()}
        named = {digest for found in about.values() for digest in found}
        waiting = [
            key
            for key, found in sorted(about.items())
            if found
            and key.removesuffix(_OPEN) + _DONE not in listed
            and not _is_older(listed[key], EXPIRED_SECONDS)
        ]
        return named, waiting


def gone(digests: list[Digest]) -> None:
    """``put_again`` of those who do not have the bytes."""
    raise NotFoundError(f"{len(digests)} masks were deleted meanwhile")


def _stamp(key: str) -> str:
    return key.removeprefix(keys.DELETIONS).rpartition(".")[0]


def _is_notice(key: str) -> bool:
    stamp = _stamp(key)
    return len(stamp) == 26 and stamp.isalnum() and key.endswith((_OPEN, _DONE))


def _is_older(notice: Entry, seconds: float) -> bool:
    """Whether a notice is older, by its maker's clock and by the store's."""
    made = max(stamp_milliseconds(_stamp(notice.key)) / 1000, notice.modified)
    return made < time.time() - seconds


def _parse(key: str, data: bytes) -> tuple[frozenset[Digest], bool]:
    body = unseal("deletion", data, key)
    masks = body.get("masks")
    if not isinstance(masks, list) or not all(isinstance(each, str) for each in masks):
        raise CorruptDataError(f"{key} names no masks")
    return frozenset(masks), body.get("purge") is True
