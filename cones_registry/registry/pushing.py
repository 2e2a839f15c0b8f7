"""Push: blobs and version numbers side by side, then one segment that makes them true.

A crash after a blob leaves a blob nobody refers to, a crash after a reservation leaves a number
nobody uses; both are harmless. With the segment, everything is there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cones_registry.bitmap import keep_positions
from cones_registry.catalog.events import Event
from cones_registry.catalog.reader import highest_versions
from cones_registry.catalog.segments import MAX_EVENTS, Segment, encode_segment
from cones_registry.codec import encode_smallest
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    LimitExceededError,
    StoreUnavailableError,
)
from cones_registry.manifest import Concept
from cones_registry.registry import reservations
from cones_registry.registry.bases import Bases
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.drafts import (
    Draft,
    added_by,
    content_of,
    make_draft,
    parse_push,
    pushed_concept,
)
from cones_registry.registry.equal_masks import find_equal_masks, share_blob
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.push_keys import Before, one_of_each_key, pushed_before
from cones_registry.registry.quotas import Quotas
from cones_registry.store import KeyExistsError


class Pusher:
    """Pushes of one registry handle."""

    def __init__(self, ledger: Ledger, bases: Bases, quotas: Quotas, default_owner: str) -> None:
        self._ledger = ledger
        self._bases = bases
        self._quotas = quotas
        self._default_owner = default_owner
        self._highest: dict[tuple[str, str], int] = {}
        self._pushed: set[Digest] = set()  # masks pushed through this handle
        # Commits whose acknowledgement was lost, by content: the same push again is the same
        # commit.
        self._unclear: dict[Digest, tuple[Segment, str, bytes, list[Concept]]] = {}

    def push_many(self, items: Iterable[Any]) -> list[Concept]:
        """Push several masks in one commit: all become visible at once, or none."""
        self._ledger.require_writable()
        pushes = [parse_push(item) for item in items]
        if not pushes:
            return []
        if len(pushes) > MAX_EVENTS:
            raise LimitExceededError(
                f"{len(pushes)} masks in one commit; at most {MAX_EVENTS} fit. Use several commits"
            )
        drafts = [make_draft(push, self._default_owner) for push in pushes]
        content = sha256_bytes(b"".join(draft.content for draft in drafts))
        unclear = self._unclear.pop(content, None)
        if unclear is not None:
            return self._commit(content, *unclear)
        # Which draft of a key stands for all of it, and what it came to if that is known.
        distinct = one_of_each_key(drafts)
        different = list({id(draft): draft for draft in distinct}.values())
        before = pushed_before(self._ledger, [draft for draft in different if draft.push.key])
        new = [draft for draft in different if id(draft) not in before]
        if new:
            self._write_new(new, before)
            new = [draft for draft in new if id(draft) not in before]
        concepts = {id(draft): pushed_concept(draft) for draft in new}
        concepts |= {known: each.concept for known, each in before.items()}
        pushed = [concepts[id(draft)] for draft in distinct]
        events = [each.event for each in before.values() if each.event is not None]
        events += [draft.event for draft in new if draft.event is not None]
        if not events:
            return pushed
        segment = Segment(self._ledger.clock.next(), tuple(events))
        return self._commit(content, segment, *encode_segment(segment.stamp, events), pushed)

    # -- one step each ----------------------------------------------------------------------------

    def _write_new(self, drafts: list[Draft], before: dict[int, Before]) -> None:
        """All that goes before the commit; drafts whose key others had first go to `before`."""
        for base in {draft.base.fingerprint: draft.base for draft in drafts}.values():
            self._bases.ensure(base)
        find_equal_masks(self._ledger, drafts, self._pushed)
        numbers = self._next_numbers({(draft.owner, draft.name) for draft in drafts})
        for draft in drafts:
            draft.record["version"] = numbers[draft.owner, draft.name]
            numbers[draft.owner, draft.name] += 1
        self._write(drafts)
        self._leave_purged_numbers(drafts)
        self._reserve_keys([draft for draft in drafts if draft.push.key], before)
        self._require_blobs([draft for draft in drafts if id(draft) not in before])

    def _commit(
        self, content: Digest, segment: Segment, key: str, data: bytes, concepts: list[Concept]
    ) -> list[Concept]:
        try:
            self._ledger.publish(segment, key, data)
        except StoreUnavailableError:
            self._unclear[content] = (segment, key, data, concepts)
            raise
        for event in segment.events:
            concept = event["concept"]
            name = (concept["owner"], concept["name"])
            self._highest[name] = max(concept["version"], self._highest.get(name, 0))
            self._pushed.add(concept["mask_digest"])
        return concepts

    def _next_numbers(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """The number after the highest known of each concept."""
        known = highest_versions(self._ledger.state(), names)
        for name in names:
            known[name] = max(known.get(name, 0), self._highest.get(name, 0))
        return {name: number + 1 for name, number in known.items()}

    def _encode(self, draft: Draft) -> bytes:
        """Encode the mask with the record in its footer."""
        concept = {
            name: value
            for name, value in draft.record.items()
            if name not in ("blob_digest", "blob_bytes", "layout")
        }
        provenance = draft.record["provenance"]
        if provenance is not None:
            concept["provenance"] = {**provenance, "history": [dict(h) for h in draft.history]}
        if draft.push.key:
            concept["push"] = draft.push.key
        mask = draft.push.mask
        with keep_positions(mask.words):
            layout, data = encode_smallest(mask, footer=concept, ranks=draft.ranks)
            draft.add_sketch()
        draft.data = data
        draft.record.update(blob_digest=sha256_bytes(data), blob_bytes=len(data), layout=layout)
        return data

    def _write(self, drafts: list[Draft]) -> None:
        """Write the blobs that are new and reserve the version numbers."""
        # Of equal masks within one commit only the first is written.
        first: dict[tuple[Digest, bytes, bytes], Draft] = {}
        for draft in drafts:
            if "blob_digest" not in draft.record:
                first.setdefault(content_of(draft), draft)
        if self._quotas.limits({draft.owner for draft in drafts}):
            for draft in first.values():
                self._encode(draft)
            self._quotas.require_room(added_by(drafts))
        by_key: dict[str, Draft] = {}

        def blob(draft: Draft) -> tuple[str, bytes]:
            data = draft.data or self._encode(draft)
            return blob_key(draft.record["blob_digest"]), data

        def number(draft: Draft) -> tuple[str, bytes]:
            if "blob_digest" not in draft.record:
                share_blob(draft, first[content_of(draft)].record)
            key, data = _reservation(draft)
            by_key[key] = draft
            return key, data

        def both() -> Iterator[tuple[str, bytes]]:
            own = {id(draft) for draft in first.values()}
            for draft in drafts:
                if id(draft) in own:
                    yield blob(draft)
                yield number(draft)

        store = self._ledger.store
        # Side by side, so that neither the disk nor the encoder ever waits for the other.
        for key in store.put_many(both()):
            if key not in by_key:
                raise CorruptDataError(
                    f"{key} in {store.url} is damaged: it holds other bytes than its name says. "
                    "See: cones check --read-data"
                )
            self._reserve_another(by_key[key])

    def _leave_purged_numbers(self, drafts: list[Draft]) -> None:
        """A number that was purged is never given again, and its push would not be shown.

        Looked for after the reservation: a purge says so before it takes reservations away, so
        whoever could reserve a purged number finds it said.
        """
        store, registry_id = self._ledger.store, self._ledger.registry_id
        places = {f"{draft.owner}/{draft.name}": (draft.owner, draft.name) for draft in drafts}

        def purged(place: str) -> tuple[tuple[str, str], int]:
            owner, name = places[place]
            return (owner, name), reservations.highest_purged(store, registry_id, owner, name)

        highest = dict(store.each(purged, places))
        for draft in drafts:
            while draft.record["version"] <= highest[draft.owner, draft.name]:
                self._reserve_another(draft, highest[draft.owner, draft.name])

    def _reserve_keys(self, drafts: list[Draft], before: dict[int, Before]) -> None:
        """Of several pushes with one key the first to reserve it is the version of all.

        After blob and number, so that whoever finds the key may finish the push. The number and the
        blob of those who come too late are left unused.
        """
        while drafts:
            by_key = {
                reservations.push_key(d.owner, d.name, d.push.key or "", d.key_generation): d
                for d in drafts
            }
            taken = self._ledger.store.put_many(
                (key, reservations.encode_reservation(draft.event or {}))
                for key, draft in by_key.items()
            )
            before |= pushed_before(self._ledger, [by_key[key] for key in taken])
            drafts = [by_key[key] for key in taken if id(by_key[key]) not in before]

    def _require_blobs(self, drafts: list[Draft]) -> None:
        """Just before the commit: a blob that was found, not written, must still be there."""
        shared = {d.record["blob_digest"] for d in drafts if d.data is None}
        shared -= {d.record["blob_digest"] for d in drafts if d.data is not None}
        for digest in sorted(shared):
            if self._ledger.store.head(blob_key(digest)) is None:
                raise ConflictError(
                    f"blob {digest} was pruned while an equal mask was pushed. Push again"
                )

    def _reserve_another(self, draft: Draft, above: int = 0) -> None:
        """Claim the next free version number, since the one hoped for is taken or was purged."""
        store = self._ledger.store
        while True:
            numbers = reservations.reserved_versions(store, draft.owner, draft.name)
            draft.record["version"] = max([draft.record["version"], above, *numbers]) + 1
            if draft.data is not None:
                # The footer holds the number too.
                data = self._encode(draft)
                store.put_new(blob_key(draft.record["blob_digest"]), data)
            try:
                store.put_new(*_reservation(draft))
                return
            except KeyExistsError:
                continue


def _reservation(draft: Draft) -> tuple[str, bytes]:
    """(key, bytes) of the reservation of a draft's number; its event is the one to commit."""
    draft.add_sketch()
    event: Event = {
        "type": "push",
        "concept": draft.record,
        "push": draft.push.key or "",
        "history": bool(draft.history),
        "sketch": draft.sketch,
    }
    draft.event = event
    key = reservations.version_key(draft.owner, draft.name, draft.record["version"])
    return key, reservations.encode_reservation(event)
