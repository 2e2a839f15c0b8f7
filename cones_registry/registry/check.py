"""Check: whether catalogue, records, masks and bases fit together; and making the catalogue again.

The catalogue is made again from the records alone. What is damaged is moved aside, never deleted,
and nothing of a newer version is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cones_registry.catalog import chain, keys, segments
from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import unseal
from cones_registry.catalog.events import Aliased, Event, Key, Pushed
from cones_registry.catalog.fold import Version, name_digest
from cones_registry.catalog.reader import refs_of, versions_where
from cones_registry.catalog.runs import Part, Table, read_part, read_run
from cones_registry.catalog.tables import RUN_TABLES
from cones_registry.codec import decode
from cones_registry.digest import Digest, require_digest
from cones_registry.errors import CorruptDataError, NewerFormatError, NotFoundError
from cones_registry.record import Record
from cones_registry.registry import claims
from cones_registry.registry.bases import Bases
from cones_registry.registry.prune import mask_entries
from cones_registry.registry.session import Session, read_root
from cones_registry.store import Entry

_SEALED: Final = {
    keys.BASES: "base",
    keys.QUOTAS: "quota",
    keys.PURGED: "purged",
    keys.RECEIPTS: "receipt",
}
"""Folder of small documents -> their kind."""
_PLACES: Final = {keys.QUOTAS: keys.quota_of, keys.PURGED: keys.purged_of, keys.BASES: keys.base_of}
_ASIDE: Final = "aside/"
_PER_COMMIT: Final = 5000


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: "corrupt", "newer", "dangling", "size", "base", "unclaimed", "differs" or "lost".
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
        orphans: keys of masks that no version refers to; harmless, `prune` removes them.
        gaps: claimed numbers without a version, as refs; harmless.
        strays: keys that no version of this package writes; harmless, and left alone.
        versions, blobs, segments: how many versions, masks, commits were looked at.
        read_bytes: bytes whose digests were verified.
        rebuilt: versions and alias moves that `rebuild` put back into the catalogue.
        set_aside: damaged objects that `rebuild` moved below `aside/`.
    """

    problems: list[Problem] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    versions: int = 0
    blobs: int = 0
    segments: int = 0
    read_bytes: int = 0
    rebuilt: int = 0
    set_aside: list[str] = field(default_factory=list)

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

    def note(self, kind: str, where: str, message: str) -> None:
        """Add a problem, once."""
        problem = Problem(kind, where, message)
        if problem not in self.problems:
            self.problems.append(problem)

    @contextlib.contextmanager
    def noting(self, where: str) -> Iterator[None]:
        """Make what the block finds damaged or missing a problem, and go on after it."""
        try:
            yield
        except NewerFormatError as error:
            self.note("newer", where, str(error))
        except CorruptDataError as error:
            self.note("corrupt", where, str(error))
        except NotFoundError as error:
            self.note("base" if where.startswith("base ") else "dangling", where, str(error))


