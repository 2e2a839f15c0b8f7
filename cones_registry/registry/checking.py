"""Check: whether catalogue and bytes fit together; rebuild: the catalogue from the bytes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cones_registry.catalog import segments, snapshots
from cones_registry.catalog.copy import State
from cones_registry.catalog.events import RECORD_KEYS, Event, check_event
from cones_registry.catalog.fold import Key, Version
from cones_registry.catalog.reader import versions_where
from cones_registry.codec import decode, read_footer
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import CorruptDataError, NotFoundError
from cones_registry.registry import reservations
from cones_registry.registry.bases import Bases
from cones_registry.registry.blob_cache import blob_key, digest_of_key
from cones_registry.registry.ledger import Ledger, read_root
from cones_registry.registry.pruning import blob_entries
from cones_registry.resolver.sketch import FORMAT
from cones_registry.store import Entry

_PER_COMMIT: Final = 5000


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "corrupt", "dangling", "size", "base", "unreserved".
        where: key or ref.
        message: what is wrong with it.
    """

    kind: str
    where: str
    message: str


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        problems: what is wrong; empty when all is well.
        orphans: keys of blobs that no version refers to; harmless, `prune` removes them.
        gaps: reserved numbers without a version, as refs; harmless.
        versions, blobs, segments: how many were looked at.
        read_bytes: bytes whose digests were verified.
        rebuilt: versions and alias moves that `rebuild` put back into the catalogue.
        discarded: damaged log objects that `rebuild` removed.
    """

    problems: list[Problem] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    versions: int = 0
    blobs: int = 0
    segments: int = 0
    read_bytes: int = 0
    rebuilt: int = 0
    discarded: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ok": self.ok,
            **self.__dict__,
            "problems": [dict(problem.__dict__) for problem in self.problems],
        }


class Checker:
    """Checks one registry."""

    def __init__(self, ledger: Ledger, bases: Bases) -> None:
        self._ledger = ledger
        self._bases = bases
        self._report = CheckReport()

    def check(self, *, read_data: bool) -> CheckReport:
        """Compare catalogue, blobs, reservations and bases; with `read_data` verify every byte."""
        store = self._ledger.store
        with self._noting("cones.json"):
            read_root(store)
        if read_data:
            self._read_log()
        # Blobs and reservations before the catalogue: what is pushed meanwhile is then known.
        blobs = blob_entries(self._ledger)
        reserved = {
            (each.owner, each.name, each.number): entry
            for entry in store.list(reservations.PREFIX)
            if (each := reservations.parse_key(entry.key)) and each.alias is None
        }
        try:
            state = self._ledger.fresh_now()
        except CorruptDataError as error:
            self._note(
                "corrupt", "log", f"{error}. To make the catalogue again: cones check --rebuild"
            )
            return self._report
        versions = versions_where(state, "true")
        self._report.versions, self._report.blobs = len(versions), len(blobs)
        self._compare(versions, blobs, reserved, state)
        if read_data:
            self._read_blobs(versions, blobs)
            self._read_documents(reserved.values())
        return self._report

    def _note(self, kind: str, where: str, message: str) -> None:
        self._report.problems.append(Problem(kind, where, message))

    def _noting(self, where: str) -> _Noting:
        return _Noting(self, where)

    def _compare(
        self,
        versions: list[Version],
        blobs: dict[Digest, Entry],
        reserved: dict[Key, Entry],
        state: State,
    ) -> None:
        used: set[Digest] = set()
        known: set[Key] = set()
        for version in versions:
            record = version.record
            key = (record["owner"], record["name"], record["version"])
            ref, blob = "{}/{}:{}".format(*key), record["blob_digest"]
            known.add(key)
            if key not in reserved:
                self._note("unreserved", ref, "its version number is not reserved")
            if version.pruned:
                continue
            used.add(blob)
            if blob not in blobs and self._ledger.store.head(blob_key(blob)) is None:
                self._note("dangling", ref, f"its blob {blob} is not in the store")
            elif blob in blobs and blobs[blob].size != record["blob_bytes"]:
                self._note(
                    "size",
                    ref,
                    f"its blob has {blobs[blob].size} bytes, expected {record['blob_bytes']}",
                )
        for fingerprint in sorted({version.record["base"] for version in versions}):
            with self._noting(f"base {fingerprint}"):
                self._bases.get(fingerprint)
        self._report.orphans = [
            entry.key
            for digest, entry in blobs.items()
            if digest not in used and digest not in state.meta.condemned
        ]
        self._report.gaps = [
            "{}/{}:{}".format(*key) for key in sorted(reserved) if key not in known
        ]

    def _read_log(self) -> None:
        store = self._ledger.store
        keys = [entry.key for entry in store.list(segments.PREFIX)]
        self._report.segments = len(keys)
        for key, data in store.get_many(keys):
            if data is not None:
                with self._noting(key):
                    segments.decode_segment(key, data)
                    self._report.read_bytes += len(data)
        for number in snapshots.manifest_numbers(store):
            with self._noting(snapshots.manifest_key(number)):
                manifest = snapshots.read_manifest(store, number)
                self._report.read_bytes += len(snapshots.read_parquet(store, manifest))

    def _read_blobs(self, versions: list[Version], blobs: dict[Digest, Entry]) -> None:
        by_blob: dict[Digest, list[Version]] = {}
        for version in versions:
            if not version.pruned:
                by_blob.setdefault(version.record["blob_digest"], []).append(version)
        store = self._ledger.store
        for key, data in store.get_many(entry.key for entry in blobs.values()):
            digest = digest_of_key(key) or ""
            if data is None:
                continue
            with self._noting(key):
                if sha256_bytes(data) != digest:
                    raise CorruptDataError(f"its bytes have digest {sha256_bytes(data)}")
                mask = decode(data)
                self._report.read_bytes += len(data)
                for version in by_blob.get(digest, ()):
                    if version.record["mask_digest"] != mask.digest:
                        raise CorruptDataError(f"it holds mask {mask.digest}")
                    self._bases.require_table(version.record["base"], mask, key)

    def _read_documents(self, entries: Iterable[Entry]) -> None:
        for key, data in self._ledger.store.get_many(entry.key for entry in entries):
            if data is not None:
                with self._noting(key):
                    reservations.decode_reservation(key, data)
                    self._report.read_bytes += len(data)

    # -- rebuild ----------------------------------------------------------------------------------

    def rebuild(self) -> CheckReport:
        """Put every version back whose reservation or footer is there and whose blob is whole.

        Versions come back as they were pushed: with their tags then, not removed. Aliases come back
        from their reservations. Damaged log segments are removed; what they said is made again as
        far as it can be. What the catalogue still knows is left as it is.
        """
        ledger = self._ledger
        ledger.require_writable()
        self._discard_damaged_log()
        ledger.copy.forget()
        state = ledger.fresh_now()
        known = {
            (v.record["owner"], v.record["name"], v.record["version"])
            for v in versions_where(state, "true")
        }
        blobs = blob_entries(ledger)
        found: dict[Key, Event] = {}
        aliases: dict[tuple[str, str, str], Event] = {}
        for event in [*self._from_reservations(), *self._from_footers(blobs)]:
            if event["type"] == "alias":
                name = (event["owner"], event["name"], event["alias"])
                if event["generation"] > aliases.get(name, {"generation": 0})["generation"]:
                    aliases[name] = event
                continue
            record = event["concept"]
            key = (record["owner"], record["name"], record["version"])
            if key not in known and record["blob_digest"] in blobs:
                found.setdefault(key, event)
        events = [found[key] for key in sorted(found)]
        events += [
            event
            for _, event in sorted(aliases.items())
            if (event["owner"], event["name"], event["version"]) in known | found.keys()
        ]
        self._reserve_again(found.values())
        for start in range(0, len(events), _PER_COMMIT):
            ledger.commit(events[start : start + _PER_COMMIT])
        self._report.rebuilt = len(events)
        return self.check(read_data=False)

    def _discard_damaged_log(self) -> None:
        store = self._ledger.store
        for key, data in store.get_many([e.key for e in store.list(segments.PREFIX)]):
            try:
                if data is not None:
                    segment = segments.decode_segment(key, data)
                    if segments.is_pointer(key):
                        event = segment.events[0]
                        manifest = snapshots.read_manifest(
                            store, event["number"], event["manifest"]
                        )
                        snapshots.read_parquet(store, manifest)
            except (CorruptDataError, NotFoundError):
                store.delete(key)
                self._report.discarded.append(key)
        for number in snapshots.manifest_numbers(store):
            try:
                snapshots.read_parquet(store, snapshots.read_manifest(store, number))
            except (CorruptDataError, NotFoundError):
                store.delete(snapshots.manifest_key(number))
                self._report.discarded.append(snapshots.manifest_key(number))

    def _from_reservations(self) -> Iterator[Event]:
        store = self._ledger.store
        keys = [entry.key for entry in store.list(reservations.PREFIX)]
        for key, data in store.get_many(keys):
            if data is not None:
                with self._noting(key):
                    yield reservations.decode_reservation(key, data)

    def _from_footers(self, blobs: dict[Digest, Entry]) -> Iterator[Event]:
        for key, data in self._ledger.store.get_many(entry.key for entry in blobs.values()):
            digest = digest_of_key(key) or ""
            if data is None:
                continue
            with self._noting(key):
                if sha256_bytes(data) != digest:
                    raise CorruptDataError(f"its bytes have digest {sha256_bytes(data)}")
                event = event_of_footer(data, digest)
                if event is not None:
                    yield event

    def _reserve_again(self, events: Iterable[Event]) -> None:
        """A version whose reservation was lost too must not be given twice."""
        store = self._ledger.store
        for event in events:
            record = event["concept"]
            key = reservations.version_key(record["owner"], record["name"], record["version"])
            if store.head(key) is None:
                store.put_new(key, reservations.encode_reservation(event))


class _Noting:
    """Turns an error inside the block into a problem of the report."""

    def __init__(self, checker: Checker, where: str) -> None:
        self._checker = checker
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CorruptDataError):
            self._checker._note("corrupt", self._where, str(error))
            return True
        if isinstance(error, NotFoundError):
            kind_of = "base" if self._where.startswith("base ") else "dangling"
            self._checker._note(kind_of, self._where, str(error))
            return True
        return False


def event_of_footer(data: bytes, digest: Digest) -> Event | None:
    """The push that a blob's footer tells of, None if it was not written by a registry."""
    footer = read_footer(data)
    concept = footer.get("concept")
    if not isinstance(concept, dict) or "version" not in concept:
        return None
    concept = dict(concept)
    push = concept.pop("push", "")
    provenance = concept.get("provenance")
    history = bool(provenance.get("history")) if isinstance(provenance, dict) else False
    if isinstance(provenance, dict):
        concept["provenance"] = {**provenance, "history": []}
    concept.update(blob_digest=digest, blob_bytes=len(data), layout=footer["layout"])
    record = {name: concept[name] for name in RECORD_KEYS if name in concept}
    event = {"type": "push", "concept": record, "push": push, "history": history}
    sketch = FORMAT.sketch(decode(data))
    return check_event(event | {"sketch": base64.b64encode(sketch).decode("ascii")})
