"""Check: whether catalogue, blobs, reservations and bases fit together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cones_registry.catalog import chain, segments
from cones_registry.catalog.clock import Clock
from cones_registry.catalog.copy import LocalCopy, State
from cones_registry.catalog.documents import unseal
from cones_registry.catalog.fold import Key, Version
from cones_registry.catalog.reader import refs_of, versions_where
from cones_registry.catalog.runs import Part, Table, read_part
from cones_registry.catalog.syncing import Syncer
from cones_registry.catalog.tables import TABLES
from cones_registry.codec import decode
from cones_registry.digest import Digest, require_digest
from cones_registry.errors import CorruptDataError
from cones_registry.registry import reservations
from cones_registry.registry.bases import Bases
from cones_registry.registry.blob_cache import blob_key, digest_of_key
from cones_registry.registry.check_report import CheckReport
from cones_registry.registry.ledger import Ledger, read_root
from cones_registry.registry.pruning import blob_entries
from cones_registry.store import Entry

_SEALED: Final = {
    "bases/": "base",
    "quotas/": "quota",
    "purged/": "purged",
    "moved/": "moved",
    "receipts/": "receipt",
}
"""Folder of small documents -> their kind."""


class Checker:
    """Checks one registry, and adds what it finds to a report."""

    def __init__(self, ledger: Ledger, bases: Bases, report: CheckReport) -> None:
        self._ledger = ledger
        self._bases = bases
        self._report = report

    def check(self, *, read_data: bool) -> CheckReport:
        """Compare catalogue, blobs, reservations and bases; with `read_data` verify every byte."""
        store = self._ledger.store
        with self._report.noting("cones.json"):
            read_root(store)
        if read_data:
            self._read_log()
        # Blobs and reservations before the catalogue: what is pushed meanwhile is then known.
        blobs = blob_entries(self._ledger)
        named = [
            (each, entry)
            for entry in store.list(reservations.PREFIX)
            if (each := reservations.parse_key(entry.key))
        ]
        reserved = {
            (each.owner, each.name, each.number): entry for each, entry in named if each.is_version
        }
        try:
            state = self._ledger.fresh_now()
            self._compare_with_log(state)
        except CorruptDataError as error:
            self._report.note(
                "corrupt", "log", f"{error}. To make the catalogue again: cones check --rebuild"
            )
            return self._report
        versions = versions_where(state, "true")
        self._report.versions, self._report.blobs = len(versions), len(blobs)
        self._compare(versions, blobs, reserved, state)
        if read_data:
            self._read_blobs(versions, blobs)
            self._read_reservations(entry for _, entry in named)
            for prefix, kind in _SEALED.items():
                self._read_sealed(prefix, kind)
        return self._report

    def _compare_with_log(self, state: State) -> None:
        """What this machine has read and the log no longer says: lost, or put back from a backup.

        Sync trusts that commits go only into runs; here the log is read anew, beside.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy = LocalCopy(Path(folder))
            try:
                Syncer(self._ledger.store, copy, self._ledger.registry_id, Clock()).sync()
                said = refs_of(copy.state())
            finally:
                copy.close()
        # Synced once more: what others purged meanwhile is no loss.
        for ref in sorted((refs_of(state) & refs_of(self._ledger.fresh_now())) - said):
            self._report.note(
                "lost",
                ref,
                "this machine has read it, but the log no longer says it: objects of the log were "
                "removed, or an older copy of the registry was put in its place",
            )

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
                self._report.note("unreserved", ref, "its version number is not reserved")
            if version.pruned:
                continue
            used.add(blob)
            if blob not in blobs and self._ledger.store.head(blob_key(blob)) is None:
                self._report.note("dangling", ref, f"its blob {blob} is not in the store")
            elif blob in blobs and blobs[blob].size != record["blob_bytes"]:
                self._report.note(
                    "size",
                    ref,
                    f"its blob has {blobs[blob].size} bytes, expected {record['blob_bytes']}",
                )
        for fingerprint in sorted({version.record["base"] for version in versions}):
            with self._report.noting(f"base {fingerprint}"):
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
        keys = segments.commit_keys(store)
        self._report.segments = len(keys)
        for key, data in store.get_many(keys):
            if data is not None:
                with self._report.noting(key):
                    segments.decode_segment(key, data)
                    self._report.read_bytes += len(data)
        read: set[str] = set()
        for number in self._ledger.chain.numbers():
            with self._report.noting(chain.manifest_key(number)):
                manifest = self._ledger.chain.read(number)
                for name, found in manifest.tables.items() if manifest else ():
                    for part in (part for run in found for part in run.parts):
                        if part.key not in read:
                            read.add(part.key)
                            self._read_part(TABLES[name], part)

    def _read_part(self, table: Table, part: Part) -> None:
        with self._report.noting(part.key):
            for _ in read_part(table, part, self._ledger.store.get(part.key)):
                pass
            self._report.read_bytes += part.size

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
            with self._report.noting(key):
                require_digest(data, digest, "the blob")
                mask = decode(data)
                self._report.read_bytes += len(data)
                for version in by_blob.get(digest, ()):
                    if version.record["mask_digest"] != mask.digest:
                        raise CorruptDataError(f"it holds mask {mask.digest}")
                    self._bases.require_table(version.record["base"], mask, key)

    def _read_sealed(self, prefix: str, kind: str) -> None:
        store = self._ledger.store
        for key, data in store.get_many([entry.key for entry in store.list(prefix)]):
            if data is not None:
                with self._report.noting(key):
                    unseal(kind, data, key)
                    self._report.read_bytes += len(data)

    def _read_reservations(self, entries: Iterable[Entry]) -> None:
        for key, data in self._ledger.store.get_many(entry.key for entry in entries):
            if data is not None:
                with self._report.noting(key):
                    reservations.decode_reservation(key, data)
                    self._report.read_bytes += len(data)
