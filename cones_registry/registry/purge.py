"""Purge: everything of one owner or one concept, gone for good, with proof and a receipt.

Order, so that a kill at any step leaves something a second purge finishes: numbers are kept from
being given again, a notice names the masks that only the purged use (``deletions``), who uses them
is looked at once more, the purge is committed (from then on no reader shows it), masks, records and
claims go, the log is folded into a catalogue without it, and every object of before goes. Names
survive only as salted digests, which keep numbers from being given again; the receipt has not even
those. Nothing of others is read: a mask object says nothing of whose it is.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from cones_registry.catalog import keys, runs, segments
from cones_registry.catalog.clock import stamp_milliseconds
from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import MAX_DOCUMENT_BYTES, seal
from cones_registry.catalog.events import Condemned, Purged, Pushed
from cones_registry.catalog.fold import Version, name_digest
from cones_registry.catalog.reader import any_of, versions_where
from cones_registry.catalog.runs import Part, Table
from cones_registry.catalog.tables import RUN_TABLES
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.refs import Ref, check_name
from cones_registry.registry import claims
from cones_registry.registry.compaction import compact
from cones_registry.registry.deletions import Stopwatch
from cones_registry.registry.session import Session
from cones_registry.store import Store
from cones_registry.store.local import LocalStore

_COMPACTIONS: Final = 20
_PURGING: Final = "purging"
_PROVING: Final = "proving the absence"


@dataclass(frozen=True)
class PurgeReceipt:
    """Proof of a purge; says nothing of whom.

    Attributes:
        id: of the receipt, and its key below `receipts/`.
        registry_id, created: where and when (UTC).
        versions: how many were purged.
        removed_blobs: digests of the mask objects that are gone.
        spared_blobs: how many of its masks others use too; those stay, and say nothing of whose
            they are.
        records, segments, runs: how many objects of each kind were removed.
        freed_bytes: bytes of removed masks.
        scanned_objects, scanned_bytes: what was read afterwards to prove the absence.
        found: how often the purged names were found in it: 0.
        kept_by_store: what the store itself keeps of deleted objects, in words, "" if nothing: a
            bucket with versioning must be cleared of old versions with its own tools.
        digest: of the stored receipt.
    """

    id: str
    registry_id: str
    created: str
    versions: int
    removed_blobs: tuple[Digest, ...]
    spared_blobs: int
    records: int
    segments: int
    runs: int
    freed_bytes: int
    scanned_objects: int
    scanned_bytes: int
    found: int
    kept_by_store: str = ""
    digest: Digest = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
        }


@dataclass(frozen=True)
class PurgePlan:
    """What a purge would do; nothing changes until `execute`.

    Attributes:
        owner, name: whose, and which concept; `name` None: all of the owner.
        names: concept name -> highest version, of everything known or claimed.
        versions: how many versions the catalogue has.
        blobs: mask digest -> bytes, used by nobody else.
        shared: mask digest -> bytes, used by others too: they stay.
        previews: digests of pictures that nobody else's records point to.
        records: keys that go: records, claims, quotas.
        derived: refs of what others made from it, whose provenance names it: they go first.
        residue: segments, catalogue rows or unfinished files that still speak of it, where a purge
            or a push was broken off.
    """

    owner: str
    name: str | None
    names: dict[str, int]
    versions: int
    blobs: dict[Digest, int]
    shared: dict[Digest, int]
    previews: tuple[Digest, ...]
    records: tuple[str, ...]
    derived: tuple[str, ...]
    residue: int
    _session: Session = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """Bytes that `execute` frees."""
        return sum(self.blobs.values())

    @property
    def kept_by_store(self) -> str:
        """What the store itself will keep of the deleted objects, in words; "" if nothing."""
        return self._session.store.keeps_deleted()

    def execute(self) -> PurgeReceipt:
        """Purge, prove it, and keep the receipt. Masks that somebody else uses since stay.

        Raises:
            ConflictError: concepts of others were made from it and name it, or something of it
                came back while it was purged; purge again.
            StoreUnavailableError: broken off; purge again to finish.
        """
        session, store = self._session, self._session.store
        session.require_writable()
        derived = derived_from(session.fresh_now(), self.owner, self.name)
        if derived:
            raise ConflictError(
                f"{len(derived)} versions were made from what is to be purged, and say so: "
                f"{', '.join(derived[:5])}. Purge their concepts first"
            )
        for name, highest in self.names.items():
            claims.keep_purged(store, session.registry_id, self.owner, name, highest)
        notice, since = session.clock.next(), Stopwatch()
        session.notices.write(notice, self.blobs, purge=True)
        # Only now, with the notice in place: who uses one of them from here on sees it.
        # What the owner pushed since the plan is not purged by it, and needs its bytes.
        state = session.fresh_now()
        used = _used_by_others(state, self.blobs, self.owner, self.name, self.names)
        shown = _pictures_of_others(state, set(self.previews), self.owner, self.name, self.names)
        removed = {digest: size for digest, size in self.blobs.items() if digest not in used}
        names = {
            name_digest(session.registry_id, self.owner, name): highest
            for name, highest in self.names.items()
        }
        if self.name is None:
            # What the history says of the owner and of no one concept; later each time.
            names[name_digest(session.registry_id, self.owner, "")] = stamp_milliseconds(notice)
        committed = session.commit([Purged(names, tuple(sorted(removed)), self.versions)])
        session.tell(_PURGING, 1, 4)
        session.forget_other_copies()
        session.notices.require_in_time(notice, since)
        store.delete_many(keys.mask_key(digest) for digest in removed)
        store.delete_many(
            keys.preview_key(digest) for digest in self.previews if digest not in shown
        )
        store.delete_many(self.records)
        # What a repair moved aside cannot be read, so it may speak of anybody.
        store.delete_many(entry.key for entry in store.list("aside/"))
        session.notices.done(notice)
        for folder in keys.folders_of(self.owner, self.name):
            store.tidy(folder)
        session.tell(_PURGING, 2, 4)
        before = count_log(session)
        self._fold_away(committed.stamp)
        if isinstance(store, LocalStore):
            store.sweep_unfinished(float("inf"))
        session.tell(_PURGING, 3, 4)
        session.sync()
        for digest in removed:
            session.masks.forget(digest)
        after = count_log(session)
        objects, size, found = search(session, self.owner, self.name)
        session.tell(_PURGING, 4, 4)
        if found:
            raise ConflictError(
                f"{found} objects still speak of what was purged: it was written again meanwhile. "
                "Stop its writers, then purge again"
            )
        receipt = PurgeReceipt(
            id=session.clock.next(),
            registry_id=session.registry_id,
            created=datetime.datetime.fromtimestamp(time.time(), datetime.UTC).isoformat(
                timespec="seconds"
            ),
            versions=self.versions,
            removed_blobs=tuple(sorted(removed)),
            spared_blobs=len(self.shared) + len(self.blobs) - len(removed),
            records=len(self.records),
            segments=max(0, before[0] - after[0]),
            runs=max(0, before[1] - after[1]),
            freed_bytes=sum(removed.values()),
            scanned_objects=objects,
            scanned_bytes=size,
            found=0,
            kept_by_store=self.kept_by_store,
        )
        body = receipt.to_json()
        del body["digest"]
        data = seal("receipt", body)
        store.put_new(keys.receipt_key(receipt.id), data)
        return PurgeReceipt(**{**receipt.__dict__, "digest": sha256_bytes(data)})

    def _fold_away(self, stamp: str) -> None:
        """Compact until nothing of before the purge is left in log and runs."""
        session = self._session
        gone = [(self.owner, name, highest) for name, highest in self.names.items()]
        gone += [(self.owner, "", 0)] if self.name is None else []
        folded: int | None = None
        for attempt in range(_COMPACTIONS):
            # Twice at least: a manifest stays until the one after its successor is there.
            compact(session, grace=0, minimum=1, purged=gone, force=True)
            left = [
                key
                for key in segments.commit_keys(session.store)
                if segments.parse_name(key)[0] <= stamp
            ]
            if not left:
                folded = folded or session.fresh_now().meta.position.number
                if min(session.chain.numbers(), default=folded) >= folded:
                    return
            time.sleep(0.05 * attempt)
        raise StoreUnavailableError(
            f"the log could not be folded in {_COMPACTIONS} attempts, since others compact "
            "at the same time. The purge is committed; run it again to finish"
        )


def plan_purge(session: Session, owner: str | None, ref: Ref | None) -> PurgePlan:
    """What a purge of an owner, or of one concept, would remove; see `PurgePlan`."""
    if (owner is None) == (ref is None):
        raise UsageError("give either owner= or ref= of what is to be purged")
    name = None
    if ref is not None:
        if ref.version is not None or ref.alias is not None or ref.digest is not None:
            raise UsageError(
                f"a purge takes a whole concept; {ref.name!r}, not {str(ref)!r}. "
                "To take one version out of use: cones remove"
            )
        owner, name = ref.owner, ref.name
    check_name(owner or "", "owner")
    whose = owner or ""
    store = session.store
    state = session.fresh_now()
    versions = versions_of(state, whose, name)
    listed = [entry.key for folder in keys.folders_of(whose, name) for entry in store.list(folder)]
    # Records of pushes that were never committed too: they name masks.
    records = [version.record for version in versions]
    known = {record.place for record in records}
    for key, data in store.get_many(
        key for key in listed if (place := keys.version_of(key)) and place not in known
    ):
        with contextlib.suppress(CorruptDataError):  # damaged: its key goes, like the others
            if data is not None:
                records.append(claims.decode_record(key, data))
    names: dict[str, int] = {}
    for key in listed:
        place = keys.version_of(key)
        if place is not None:
            names[place[1]] = max(place[2], names.get(place[1], 0))
        elif other := keys.alias_of(key) or keys.push_of(key):
            names.setdefault(other[1], 0)
    for record in records:
        names[record.name] = max(record.version, names.get(record.name, 0))
    masks = {record.blob_digest: record.blob_bytes for record in records}
    used = _used_by_others(state, masks, whose, name)
    pictures = {digest for record in records for digest in record.previews}
    residue = 0
    for key, data in store.get_many(segments.commit_keys(store)):
        residue += data is not None and mentions(segments.decode_segment(key, data), whose, name)
    if not (versions or listed or residue):
        # A purge that was broken off late has left nothing but runs of before; a killed writer,
        # nothing but a file that is not finished.
        residue += rows_in_runs(session, whose, name)[0]
        residue += unfinished_about(store, whose, name)
    if not (versions or listed or residue):
        raise NotFoundError(f"nothing of {whose}{'/' + name if name else ''} is here to be purged")
    return PurgePlan(
        whose,
        name,
        names,
        len(versions),
        blobs={digest: size for digest, size in masks.items() if digest not in used},
        shared={digest: size for digest, size in masks.items() if digest in used},
        previews=tuple(sorted(pictures - _pictures_of_others(state, pictures, whose, name))),
        records=tuple(listed),
        derived=derived_from(state, whose, name),
        residue=int(residue),
        _session=session,
    )


def _used_by_others(
    state: State,
    masks: Sequence[Digest] | dict[Digest, int],
    owner: str,
    name: str | None,
    highest: Mapping[str, int] | None = None,
) -> set[Digest]:
    """Those of some masks that versions of others have, unless those are pruned; with `highest`
    (concept name -> version) newer versions of the owner's are others too."""
    if not masks:
        return set()
    condition, params = any_of(("blob_digest",), [(digest,) for digest in masks])
    return {
        version.record.blob_digest
        for version in versions_where(state, f"NOT pruned AND {condition}", params)
        if not _concerns(version, owner, name, highest)
    }


