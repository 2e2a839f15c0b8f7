"""Push: blobs first, then version numbers, then one segment that makes them true.

A crash after a blob leaves a blob nobody refers to, a crash after a reservation leaves a number
nobody uses; both are harmless. With the segment, everything is there at once.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import canonical
from cones_registry.catalog.events import Event, check_words
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import concept_of, highest_versions, versions_where
from cones_registry.catalog.segments import MAX_EVENTS, Segment, encode_segment
from cones_registry.codec import encode, read_footer
from cones_registry.digest import Digest, quote, sha256_bytes
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    LimitExceededError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.manifest import Concept, Provenance, Ref, Scope, parse_ref
from cones_registry.mask import ConceptMask
from cones_registry.registry import reservations
from cones_registry.registry.bases import Base, Bases, base_for
from cones_registry.registry.blob_cache import blob_key
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.quotas import Added, Quotas
from cones_registry.store import KeyExistsError

MAX_KEY_LENGTH: Final = 200


@dataclass(frozen=True)
class Push:
    """One item of `push_many`, or the arguments of `push`.

    Attributes:
        ref: `[owner/]name`; the registry gives the version.
        mask: what is pushed.
        base: fingerprint or BaseModel; None: the layer table alone, the weights not pinned.
        scope: where it acts, "prompt" or "subject".
        tags, note, token, class_noun, provenance: as in `Concept`.
        key: idempotency key: a second push with it to the same concept returns the first's version.
    """

    ref: str
    mask: ConceptMask
    base: Any = None
    scope: Scope = "prompt"
    tags: Sequence[str] = ()
    note: str = ""
    token: str | None = None
    class_noun: str | None = None
    provenance: Provenance | None = None
    key: str | None = None


@dataclass
class _Draft:
    """A push on its way to a version: `record` lacks version and blob until they are known."""

    push: Push
    owner: str
    name: str
    base: Base
    record: dict[str, Any]
    history: tuple[Mapping[str, Any], ...]
    data: bytes | None = None
    event: Event | None = None


def parse_push(item: Any) -> Push:
    """A `Push`, `(ref, mask)`, `(ref, mask, {options})` or `{"ref": …, "mask": …, …}` as a Push."""
    try:
        if isinstance(item, Push):
            return item
        if isinstance(item, Mapping):
            return Push(**item)
        if isinstance(item, tuple | list) and len(item) in (2, 3):
            return Push(item[0], item[1], **(item[2] if len(item) == 3 else {}))
    except TypeError as error:
        raise UsageError(f"cannot push this item: {error}") from error
    raise UsageError(
        f"cannot push {type(item).__name__}; expected a Push, (ref, mask) or (ref, mask, options)"
    )


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
        drafts = [self._draft(push) for push in pushes]
        content = sha256_bytes(
            canonical(
                [
                    {
                        **draft.record,
                        "created": "",
                        "key": draft.push.key or "",
                        "provenance": _provenance_json(draft.push.provenance),
                    }
                    for draft in drafts
                ]
            )
        )
        unclear = self._unclear.pop(content, None)
        if unclear is not None:
            return self._commit(content, *unclear)
        known = [self._by_key(draft) if draft.push.key else None for draft in drafts]
        new = [draft for draft, concept in zip(drafts, known, strict=True) if concept is None]
        if new:
            pushed = iter(self._push_new(content, new))
            known = [concept or next(pushed) for concept in known]
        return [concept for concept in known if concept is not None]

    # -- one step each ----------------------------------------------------------------------------

    def _draft(self, push: Push) -> _Draft:
        """Everything that can be refused, refused."""
        ref = parse_ref(push.ref) if not isinstance(push.ref, Ref) else push.ref
        if ref.version is not None or ref.alias is not None or ref.digest is not None:
            raise UsageError(
                f"cannot push to {str(ref)!r}: the registry gives the version. "
                f"Push to {ref.name!r}, then set aliases with `alias`"
            )
        mask = push.mask
        if not isinstance(mask, ConceptMask):
            raise UsageError(f"cannot push {type(mask).__name__}; expected a ConceptMask")
        if push.scope not in get_args(Scope):
            raise UsageError(f"scope is {quote(push.scope)}; expected one of {get_args(Scope)}")
        if isinstance(push.tags, str):
            raise UsageError("tags is one text; expected a sequence of texts")
        tags = tuple(sorted(set(push.tags)))
        check_words(tags, push.note, push.token, push.class_noun)
        if push.provenance is not None and not isinstance(push.provenance, Provenance):
            raise UsageError(f"provenance is {type(push.provenance).__name__}, not a Provenance")
        if push.key is not None and not (
            isinstance(push.key, str) and 0 < len(push.key) <= MAX_KEY_LENGTH
        ):
            raise UsageError(f"key must be a text of 1 to {MAX_KEY_LENGTH} characters")
        owner = ref.owner or self._default_owner
        base = base_for(mask, push.base)
        history = push.provenance.history if push.provenance else ()
        provenance = (
            dataclasses.replace(push.provenance, history=()).to_json() if push.provenance else None
        )
        record = {
            "owner": owner,
            "name": ref.name,
            "base": base.fingerprint,
            "mask_digest": mask.digest,
            "neuron_count": len(mask),
            "table_neuron_count": mask.table.neuron_count,
            "density": mask.density,
            "precision": mask.precision,
            "scope": push.scope,
            "token": push.token,
            "class_noun": push.class_noun,
            "tags": list(tags),
            "note": push.note,
            "created": _now(),
            "provenance": provenance,
        }
        try:
            canonical(record)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the provenance must hold only JSON values: {error}") from error
        return _Draft(push, owner, ref.name, base, record, tuple(history))

    def _push_new(self, content: Digest, drafts: list[_Draft]) -> list[Concept]:
        for base in {draft.base.fingerprint: draft.base for draft in drafts}.values():
            self._bases.ensure(base)
        self._find_equal_masks(drafts)
        numbers = self._next_numbers({(draft.owner, draft.name) for draft in drafts})
        for draft in drafts:
            draft.record["version"] = numbers[draft.owner, draft.name]
            numbers[draft.owner, draft.name] += 1
        self._write_blobs(drafts)
        by_number = {
            reservations.version_key(draft.owner, draft.name, draft.record["version"]): draft
            for draft in drafts
        }
        list(self._ledger.store.each(lambda key: self._reserve(by_number[key]), by_number))
        self._require_blobs(drafts)
        events = [draft.event for draft in drafts if draft.event is not None]
        segment = Segment(self._ledger.clock.next(), tuple(events))
        key, data = encode_segment(segment.stamp, events)
        return self._commit(content, segment, key, data, [_concept(draft) for draft in drafts])

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
        # New names, or names whose numbers were purged and are never given again.
        new = [name for name in names if not known[name]]
        store, registry_id = self._ledger.store, self._ledger.registry_id
        paths = {f"{owner}/{name}": (owner, name) for owner, name in new}

        def purged(path: str) -> tuple[str, int]:
            return path, reservations.highest_purged(store, registry_id, *paths[path])

        known.update({paths[path]: number for path, number in store.each(purged, paths)})
        return {name: number + 1 for name, number in known.items()}

    def _find_equal_masks(self, drafts: list[_Draft]) -> None:
        """Point drafts at the blob of an equal mask that some concept in use refers to."""
        wanted = {draft.record["mask_digest"] for draft in drafts}
        # A handle that only pushes looks once; later pushes of others it meets as equal masks only
        # after its next read. What it misses costs a second blob, nothing else.
        state = self._ledger.state() if self._ledger.has_synced else self._ledger.fresh_now()
        if not wanted & self._pushed and not _with_masks(state, wanted):
            return
        # Only what is in use right now: the blobs of removed concepts may be pruned.
        found = _with_masks(self._ledger.fresh_now(), wanted)
        for draft in drafts:
            for version in found.get(draft.record["mask_digest"], ()):
                if self._history_of(version) == draft.history and self._ledger.store.head(
                    blob_key(version.record["blob_digest"])
                ):
                    for name in ("blob_digest", "blob_bytes", "layout", "precision"):
                        draft.record[name] = version.record[name]
                    break

    def _history_of(self, version: Version) -> tuple[Mapping[str, Any], ...]:
        if not version.history:
            return ()
        try:
            return read_history(self._ledger, version.record["blob_digest"])
        except (NotFoundError, CorruptDataError):
            return ({"unreadable": True},)

    def _encode(self, draft: _Draft) -> None:
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
        data = encode(draft.push.mask, footer=concept)
        draft.data = data
        draft.record.update(
            blob_digest=sha256_bytes(data),
            blob_bytes=len(data),
            layout=read_footer(data)["layout"],
        )

    def _write_blobs(self, drafts: list[_Draft]) -> None:
        """Write new blobs; of equal masks within one commit only the first."""
        first: dict[tuple[Digest, bytes], _Draft] = {}
        for draft in drafts:
            if "blob_digest" not in draft.record:
                first.setdefault(_content(draft), draft)
        by_key = {str(number): draft for number, draft in enumerate(first.values())}
        store = self._ledger.store
        if self._quotas.limits({draft.owner for draft in drafts}):
            for draft in first.values():
                self._encode(draft)
            self._quotas.require_room(_added(drafts))

        def write(number: str) -> None:
            draft = by_key[number]
            if draft.data is None:
                self._encode(draft)
            store.put_new(blob_key(draft.record["blob_digest"]), draft.data or b"")

        # Encoding one mask while others wait for the store.
        list(store.each(write, by_key))
        for draft in drafts:
            if "blob_digest" not in draft.record:
                original = first[_content(draft)]
                for name in ("blob_digest", "blob_bytes", "layout", "precision"):
                    draft.record[name] = original.record[name]

    def _require_blobs(self, drafts: list[_Draft]) -> None:
        """Just before the commit: a blob that was found, not written, must still be there."""
        shared = {d.record["blob_digest"] for d in drafts if d.data is None}
        shared -= {d.record["blob_digest"] for d in drafts if d.data is not None}
        for digest in sorted(shared):
            if self._ledger.store.head(blob_key(digest)) is None:
                raise ConflictError(
                    f"blob {digest} was pruned while an equal mask was pushed. Push again"
                )

    def _reserve(self, draft: _Draft) -> None:
        """Claim the version number; when it is taken, the next free one."""
        store = self._ledger.store
        while True:
            event: Event = {
                "type": "push",
                "concept": draft.record,
                "push": draft.push.key or "",
                "history": bool(draft.history),
            }
            key = reservations.version_key(draft.owner, draft.name, draft.record["version"])
            try:
                store.put_new(key, reservations.encode_reservation(event))
                draft.event = event
                return
            except KeyExistsError:
                numbers = reservations.reserved_versions(store, draft.owner, draft.name)
                draft.record["version"] = max([draft.record["version"], *numbers]) + 1
                if draft.data is not None:
                    # The footer holds the number too.
                    self._encode(draft)
                    store.put_new(blob_key(draft.record["blob_digest"]), draft.data)

    def _by_key(self, draft: _Draft) -> Concept | None:
        """The version an earlier push with this key made, None if there is none."""
        state = self._ledger.fresh_now()
        owner, name, key = draft.owner, draft.name, draft.push.key
        for version in versions_where(
            state, "owner = ? AND name = ? AND state IS NOT NULL", [owner, name]
        ):
            if version.push == key:
                self._require_same_mask(draft, version.record)
                return concept_of(version)
        # Reserved, but not in the log: that push never got so far, or its segment is on its way.
        store = self._ledger.store
        for number in reversed(reservations.reserved_versions(store, owner, name)):
            reserved = reservations.version_key(owner, name, number)
            event = reservations.decode_reservation(reserved, store.get(reserved))
            if event["push"] == key:
                record = event["concept"]
                self._require_same_mask(draft, record)
                if store.head(blob_key(record["blob_digest"])) is None:
                    return None
                # Said twice, it is one version: the fold takes a version's first push.
                self._ledger.commit([event])
                return concept_of(Version(record, event["push"], event["history"]))
        return None

    def _require_same_mask(self, draft: _Draft, record: Mapping[str, Any]) -> None:
        if record["mask_digest"] != draft.record["mask_digest"]:
            raise ConflictError(
                f"key {quote(draft.push.key)} was used to push {record['owner']}/{record['name']}:"
                f"{record['version']} with another mask. Use a new key for a new mask"
            )


def _content(draft: _Draft) -> tuple[Digest, bytes]:
    """What two drafts must have in common to share a blob."""
    return draft.record["mask_digest"], canonical([dict(each) for each in draft.history])


def _added(drafts: Sequence[_Draft]) -> dict[str, Added]:
    """What drafts would add to each owner."""
    added: dict[str, Added] = {}
    for draft in drafts:
        entry = added.setdefault(draft.owner, Added())
        entry.names.add(draft.name)
        if draft.data is not None:
            entry.blobs[draft.record["blob_digest"]] = draft.record["blob_bytes"]
    return added


def _with_masks(state: State, digests: set[Digest]) -> dict[Digest, list[Version]]:
    """mask digest -> versions in use with that mask."""
    found: dict[Digest, list[Version]] = {}
    for version in versions_where(
        state, "mask_digest IN (SELECT unnest(?)) AND NOT removed AND NOT pruned", [list(digests)]
    ):
        found.setdefault(version.record["mask_digest"], []).append(version)
    return found


def read_history(ledger: Ledger, blob: Digest) -> tuple[Mapping[str, Any], ...]:
    """The loss history in a blob's footer; empty if it has none."""
    return history_of(ledger.blobs.get(blob))


def history_of(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """The loss history in the footer of a blob's bytes."""
    concept = read_footer(data).get("concept") or {}
    provenance = concept.get("provenance") or {}
    history = provenance.get("history", []) if isinstance(provenance, dict) else None
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise CorruptDataError("the footer of a blob has a history that is not a list of objects")
    return tuple(history)


def _concept(draft: _Draft) -> Concept:
    concept = concept_of(Version(draft.record))
    return dataclasses.replace(concept, provenance=draft.push.provenance)


def _provenance_json(provenance: Provenance | None) -> dict[str, Any] | None:
    return provenance.to_json() if provenance else None


def _now() -> str:
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.isoformat(timespec="microseconds") + "Z"