class Checker:
    """Checks one registry, and adds what it finds to a report."""

    def __init__(self, session: Session, bases: Bases, report: CheckReport) -> None:
        self._session = session
        self._bases = bases
        self._report = report

    def check(self, *, read_data: bool) -> CheckReport:
        """Compare catalogue, records, masks and bases; with `read_data` verify every byte."""
        store = self._session.store
        with self._report.noting(keys.ROOT):
            read_root(store)
        if read_data:
            self._read_log()
        # Masks and records before the catalogue: what is pushed meanwhile is then known.
        masks = mask_entries(self._session)
        claimed: dict[Key, str] = {}
        for entry in store.list(keys.VERSIONS):
            place = keys.version_of(entry.key)
            if place is None:
                self._report.strays.append(entry.key)
            else:
                claimed[place] = entry.key
        log = store.list(keys.LOG)
        self._report.strays += [
            entry.key
            for entry in log
            if not segments.is_segment(entry.key) and chain.parse_pointer(entry.key) is None
        ]
        try:
            had = refs_of(self._session.copy.state())
            state = self._session.fresh_now()
            self._compare_with_log(had, state)
        except NewerFormatError as error:
            self._report.note("newer", "log", str(error))
            return self._report
        except CorruptDataError as error:
            self._report.note(
                "corrupt", "log", f"{error}. To make the catalogue again: cones check --rebuild"
            )
            return self._report
        versions = versions_where(state, "true")
        self._report.versions, self._report.blobs = len(versions), len(masks)
        self._compare(versions, masks, claimed, state)
        if read_data:
            self._read_masks(versions, masks)
            self._read_records(versions, claimed)
            self._read_claims()
            for prefix, kind in _SEALED.items():
                self._read_sealed(prefix, kind)
        return self._report

    def _compare_with_log(self, had: set[str], state: State) -> None:
        """What this machine had read and the log no longer says: lost, or put back from a backup.

        A sync throws away a local copy whose past is not the log's; what is gone then is told.
        """
        for ref in sorted(had - refs_of(state)):
            path, _, number = ref.rpartition(":")
            owner, name = path.split("/")
            digest = name_digest(self._session.registry_id, owner, name)
            if int(number) > state.meta.purged.get(digest, 0):
                self._report.note(
                    "lost",
                    ref,
                    "this machine has read it, but the log no longer says it: objects of the log "
                    "were removed, or an older copy of the registry was put in its place",
                )

    def _compare(
        self,
        versions: list[Version],
        masks: dict[Digest, Entry],
        claimed: dict[Key, str],
        state: State,
    ) -> None:
        used: set[Digest] = set()
        known: set[Key] = set()
        store = self._session.store
        for version in versions:
            record = version.record
            known.add(record.place)
            if record.place not in claimed and not store.head(keys.version_key(*record.place)):
                self._report.note("unclaimed", record.ref, "its record is not in the store")
            if version.pruned:
                continue
            mask = record.blob_digest
            used.add(mask)
            if mask not in masks and store.head(keys.mask_key(mask)) is None:
                self._report.note("dangling", record.ref, f"its mask {mask} is not in the store")
            elif mask in masks and masks[mask].size != record.blob_bytes:
                self._report.note(
                    "size",
                    record.ref,
                    f"its mask has {masks[mask].size} bytes, expected {record.blob_bytes}",
                )
        for fingerprint in sorted({version.record.base for version in versions}):
            with self._report.noting(f"base {fingerprint}"):
                self._bases.get(fingerprint)
        self._report.orphans = [
            entry.key
            for digest, entry in masks.items()
            if digest not in used and digest not in state.meta.condemned
        ]
        self._report.gaps = [
            "{}/{}:{}".format(*place) for place in sorted(claimed) if place not in known
        ]

    def _read_log(self) -> None:
        store = self._session.store
        listed = segments.commit_keys(store)
        self._report.segments = len(listed)
        for key, data in self._session.watched(
            "reading the log", store.get_many(listed), len(listed)
        ):
            if data is not None:
                with self._report.noting(key):
                    segments.decode_segment(key, data)
                    self._report.read_bytes += len(data)
        # A manifest that is no longer published stays a while, so that the next one counts; its
        # runs may be gone, since no reader begins with it.
        published = {
            pointer.position.number
            for entry in store.list(keys.LOG)
            if (pointer := chain.parse_pointer(entry.key)) is not None
        }
        read: set[str] = set()
        for number in self._session.chain.numbers():
            with self._report.noting(chain.manifest_key(number)):
                manifest = self._session.chain.read(number)
                needed = manifest.tables if manifest and number in published else {}
                for name, found in needed.items():
                    for part in (part for run in found for part in run.parts):
                        if part.key not in read:
                            read.add(part.key)
                            self._read_part(RUN_TABLES[name], part)

    def _read_part(self, table: Table, part: Part) -> None:
        with self._report.noting(part.key):
            for _ in read_part(table, part, self._session.store.get(part.key)):
                pass
            self._report.read_bytes += part.size

    def _read_masks(self, versions: list[Version], masks: dict[Digest, Entry]) -> None:
        by_mask: dict[Digest, list[Record]] = {}
        for version in versions:
            if not version.pruned:
                by_mask.setdefault(version.record.blob_digest, []).append(version.record)
        store = self._session.store
        listed = [entry.key for entry in masks.values()]
        for key, data in self._session.watched(
            "reading masks", store.get_many(listed), len(listed)
        ):
            if data is None:
                continue
            with self._report.noting(key):
                digest = keys.mask_of(key) or ""
                require_digest(data, digest, "the mask object")
                mask = decode(data)
                self._report.read_bytes += len(data)
                for record in by_mask.get(digest, ()):
                    if record.mask_digest != mask.digest:
                        raise CorruptDataError(f"it holds mask {mask.digest}")
                    self._bases.require_table(record.base, mask, key)

    def _read_records(self, versions: list[Version], claimed: dict[Key, str]) -> None:
        known = {version.record.place: version.record for version in versions}
        for key, data in self._session.watched(
            "reading records", self._session.store.get_many(claimed.values()), len(claimed)
        ):
            if data is None:
                continue
            with self._report.noting(key):
                record = claims.decode_record(key, data)
                self._report.read_bytes += len(data)
                said = known.get(record.place)
                if said is not None and said != record.without_history():
                    self._report.note(
                        "differs", record.ref, f"the catalogue says something else than {key}"
                    )

    def _read_claims(self) -> None:
        store = self._session.store
        for folder, place_of, decode_claim in (
            (keys.ALIASES, keys.alias_of, claims.decode_alias),
            (keys.PUSHES, keys.push_of, claims.decode_key_claim),
        ):
            for key, data in store.get_many(self._listed(folder, place_of)):
                if data is not None:
                    with self._report.noting(key):
                        decode_claim(key, data)
                        self._report.read_bytes += len(data)

    def _listed(self, folder: str, place_of: Callable[[str], object]) -> list[str]:
        """Keys of a folder; those that nobody writes there are strays."""
        listed = [entry.key for entry in self._session.store.list(folder)]
        self._report.strays += [key for key in listed if place_of(key) is None]
        return [key for key in listed if place_of(key) is not None]

    def _read_sealed(self, prefix: str, kind: str) -> None:
        store = self._session.store
        for key, data in store.get_many(self._listed(prefix, _PLACES.get(prefix, _any_json))):
            if data is not None:
                with self._report.noting(key):
                    unseal(kind, data, key)
                    self._report.read_bytes += len(data)