def _pictures_of_others(
    state: State,
    pictures: set[Digest],
    owner: str,
    name: str | None,
    highest: Mapping[str, int] | None = None,
) -> set[Digest]:
    if not pictures:
        return set()
    rows = versions_where(state, "list_has_any(previews, ?)", [sorted(pictures)])
    return {
        digest
        for version in rows
        if not _concerns(version, owner, name, highest)
        for digest in version.record.previews
    }


def _concerns(
    version: Version, owner: str, name: str | None, highest: Mapping[str, int] | None = None
) -> bool:
    record = version.record
    return (
        record.owner == owner
        and name in (None, record.name)
        and (highest is None or record.version <= highest.get(record.name, 0))
    )


# -- where a purged owner or concept could still be named -----------------------------------------


def mentions(segment: segments.Segment, owner: str, name: str | None) -> bool:
    """Whether a segment speaks of the owner, or of the one concept."""
    for event in segment.events:
        if isinstance(event, Pushed):
            places = [event.key[:2]]
        elif isinstance(event, Condemned):
            places = [each[:2] for each in event.versions]
        else:
            places = [(getattr(event, "owner", ""), getattr(event, "name", ""))]
        if any(whose == owner and name in (None, what) for whose, what in places):
            return True
    return False


def rows_in_parquet(data: bytes, owner: str, name: str | None) -> int:
    """Lines of a part's Parquet bytes that are of the owner, or of the one concept."""
    file = pq.ParquetFile(pa.BufferReader(data))
    return sum(
        _count_of(pa.Table.from_batches([batch]), owner, name)
        for batch in file.iter_batches(columns=["owner", "name"])
    )


