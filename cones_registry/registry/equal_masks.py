"""Equal masks: a mask that is in the registry already is not written again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cones_registry.catalog.copy import State
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import any_of, has_mask, versions_where
from cones_registry.codec import read_ranks
from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError, NotFoundError
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.drafts import Draft
from cones_registry.registry.histories import read_history
from cones_registry.registry.ledger import Ledger


def find_equal_masks(ledger: Ledger, drafts: list[Draft], pushed: set[Digest]) -> None:
    """Point drafts at the blob of an equal mask that some concept in use refers to.

    Args:
        ledger: of the registry.
        drafts: those to be pushed together.
        pushed: digests of masks that this process has pushed.
    """
    wanted = {draft.record["mask_digest"] for draft in drafts}
    # A handle that only pushes looks once; later pushes of others it meets as equal masks only
    # after its next read. What it misses costs a second blob, nothing else.
    state = ledger.state() if ledger.has_synced else ledger.fresh_now()
    if not wanted & pushed and not has_mask(state, wanted):
        return
    # Only what is in use right now: the blobs of removed concepts may be pruned.
    found = _with_masks(ledger.fresh_now(), wanted)
    for draft in drafts:
        for version in found.get(draft.record["mask_digest"], ()):
            if _is_like(ledger, version, draft) and ledger.store.head(
                blob_key(version.record["blob_digest"])
            ):
                share_blob(draft, version.record)
                break


def share_blob(draft: Draft, record: Mapping[str, Any]) -> None:
    """Let a draft refer to the blob of an equal mask."""
    for name in ("blob_digest", "blob_bytes", "layout", "precision", "ranked"):
        draft.record[name] = record[name]


def _is_like(ledger: Ledger, version: Version, draft: Draft) -> bool:
    """Whether the blob of a version with the same mask says all that a draft has to say."""
    if _history_of(ledger, version) != draft.history:
        return False
    if draft.ranks is None:
        return True
    try:
        ranks = read_ranks(ledger.blobs.get(version.record["blob_digest"]))
    except (NotFoundError, CorruptDataError):
        return False
    return ranks is not None and np.array_equal(ranks, draft.ranks)


def _history_of(ledger: Ledger, version: Version) -> tuple[Mapping[str, Any], ...]:
    if not version.history:
        return ()
    try:
        return read_history(ledger, version.record["blob_digest"])
    except (NotFoundError, CorruptDataError):
        return ({"unreadable": True},)


def _with_masks(state: State, digests: set[Digest]) -> dict[Digest, list[Version]]:
    """mask digest -> versions in use with that mask."""
    found: dict[Digest, list[Version]] = {}
    condition, params = any_of(("mask_digest",), [(digest,) for digest in digests])
    for version in versions_where(state, f"{condition} AND NOT removed AND NOT pruned", params):
        found.setdefault(version.record["mask_digest"], []).append(version)
    return found
