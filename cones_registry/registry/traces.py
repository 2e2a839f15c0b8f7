"""Traces: where a purged owner or concept could still be named, and the receipt that it is not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from cones_registry.catalog import runs, segments
from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import MAX_DOCUMENT_BYTES
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import versions_where
from cones_registry.codec import read_footer
from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError
from cones_registry.registry import reservations
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.pruning import blob_entries
from cones_registry.store import Store
from cones_registry.store.local import LocalStore


@dataclass(frozen=True)
class PurgeReceipt:
    """Proof of a purge; says nothing of whom.

    Attributes:
        id: of the receipt, and its key below `receipts/`.
        registry_id, created: where and when (UTC).
        versions: how many were purged.
        removed_blobs, rewritten_blobs: digests of blobs that are gone, and of those made again
            because others use the same mask.
        reservations, segments, runs: how many objects of each kind were removed.
        freed_bytes: bytes of removed blobs.
        scanned_objects, scanned_bytes: what was read afterwards to prove the absence.
        found: how often the purged names were found in it: 0.
        digest: of the stored receipt.
    """

    id: str
    registry_id: str
    created: str
    versions: int
    removed_blobs: tuple[Digest, ...]
    rewritten_blobs: tuple[Digest, ...]
    reservations: int
    segments: int
    runs: int
    freed_bytes: int
    scanned_objects: int
    scanned_bytes: int
    found: int
    digest: Digest = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.__dict__.items()
        }


def named_in(data: bytes) -> tuple[str, str]:
    """(owner, name) in a blob's footer, empty where there is none or the blob is damaged."""
    try:
        concept = read_footer(data).get("concept") or {}
    except CorruptDataError:
        return "", ""
    return str(concept.get("owner", "")), str(concept.get("name", ""))


def footer_of(version: Version, old: dict[str, Any]) -> dict[str, Any]:
    """The footer that the push of `version` would have written; the history is the same."""
    record = dict(version.record)
    for name in ("blob_digest", "blob_bytes", "layout"):
        record.pop(name)
    if record.get("provenance") is not None and version.history:
        before = (old.get("concept") or {}).get("provenance") or {}
        record["provenance"] = {**record["provenance"], "history": before.get("history", [])}
    if version.push:
        record["push"] = version.push
    return record


def mentions(segment: segments.Segment, owner: str, name: str | None) -> bool:
    """Whether a segment speaks of the owner, or of the one concept."""
    for event in segment.events:
        concept = event.get("concept", event)
        if concept.get("owner") == owner and name in (None, concept.get("name")):
            return True
        for each in event.get("versions", ()):
            if each[0] == owner and name in (None, each[1]):
                return True
    return False


def rows_in_parquet(data: bytes, owner: str, name: str | None) -> int:
    """Lines of a part's Parquet bytes that are of the owner, or of the one concept."""
    rows = pq.read_table(pa.BufferReader(data), columns=["owner", "name"])
    match = pc.equal(rows["owner"], owner)
    if name is not None:
        match = pc.and_(match, pc.equal(rows["name"], name))
    return int(pc.sum(match).as_py() or 0)


def rows_in_runs(ledger: Ledger, owner: str, name: str | None) -> tuple[int, int]:
    """(lines about the owner or the one concept in all runs, bytes read to count them).

    A manifest says from where to where a part reaches; only parts that can hold it are read, and
    those that no manifest names, which a compactor has left.
    """
    begins, ends = (owner, name or ""), (owner, name or "\U0010ffff")
    rows = size = 0
    ranges: dict[str, bool] = {}
    for manifest in map(ledger.chain.read, ledger.chain.numbers()):
        for each in manifest.tables.values() if manifest else ():
            for part in (part for run in each for part in run.parts):
                ranges[part.key] = part.first[:2] <= ends and begins <= part.last[:2]
                for key in (part.first, part.last):
                    rows += key[0] == owner and name in (None, key[1])
    keys = [entry.key for entry in ledger.store.list(runs.PREFIX) if ranges.get(entry.key, True)]
    for _, data in ledger.store.get_many(keys, parallel=1):
        if data is not None:
            size += len(data)
            rows += rows_in_parquet(data, owner, name)
    return rows, size


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
    ):  # a snapshot, else no such columns
        if rows_in_parquet(data, owner, name):
            return True
    # Reservations, quotas, events, footers of blobs: all JSON without spaces.
    whose, what = f'"owner":"{owner}"'.encode(), f'"name":"{name}"'.encode()
    if whose in data and (name is None or what in data):
        return True
    refs = [f'"{owner}/{name}{end}' for end in '":@*'] if name else [f'"{owner}/']
    return any(ref.encode() in data for ref in refs)


def search(ledger: Ledger, owner: str, name: str | None) -> tuple[int, int, int]:
    """(objects, bytes, findings) of a search through all that could still hold the names."""
    store = ledger.store

    def concerns(whose: str, what: str) -> bool:
        return whose == owner and name in (None, what)

    objects = size = found = 0
    for entry in store.list(""):
        objects += 1
        each = reservations.parse_key(entry.key)
        found += each is not None and concerns(each.owner, each.name)
        found += entry.key.startswith(f"quotas/{owner}/") and name is None
    for key, data in store.get_many(segments.commit_keys(store)):
        if data is not None:
            size += len(data)
            found += mentions(segments.decode_segment(key, data), owner, name)
    state = ledger.fresh_now()
    rows, read = rows_in_runs(ledger, owner, name)
    found, size = found + rows, size + read
    found += len(versions_of(state, owner, name)) + len(derived_from(state, owner, name))
    for _, data in store.get_many([entry.key for entry in blob_entries(ledger).values()]):
        if data is not None:
            size += len(data)
            found += concerns(*named_in(data))
    return objects, size, found + unfinished_about(store, owner, name)


def versions_of(state: State, owner: str, name: str | None) -> list[Version]:
    """Versions of an owner, or of the one concept."""
    if name is None:
        return versions_where(state, "owner = ?", [owner])
    return versions_where(state, "owner = ? AND name = ?", [owner, name])


def derived_from(state: State, owner: str, name: str | None) -> tuple[str, ...]:
    """Refs of what others made from the owner's masks, or from the one concept's: its provenance
    says so in the catalogue, in the log, in runs and in the footer of its blob."""
    start = f"{owner}/{name}" if name else f"{owner}/"
    found = []
    for version in versions_where(state, "contains(provenance, ?)", [start]):
        record = version.record
        own = record["owner"] == owner and name in (None, record["name"])
        if not own and any(_names(text, start) for text in _texts(record["provenance"])):
            found.append(f"{record['owner']}/{record['name']}:{record['version']}")
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
    elif isinstance(value, dict | list):
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(each)


def count_log(ledger: Ledger) -> tuple[int, int]:
    """(log segments, parts of runs) in the store."""
    return (
        len(segments.commit_keys(ledger.store)),
        len(ledger.store.list(runs.PREFIX)),
    )
