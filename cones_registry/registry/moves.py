"""Moves: which blob took the place of one that a purge made again.

    moved/<sha256 of the old blob>/<sha256 of the new>

Reservations are never changed, and those of others who share a purged mask name the old blob. The
log says where its mask is now; without the log this does. No names are in it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Final

from cones_registry.catalog.documents import seal
from cones_registry.digest import Digest
from cones_registry.store import Store

PREFIX: Final = "moved/"
_MOVE: Final = re.compile(r"moved/([0-9a-f]{64})/([0-9a-f]{64})", re.ASCII)


def record_move(store: Store, old: Digest, new: Digest) -> None:
    """Say for good that the mask of blob `old` is in blob `new` too."""
    places = (digest.removeprefix("sha256:") for digest in (old, new))
    store.put_new(PREFIX + "/".join(places), seal("moved", {"old": old, "new": new}))


class Moves:
    """All moves of a registry.

    A purge that was broken off and run again can have left two for one blob: both have its mask.
    """

    def __init__(self, pairs: Iterable[tuple[Digest, Digest]]) -> None:
        self._after: dict[Digest, list[Digest]] = {}
        for old, new in sorted(pairs):
            self._after.setdefault(old, []).append(new)

    @classmethod
    def of(cls, store: Store) -> Moves:
        """Those that a store's keys tell of."""
        matches = (_MOVE.fullmatch(entry.key) for entry in store.list(PREFIX))
        return cls((f"sha256:{m[1]}", f"sha256:{m[2]}") for m in matches if m)

    def find(self, blob: Digest, present: Container[Digest]) -> Digest | None:
        """The blob of `present` that has the mask of `blob`, itself before all; None if none."""
        seen, waiting = {blob}, [blob]
        while waiting:
            digest = waiting.pop(0)
            if digest in present:
                return digest
            after = [each for each in self._after.get(digest, ()) if each not in seen]
            seen.update(after)
            waiting += after
        return None
