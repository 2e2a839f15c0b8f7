"""Check: whether catalogue, blobs, reservations and bases fit together."""

from __future__ import annotations

from collections.abc import Iterable

from cones_registry.catalog import segments, snapshots
from cones_registry.catalog.copy import State
from cones_registry.catalog.fold import Key, Version
from cones_registry.catalog.reader import versions_where
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
        reserved = {
            (each.owner, each.name, each.number): entry
            for entry in store.list(reservations.PREFIX)
            if (each := reservations.parse_key(entry.key)) and each.alias is None
        }
        try:
            state = self._ledger.fresh_now()
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
            self._read_documents(reserved.values())
        return self._report

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
        keys = [entry.key for entry in store.list(segments.PREFIX)]
        self._report.segments = len(keys)
        for key, data in store.get_many(keys):
            if data is not None:
                with self._report.noting(key):
                    segments.decode_segment(key, data)
                    self._report.read_bytes += len(data)
        for number in snapshots.manifest_numbers(store):
            with self._report.noting(snapshots.manifest_key(number)):
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
            with self._report.noting(key):
                require_digest(data, digest, "the blob")
                mask = decode(data)
                self._report.read_bytes += len(data)
                for version in by_blob.get(digest, ()):
                    if version.record["mask_digest"] != mask.digest:
                        raise CorruptDataError(f"it holds mask {mask.digest}")
                    self._bases.require_table(version.record["base"], mask, key)

    def _read_documents(self, entries: Iterable[Entry]) -> None:
        for key, data in self._ledger.store.get_many(entry.key for entry in entries):
            if data is not None:
                with self._report.noting(key):
                    reservations.decode_reservation(key, data)
                    self._report.read_bytes += len(data)