def _count_of(lines: pa.Table, owner: str, name: str | None) -> int:
    match = pc.equal(lines["owner"], owner)
    if name is not None:
        match = pc.and_(match, pc.equal(lines["name"], name))
    return int(pc.sum(match).as_py() or 0)


def rows_in_runs(session: Session, owner: str, name: str | None) -> tuple[int, int]:
    """(lines about the owner or the one concept in all runs, bytes read to count them).

    A manifest says from where to where a part reaches, and the part's footer, of which the manifest
    has the digest, from where its row groups do: only those that can hold it are read, and parts
    that no manifest names, which a compactor has left. One row group is in memory at a time.
    """
    prefix = (owner,) if name is None else (owner, name)
    begins, ends = (owner, name or ""), (owner, name or "\U0010ffff")
    rows = size = 0
    parts: dict[str, tuple[Table, Part]] = {}
    for manifest in map(session.chain.read, session.chain.numbers()):
        for table, found in manifest.tables.items() if manifest else ():
            for part in (part for run in found for part in run.parts):
                parts[part.key] = RUN_TABLES[table], part
                for end in (part.first, part.last):
                    rows += end[0] == owner and name in (None, end[1])
    store = _Counting(session.store)
    listed = [entry.key for entry in runs.listed_parts(session.store)]
    for key in session.watched(_PROVING, listed, len(listed)):
        known = parts.get(key)
        with contextlib.suppress(NotFoundError):  # a compactor removed it meanwhile
            if known is None:  # no manifest names it: a compactor has left it
                data = session.store.get(key)
                size += len(data)
                rows += rows_in_parquet(data, owner, name)
            elif known[1].first[:2] <= ends and begins <= known[1].last[:2]:
                for lines in runs.find_in_part(store, *known, prefix):
                    rows += _count_of(lines, owner, name)
    return rows, size + store.size


