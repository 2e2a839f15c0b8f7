"""Keys of pushes: a push that is repeated under its key, from anywhere, is one version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import concept_of, versions_where
from cones_registry.digest import quote
from cones_registry.errors import ConflictError
from cones_registry.manifest import Concept
from cones_registry.registry import reservations
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.drafts import Draft
from cones_registry.registry.ledger import Ledger


def pushed_before(ledger: Ledger, draft: Draft) -> Concept | None:
    """The version an earlier push with this key made, None if there is none."""
    state = ledger.fresh_now()
    owner, name, key = draft.owner, draft.name, draft.push.key
    for version in versions_where(
        state, "owner = ? AND name = ? AND state IS NOT NULL", [owner, name]
    ):
        if version.push == key:
            _require_same_mask(draft, version.record)
            return concept_of(version)
    # Reserved, but not in the log: that push never got so far, or its segment is on its way.
    store = ledger.store
    for number in reversed(reservations.reserved_versions(store, owner, name)):
        reserved = reservations.version_key(owner, name, number)
        event = reservations.decode_reservation(reserved, store.get(reserved))
        if event["push"] == key:
            record = event["concept"]
            _require_same_mask(draft, record)
            if store.head(blob_key(record["blob_digest"])) is None:
                return None
            # Said twice, it is one version: the fold takes a version's first push.
            ledger.commit([event])
            return concept_of(Version(record, event["push"], event["history"]))
    return None


def _require_same_mask(draft: Draft, record: Mapping[str, Any]) -> None:
    if record["mask_digest"] != draft.record["mask_digest"]:
        raise ConflictError(
            f"key {quote(draft.push.key)} was used to push {record['owner']}/{record['name']}:"
            f"{record['version']} with another mask. Use a new key for a new mask"
        )
