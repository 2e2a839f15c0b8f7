"""Keys of pushes: a push that is repeated under its key, from anywhere, is one version.

A key is reserved for one concept once its push has blob and number (see `reservations`). The
reservation decides which push it stands for: who finds it without its event in the log commits that
very event, for a maker that may have died.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cones_registry.catalog.events import Event
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import any_of, concept_of, versions_where
from cones_registry.digest import quote
from cones_registry.errors import ConflictError
from cones_registry.manifest import Concept
from cones_registry.registry import reservations
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.drafts import Draft
from cones_registry.registry.ledger import Ledger


@dataclass(frozen=True)
class Before:
    """What a key was used for.

    Attributes:
        concept: the version.
        event: its push, where that is not in the log yet and is to be committed now.
    """

    concept: Concept
    event: Event | None = None


def one_of_each_key(drafts: Sequence[Draft]) -> list[Draft]:
    """For each draft the first of them with its key: itself, where it has none.

    Raises:
        ConflictError: one key stands for different pushes.
    """
    first: dict[tuple[str, str, str], Draft] = {}
    standing = []
    for draft in drafts:
        if not draft.push.key:
            standing.append(draft)
            continue
        one = first.setdefault((draft.owner, draft.name, draft.push.key), draft)
        if one.content != draft.content:
            raise ConflictError(
                f"key {quote(draft.push.key)} is given to two different pushes to {draft.owner}/"
                f"{draft.name}. Nothing was pushed; use a key for one push only"
            )
        standing.append(one)
    return standing


def pushed_before(ledger: Ledger, drafts: Sequence[Draft]) -> dict[int, Before]:
    """`id` of draft -> what its key was used for, of the drafts whose key was used.

    For the others `key_generation` is set to what can be tried.

    Raises:
        ConflictError: a key was used with another mask, or for a version that is gone since.
    """
    if not drafts:
        return {}
    # Keys before the catalogue: what is reserved and not there was not in the log at that moment.
    reserved = _reserved(ledger, drafts)
    names = sorted({(draft.owner, draft.name) for draft in drafts})
    condition, params = any_of(("owner", "name"), names)
    by_key: dict[tuple[str, str, str], list[Version]] = {}
    for version in versions_where(
        ledger.fresh_now(), f"{condition} AND state IS NOT NULL", params, rest="ORDER BY version"
    ):
        key = (version.record["owner"], version.record["name"], version.push)
        by_key.setdefault(key, []).append(version)
    found: dict[int, Before] = {}
    for draft in drafts:
        versions = by_key.get((draft.owner, draft.name, draft.push.key or ""))
        if versions:
            found[id(draft)] = Before(_usable(draft, versions))
            continue
        event = _undone(ledger, draft, reserved[id(draft)])
        if event is not None:
            version = Version(event["concept"], event["push"], event["history"])
            found[id(draft)] = Before(concept_of(version), event)
    return found


def decided_versions(
    documents: Iterable[tuple[str, Event]],
) -> dict[tuple[str, str, str], int]:
    """(owner, name, push key) -> the version it stands for, of (key, event) of reservations."""
    latest: dict[tuple[str, str, str], tuple[int, int]] = {}
    for key, event in documents:
        reserved = reservations.parse_key(key)
        if reserved is not None and reserved.push_key:
            what = (reserved.owner, reserved.name, event["push"])
            claim = (reserved.number, event["concept"]["version"])
            latest[what] = max(claim, latest.get(what, (0, 0)))
    return {what: version for what, (_, version) in latest.items()}


def _reserved(ledger: Ledger, drafts: Sequence[Draft]) -> dict[int, Event | None]:
    """`id` of draft -> the push for which its key is reserved, in the generation it is at."""
    keys = {_key_of(draft): draft for draft in drafts}
    return {
        id(keys[key]): None if data is None else reservations.decode_reservation(key, data)
        for key, data in ledger.store.get_many(keys)
    }


def _key_of(draft: Draft) -> str:
    return reservations.push_key(
        draft.owner, draft.name, draft.push.key or "", draft.key_generation
    )


def _usable(draft: Draft, versions: Sequence[Version]) -> Concept:
    """The version that a key made, as long as it can be used."""
    usable = [version for version in versions if not version.removed and not version.pruned]
    version = usable[0] if usable else versions[-1]
    _require_same_mask(draft, version.record)
    if not usable:
        ref = "{owner}/{name}:{version}".format(**version.record)
        raise ConflictError(
            f"key {quote(draft.push.key)} was used to push {ref}, which was removed since"
            + (
                " and pruned. Push with a new key"
                if version.pruned
                else f". Show it again (cones restore {ref}), or push with a new key"
            )
        )
    return concept_of(version)


def _undone(ledger: Ledger, draft: Draft, event: Event | None) -> Event | None:
    """The push that is decided for a key and not in the log, as long as it can be finished.

    It cannot once its blob was pruned as nobody's, or its number was purged: then the key's next
    generation decides.
    """
    store = ledger.store
    while event is not None:
        record = event["concept"]
        purged = reservations.highest_purged(store, ledger.registry_id, draft.owner, draft.name)
        if record["version"] > purged and store.head(blob_key(record["blob_digest"])):
            _require_same_mask(draft, record)
            return event
        draft.key_generation += 1
        event = _reserved(ledger, [draft])[id(draft)]
    return None


def _require_same_mask(draft: Draft, record: Mapping[str, Any]) -> None:
    if record["mask_digest"] != draft.record["mask_digest"]:
        raise ConflictError(
            f"key {quote(draft.push.key)} was used to push {record['owner']}/{record['name']}:"
            f"{record['version']} with another mask. Use a new key for a new mask"
        )