def _any_json(key: str) -> str | None:
    return key if key.endswith(".json") else None


def rebuild(session: Session, report: CheckReport) -> None:
    """Put every version back whose record is there and whose mask is whole.

    Versions come back as they were pushed: with their tags then, not removed. Aliases come back
    from their claims. Damaged objects of the log are moved aside; what they said is made again as
    far as it can be. What the catalogue still knows is left as it is.

    Raises:
        NewerFormatError: a newer version wrote something here; nothing was changed.
    """
    session.require_writable()
    _set_damaged_aside(session, report)
    session.copy.forget()
    state = session.fresh_now()
    known = {version.record.place: version.record for version in versions_where(state, "true")}
    store = session.store
    records = list(_whole_records(session, report))
    keyed = []
    for key, data in store.get_many([entry.key for entry in store.list(keys.PUSHES)]):
        place = keys.push_of(key)
        if data is not None and place is not None:
            with report.noting(key):
                keyed.append((place[3], claims.decode_key_claim(key, data)))
    decided = claims.decided_versions(keyed)
    masks = mask_entries(session)
    found: dict[Key, Event] = {}
    for record in records:
        stands_for = decided.get((record.owner, record.name, record.key), record.version)
        # Another push with the same key was first; a purged number is not shown again.
        if stands_for != record.version or _is_purged(state, session, record):
            continue
        if record.place not in known and record.blob_digest in masks:
            found[record.place] = Pushed(record.without_history())
    aliases: dict[tuple[str, str, str], Aliased] = {}
    for key, data in store.get_many([entry.key for entry in store.list(keys.ALIASES)]):
        if data is not None and keys.alias_of(key) is not None:
            with report.noting(key):
                move = claims.decode_alias(key, data)
                what = (move.owner, move.name, move.alias)
                if what not in aliases or move.generation > aliases[what].generation:
                    aliases[what] = move
    events: list[Event] = [found[place] for place in sorted(found)]
    events += [
        move for _, move in sorted(aliases.items()) if move.key in known or move.key in found
    ]
    # A version whose record was lost must not have its number given twice.
    there = {record.place for record in records}
    store.put_many(
        (keys.version_key(*place), claims.encode_record(record))
        for place, record in known.items()
        if place not in there and store.head(keys.version_key(*place)) is None
    )
    for start in range(0, len(events), _PER_COMMIT):
        session.commit(events[start : start + _PER_COMMIT], verb="rebuild")
    report.rebuilt = len(events)


def _is_purged(state: State, session: Session, record: Record) -> bool:
    digest = name_digest(session.registry_id, record.owner, record.name)
    return record.version <= state.meta.purged.get(digest, 0)


def _whole_records(session: Session, report: CheckReport) -> Iterator[Record]:
    store = session.store
    listed = [e.key for e in store.list(keys.VERSIONS) if keys.version_of(e.key) is not None]
    for key, data in session.watched("reading records", store.get_many(listed), len(listed)):
        if data is not None:
            with report.noting(key):
                yield claims.decode_record(key, data)


def _set_damaged_aside(session: Session, report: CheckReport) -> None:
    """Move what is damaged in log and catalogue aside; all of it is looked at before any is."""
    store = session.store
    damaged: list[str] = []
    for key, data in store.get_many(segments.commit_keys(store)):
        try:
            if data is not None:
                segments.decode_segment(key, data)
        except NewerFormatError:
            raise
        except CorruptDataError:
            damaged.append(key)
    for number in session.chain.numbers():
        try:
            manifest = session.chain.read(number)
            for name, found in manifest.tables.items() if manifest else ():
                for run in found:
                    for _ in read_run(RUN_TABLES[name], run, lambda part: store.get(part.key)):
                        pass
        except NewerFormatError:
            raise
        except (CorruptDataError, NotFoundError):
            damaged.append(chain.manifest_key(number))
    move_aside(session, damaged)
    report.set_aside += damaged


def move_aside(session: Session, damaged: Iterable[str]) -> None:
    """Keep damaged objects below ``aside/``, where nothing reads them."""
    store = session.store
    for key, data in store.get_many(damaged):
        if data is not None:
            store.put_new(f"{_ASIDE}{session.clock.next()}/{key}", data)
            store.delete(key)