class _Counting:
    """A store that counts the bytes which are read of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.size = 0

    def get(self, key: str) -> bytes:
        """As ``Store.get``."""
        data = self._store.get(key)
        self.size += len(data)
        return data

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """As ``Store.get_range``."""
        data = self._store.get_range(key, start, end)
        self.size += len(data)
        return data


def unfinished_about(store: Store, owner: str, name: str | None) -> int:
    """How many unfinished files, which no listing shows, speak of the owner or the one concept.

    A killed writer leaves them. One that was cut off within compressed data cannot be read.
    """
    if not isinstance(store, LocalStore):
        return 0
    return sum(_may_speak_of(data, owner, name) for data in store.unfinished())


def _may_speak_of(data: bytes, owner: str, name: str | None) -> bool:
    """Whether bytes that may be any object, or the first part of one, speak of it. Of those that
    tell of several concepts it may be said of one too many."""
    with contextlib.suppress(zstandard.ZstdError):  # a log segment, else no such data
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(MAX_DOCUMENT_BYTES)
    with contextlib.suppress(
        pa.ArrowException, OSError, KeyError
    ):  # a run of the catalogue, else no such columns
        if rows_in_parquet(data, owner, name):
            return True
    # Records, claims, quotas, events: all JSON without spaces.
    whose, what = f'"owner":"{owner}"'.encode(), f'"name":"{name}"'.encode()
    if whose in data and (name is None or what in data):
        return True
    refs = [f'"{owner}/{name}{end}' for end in '":@*'] if name else [f'"{owner}/']
    return any(ref.encode() in data for ref in refs)


def search(session: Session, owner: str, name: str | None) -> tuple[int, int, int]:
    """(objects, bytes, findings) of a search through all that could still hold the names."""
    store = session.store
    objects = size = found = 0
    for folder in keys.folders_of(owner, name):
        found += len(store.list(folder))
    for key, data in store.get_many(segments.commit_keys(store)):
        if data is not None:
            objects, size = objects + 1, size + len(data)
            found += mentions(segments.decode_segment(key, data), owner, name)
    state = session.fresh_now()
    rows, read = rows_in_runs(session, owner, name)
    objects, found, size = objects + 1, found + rows, size + read
    found += len(versions_of(state, owner, name)) + len(derived_from(state, owner, name))
    return objects, size, found + unfinished_about(store, owner, name)


def versions_of(state: State, owner: str, name: str | None) -> list[Version]:
    """Versions of an owner, or of the one concept."""
    if name is None:
        return versions_where(state, "owner = ?", [owner])
    return versions_where(state, "owner = ? AND name = ?", [owner, name])


def derived_from(state: State, owner: str, name: str | None) -> tuple[str, ...]:
    """Refs of what others made from the owner's masks, or from the one concept's: its provenance
    says so in its record, in the log and in the catalogue."""
    start = f"{owner}/{name}" if name else f"{owner}/"
    found = []
    for version in versions_where(state, "contains(provenance, ?)", [start]):
        made_from = version.record.provenance
        texts = _texts(made_from.to_json()) if made_from is not None else iter(())
        if not _concerns(version, owner, name) and any(_names(text, start) for text in texts):
            found.append(version.record.ref)
    return tuple(sorted(found))


def _names(text: str, start: str) -> bool:
    """Whether a text is a ref of the owner ("alice/") or the concept ("alice/dog") `start`."""
    return text.startswith(start) and (
        start.endswith("/") or text[len(start) : len(start) + 1] in ("", ":", "@", "*")
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, the names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)


def count_log(session: Session) -> tuple[int, int]:
    """(log segments, parts of runs) in the store."""
    return len(segments.commit_keys(session.store)), len(runs.listed_parts(session.store))
