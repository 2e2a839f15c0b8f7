"""Push: masks and records side by side, then one segment that makes them true.

A crash after a mask leaves a mask nobody refers to, a crash after a record leaves a number nobody
uses; both are harmless. With the segment, everything is there at once. It is acknowledged when the
masks were seen to be there after it (see ``deletions``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cones_registry.catalog import keys
from cones_registry.catalog.events import Pushed
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import any_of, concept_of, highest_versions, versions_where
from cones_registry.catalog.segments import MAX_EVENTS, Segment, encode_segment
from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    LimitExceededError,
    NotFoundError,
    StoreUnavailableError,
)
from cones_registry.record import Concept, Record, concept_from
from cones_registry.registry import claims
from cones_registry.registry.bases import Bases
from cones_registry.registry.deletions import Stopwatch
from cones_registry.registry.drafts import Draft, make_draft, parse_pushes
from cones_registry.registry.quotas import Added, Quotas
from cones_registry.registry.session import Session
from cones_registry.store import KeyExistsError


@dataclass
class _Pending:
    """A commit on its way: what it holds, and how to put again what others may delete.

    Attributes:
        segment, key, data: the commit.
        masks: mask digest -> its bytes; None where another process made it.
        previews: preview digest -> its bytes.
        concepts: what the caller gets, in the order of the items.
        since: when its masks were first looked at.
        sent: whether it was tried, so that it may be in the log.
    """

    segment: Segment
    key: str
    data: bytes
    masks: dict[Digest, bytes | None]
    previews: dict[Digest, bytes]
    concepts: list[Concept]
    since: Stopwatch
    sent: bool = False


class Pusher:
    """Pushes of one registry handle."""

    def __init__(self, session: Session, bases: Bases, quotas: Quotas, default_owner: str) -> None:
        self._session = session
        self._bases = bases
        self._quotas = quotas
        self._default_owner = default_owner
        self._highest: dict[tuple[str, str], int] = {}
        # Commits whose acknowledgement was lost, by content: the same push again is the same
        # commit.
        self._unclear: dict[Digest, _Pending] = {}

    def push_many(self, items: Iterable[object], *, verb: str = "") -> list[Concept]:
        """Push several masks in one commit: all become visible at once, or none."""
        self._session.require_writable()
        since = Stopwatch()
        pushes = [push for item in items for push in parse_pushes(item)]
        if not pushes:
            return []
        if len(pushes) > MAX_EVENTS:
            raise LimitExceededError(
                f"{len(pushes)} masks in one commit; at most {MAX_EVENTS} fit. Use several commits"
            )
        drafts = [make_draft(push, self._default_owner) for push in pushes]
        content = sha256_bytes(b"".join(draft.content for draft in drafts))
        unclear = self._unclear.pop(content, None)
        if unclear is not None and self._still_claimed(unclear):
            return self._commit(content, unclear)
        # Which draft of a key stands for all of it, and its version if that is known.
        distinct = _one_of_each_key(drafts)
        different = list({id(draft): draft for draft in distinct}.values())
        before = self._pushed_before([draft for draft in different if draft.push.key])
        new = [draft for draft in different if id(draft) not in before]
        if new:
            self._write_new(new, before)
            new = [draft for draft in new if id(draft) not in before]
        concepts = {id(draft): concept_from(draft.done) for draft in new}
        concepts |= {known: concept for known, (concept, _) in before.items()}
        pushed = [concepts[id(draft)] for draft in distinct]
        records = [record for _, record in before.values() if record is not None]
        masks = _masks_of(different, before)
        previews: dict[Digest, bytes] = {}
        for draft in new:
            masks[draft.done.blob_digest] = draft.encode()
            previews |= _previews(draft)
            records.append(draft.done)
        if not records:
            return pushed
        self._session.notices.settle(masks, lambda gone: self._put_again(gone, masks), since)
        events = [Pushed(record.without_history()) for record in records]
        segment = self._session.segment(events, verb=verb)
        pending = _Pending(segment, *encode_segment(segment), masks, previews, pushed, since)
        return self._commit(content, pending)

    # -- one step each ----------------------------------------------------------------------------

    def _write_new(
        self, drafts: list[Draft], before: dict[int, tuple[Concept, Record | None]]
    ) -> None:
        """All that goes before the commit. Drafts whose key another push had first go to
        ``before``."""
        for base in {draft.base.fingerprint: draft.base for draft in drafts}.values():
            self._bases.ensure(base)
        first: dict[tuple[Digest, bytes], Draft] = {}
        for draft in drafts:
            first.setdefault(draft.mask_content, draft)
        if self._quotas.limits({draft.owner for draft in drafts}):
            for draft in first.values():
                draft.encode()
            for draft in drafts:
                draft.share(first[draft.mask_content])
            self._quotas.require_room(_added_by(drafts))
        numbers = self._next_numbers({draft.place for draft in drafts})
        by_key: dict[str, Draft] = {}

        def objects() -> Iterator[tuple[str, bytes]]:
            for draft in self._session.watched("pushing", drafts, len(drafts)):
                one = first[draft.mask_content]
                if one is draft:
                    data = draft.encode()
                    yield keys.mask_key(draft.said["blob_digest"]), data
                draft.share(one)
                for digest, picture in _previews(draft).items():
                    yield keys.preview_key(digest), picture
                record = draft.number(numbers[draft.place])
                numbers[draft.place] += 1
                key = keys.version_key(*record.place)
                by_key[key] = draft
                yield key, claims.encode_record(record)

        store = self._session.store
        # Side by side, so that neither the disk nor the encoder ever waits for the other.
        for key in store.put_many(objects()):
            if key not in by_key:
                raise CorruptDataError(
                    f"{key} in {store.url} is damaged: it holds other bytes than its name says. "
                    "See: cones check --read-data"
                )
            self._claim_another(by_key[key])
        self._leave_purged_numbers(drafts)
        self._claim_keys([draft for draft in drafts if draft.push.key], before)

    def _next_numbers(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """The number after the highest known of each concept."""
        known = highest_versions(self._session.state(), names)
        for name in names:
            known[name] = max(known.get(name, 0), self._highest.get(name, 0))
        return {name: number + 1 for name, number in known.items()}

    def _claim_another(self, draft: Draft, above: int = 0) -> None:
        """Claim the next free number, since the one hoped for is taken or was purged."""
        store = self._session.store
        while True:
            numbers = claims.claimed_numbers(store, draft.owner, draft.name)
            record = draft.number(max([draft.done.version, above, *numbers]) + 1)
            try:
                store.put_new(keys.version_key(*record.place), claims.encode_record(record))
                return
            except KeyExistsError:
                continue

    def _leave_purged_numbers(self, drafts: Sequence[Draft]) -> None:
        """A number that was purged is never given again, and its push would not be shown.

        Looked for after the claim: a purge says so before it takes records away, so whoever could
        claim a purged number finds it said.
        """
        store = self._session.store
        highest = self._highest_purged({draft.place for draft in drafts})
        for draft in drafts:
            while draft.done.version <= highest[draft.place]:
                store.delete(keys.version_key(*draft.done.place))  # it names who was purged
                self._claim_another(draft, highest[draft.place])

    def _highest_purged(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        session = self._session
        places = {f"{owner}/{name}": (owner, name) for owner, name in names}

        def purged(place: str) -> tuple[tuple[str, str], int]:
            owner, name = places[place]
            number = claims.highest_purged(session.store, session.registry_id, owner, name)
            return (owner, name), number

        return dict(session.store.each(purged, places))

    def _claim_keys(
        self, drafts: list[Draft], before: dict[int, tuple[Concept, Record | None]]
    ) -> None:
        """Of several pushes with one key the first to claim it is the version of all.

        After mask and record, so that whoever finds the key may finish the push. The number and the
        mask of those who come too late are left unused.
        """
        while drafts:
            by_key = {_key_of(draft): draft for draft in drafts}
            taken = self._session.store.put_many(
                (key, claims.encode_key_claim(draft.done)) for key, draft in by_key.items()
            )
            before |= self._pushed_before([by_key[key] for key in taken])
            drafts = [by_key[key] for key in taken if id(by_key[key]) not in before]

    def _commit(self, content: Digest, pending: _Pending) -> list[Concept]:
        session = self._session
        try:
            session.publish(pending.segment, pending.key, pending.data)
            may_be_purged = session.notices.settle(
                pending.masks, lambda gone: self._put_again(gone, pending.masks), pending.since
            )
            purged = may_be_purged and not self._still_claimed(pending)
        except (StoreUnavailableError, ConflictError):
            pending.sent = True
            self._unclear[content] = pending
            raise
        if purged:
            # What it says names who was purged, and is shown to nobody.
            session.store.delete(pending.key)
            raise ConflictError(
                "what was pushed was purged at the same moment. Nothing was pushed; if it is to "
                "be here again, push again"
            )
        for event in pending.segment.events:
            if isinstance(event, Pushed):
                owner, name, version = event.key
                self._highest[owner, name] = max(version, self._highest.get((owner, name), 0))
        return pending.concepts

    def _still_claimed(self, pending: _Pending) -> bool:
        """Whether none of the numbers of a commit was purged since; masks and pictures that were
        deleted since are put again."""
        places = [event.key for event in pending.segment.events if isinstance(event, Pushed)]
        highest = self._highest_purged({(owner, name) for owner, name, _ in places})
        if any(version <= highest[owner, name] for owner, name, version in places):
            return False
        if pending.sent:
            store = self._session.store
            gone = [each for each in pending.masks if store.head(keys.mask_key(each)) is None]
            self._put_again(gone, pending.masks)
            store.put_many((keys.preview_key(d), data) for d, data in pending.previews.items())
        return True

    def _put_again(self, gone: list[Digest], masks: Mapping[Digest, bytes | None]) -> None:
        for digest in gone:
            data = masks[digest]
            if data is None:
                raise ConflictError(f"mask {digest} was pruned meanwhile. Push with a new key")
            self._session.store.put_new(keys.mask_key(digest), data)

    # -- keys -------------------------------------------------------------------------------------

    def _pushed_before(self, drafts: Sequence[Draft]) -> dict[int, tuple[Concept, Record | None]]:
        """``id`` of draft -> (its version, its record if that is not in the log yet).

        Of the drafts whose key was used. For the others ``key_generation`` is set to what can be
        tried.

        Raises:
            ConflictError: a key was used with another mask, or for a version that is gone since.
        """
        if not drafts:
            return {}
        # Keys before the catalogue: what is claimed and not there was not in the log then.
        claimed = self._claimed(drafts)
        names = sorted({draft.place for draft in drafts})
        condition, params = any_of(("owner", "name"), names)
        by_key: dict[tuple[str, str, str], list[Version]] = {}
        for version in versions_where(
            self._session.fresh_now(), f"{condition} AND key <> ''", params, rest="ORDER BY version"
        ):
            record = version.record
            by_key.setdefault((record.owner, record.name, record.key), []).append(version)
        found: dict[int, tuple[Concept, Record | None]] = {}
        for draft in drafts:
            versions = by_key.get((*draft.place, draft.push.key or ""))
            if versions:
                found[id(draft)] = _usable(draft, versions), None
                continue
            undone = self._undone(draft, claimed[id(draft)])
            if undone is not None:
                found[id(draft)] = concept_from(undone), undone
        return found

    def _claimed(self, drafts: Sequence[Draft]) -> dict[int, claims.KeyClaim | None]:
        """``id`` of draft -> what its key stands for, in the generation it is at."""
        by_key = {_key_of(draft): draft for draft in drafts}
        return {
            id(by_key[key]): None if data is None else claims.decode_key_claim(key, data)
            for key, data in self._session.store.get_many(by_key)
        }

    def _undone(self, draft: Draft, claim: claims.KeyClaim | None) -> Record | None:
        """The push that is decided for a key and not in the log, as long as it can be finished.

        It cannot once its mask was pruned as nobody's, or its number was purged: then the key's
        next generation decides.
        """
        store = self._session.store
        highest = self._highest_purged({draft.place})[draft.place] if claim else 0
        while claim is not None:
            try:
                record = claims.read_record(store, claim.owner, claim.name, claim.version)
            except NotFoundError:
                record = None
            if (
                record is not None
                and record.version > highest
                and store.head(keys.mask_key(record.blob_digest))
            ):
                _require_same_mask(draft, record)
                return record
            draft.key_generation += 1
            claim = self._claimed([draft])[id(draft)]
        return None


def _masks_of(
    drafts: Sequence[Draft], before: dict[int, tuple[Concept, Record | None]]
) -> dict[Digest, bytes | None]:
    """The masks of pushes that are finished for others under their key: a prune may take them at
    this moment, since nobody used them. None where another version encoded them otherwise."""
    masks: dict[Digest, bytes | None] = {}
    for draft in drafts:
        _, record = before.get(id(draft), (None, None))
        if record is not None:
            data = draft.encode()
            masks[record.blob_digest] = data if sha256_bytes(data) == record.blob_digest else None
    return masks


def _one_of_each_key(drafts: Sequence[Draft]) -> list[Draft]:
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


def _key_of(draft: Draft) -> str:
    return keys.push_key(draft.owner, draft.name, draft.push.key or "", draft.key_generation)


def _usable(draft: Draft, versions: Sequence[Version]) -> Concept:
    """The version that a key made, as long as it can be used."""
    usable = [version for version in versions if not version.removed]
    version = usable[0] if usable else versions[-1]
    _require_same_mask(draft, version.record)
    if not usable:
        ref = version.record.ref
        raise ConflictError(
            f"key {quote(draft.push.key)} was used to push {ref}, which was removed since"
            + (
                " and pruned. Push with a new key"
                if version.pruned
                else f". Show it again (cones restore {ref}), or push with a new key"
            )
        )
    return concept_of(version)


def _require_same_mask(draft: Draft, record: Record) -> None:
    if record.mask_digest != draft.said["mask_digest"]:
        raise ConflictError(
            f"key {quote(draft.push.key)} was used to push {record.ref} with another mask. "
            "Use a new key for a new mask"
        )


def _added_by(drafts: Sequence[Draft]) -> dict[str, Added]:
    """What drafts would add to each owner."""
    added: dict[str, Added] = {}
    for draft in drafts:
        entry = added.setdefault(draft.owner, Added())
        entry.names.add(draft.name)
        entry.blobs[draft.said["blob_digest"]] = draft.said["blob_bytes"]
    return added


def _previews(draft: Draft) -> dict[Digest, bytes]:
    return dict(zip(draft.said["previews"], draft.push.previews, strict=True))
