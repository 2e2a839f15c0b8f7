"""Upkeep: what keeps a registry small, whole and honest. Mixed into `Registry`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Protocol

from cones_registry.catalog.reader import versions_where
from cones_registry.manifest import Concept, Ref
from cones_registry.registry import archives, compaction, exporting, pruning
from cones_registry.registry.bases import Bases
from cones_registry.registry.blob_cache import CachedBlob
from cones_registry.registry.check_report import CheckReport
from cones_registry.registry.checking import Checker
from cones_registry.registry.compaction import CompactReport
from cones_registry.registry.ledger import Ledger
from cones_registry.registry.lookup import as_ref
from cones_registry.registry.pruning import PrunePlan
from cones_registry.registry.purging import PurgePlan, plan_purge
from cones_registry.registry.pushing import Pusher
from cones_registry.registry.quotas import Quota, Quotas, usage
from cones_registry.registry.rebuilding import Rebuilder
from cones_registry.registry.statistics import Statistics, statistics


class _Parts(Protocol):
    default_owner: str
    _ledger: Ledger
    _bases: Bases
    _quotas: Quotas
    _pusher: Pusher


class Upkeep:
    """Compaction, checks, deletion, quotas, archives, export."""

    def compact(
        self: _Parts, *, grace: float = compaction.DEFAULT_GRACE, minimum: int = 1
    ) -> CompactReport:
        """Fold the log into a new snapshot, and remove what was folded before the grace.

        Safe anywhere, at any time, by several at once.

        Args:
            grace: seconds; longer than clocks differ and readers take.
            minimum: segments below which no snapshot is made.
        """
        return compaction.compact(self._ledger, grace=grace, minimum=minimum)

    def check(self: _Parts, *, read_data: bool = False, rebuild: bool = False) -> CheckReport:
        """Compare catalogue, blobs and reservations.

        Args:
            read_data: read everything and verify every digest.
            rebuild: first put back, from reservations and blob footers, what the catalogue lost.
        """
        report = CheckReport()
        if rebuild:
            Rebuilder(self._ledger, report).rebuild()
        return Checker(self._ledger, self._bases, report).check(read_data=read_data)

    def plan_prune(self: _Parts, *, grace: float = pruning.DEFAULT_GRACE) -> PrunePlan:
        """What can be deleted: `.freed_bytes`, `.condemned_bytes`, `.execute()`.

        Args:
            grace: seconds between removal and condemning, and between condemning and deleting. With
                0 both happen at once: only where nobody else writes.
        """
        return pruning.plan_prune(self._ledger, grace)

    def plan_purge(
        self: _Parts, *, owner: str | None = None, ref: str | Ref | Concept | None = None
    ) -> PurgePlan:
        """What a purge of an owner or of one concept would remove for good; `.execute()` does it.

        Raises:
            UsageError: both or neither given, or a ref with a version.
            NotFoundError: there is nothing of it.
        """
        wanted = None
        if isinstance(ref, Concept):
            wanted = Ref(ref.owner, ref.name)
        elif ref is not None:
            wanted = as_ref(ref, self.default_owner)
        return plan_purge(self._ledger, owner, wanted)

    def stats(self: _Parts, *, list_store: bool = False) -> Statistics:
        """What the registry holds, and what the same concepts would take in other forms.

        Args:
            list_store: list every object too, for the bytes of log, snapshots and reservations: one
                request a thousand objects.
        """
        return statistics(self._ledger, self._bases, list_store=list_store)

    # -- quotas -----------------------------------------------------------------------------------

    def set_quota(
        self: _Parts, owner: str, *, concepts: int | None = None, bytes: int | None = None
    ) -> Quota:
        """Limit what an owner may keep; None: no limit. Enforced at push, by every writer."""
        return self._quotas.put(owner, concepts, bytes)

    def quota(self: _Parts, owner: str) -> Quota:
        """The limits of one owner."""
        return self._quotas.get(owner)

    def quotas(self: _Parts) -> list[Quota]:
        """The limits of every owner that has any."""
        return self._quotas.all()

    def usage(self: _Parts, owner: str) -> tuple[int, int]:
        """(concepts, bytes) that count against an owner's quota."""
        return usage(self._ledger.fresh(), owner)

    # -- other places -----------------------------------------------------------------------------

    def export_archive(
        self: _Parts,
        path: str | os.PathLike[str],
        refs: Iterable[str | Ref | Concept] | None = None,
    ) -> archives.ArchiveReport:
        """Write concepts as one self-contained `.tar.zst`; all that are in use without `refs`."""
        return archives.export_archive(self._ledger, self._bases, path, refs, self.default_owner)

    def import_archive(
        self: _Parts, path: str | os.PathLike[str], *, owner: str | None = None
    ) -> list[Concept]:
        """Push every concept of an archive, in one commit, each as the next version of its name.

        What is here already is not pushed again: of each concept the oldest versions, as far as
        they are here in the same order, with equal mask, base, scope, token and class noun.

        Args:
            path: the archive; every digest in it is checked, nothing is unpacked to disk.
            owner: whose they become; else whose they were.
        """
        return archives.import_archive(self._ledger, self._pusher, path, owner)

    def export_catalog(self: _Parts, url: str, *, format: str, **storage_options: Any) -> int:
        """Write the table of concepts for other engines; the number of rows.

        Args:
            url: a file or folder; for "delta" a table, to which each export adds one version.
            format: "parquet", "jsonl" or "delta".
            storage_options: for a URL of another store.
        """
        return exporting.export_catalog(self._ledger.fresh(), url, format, storage_options)

    def cached_blobs(self: _Parts) -> list[CachedBlob]:
        """What the local blob cache holds, last used first."""
        return self._ledger.blobs.list()

    def prune_cache(self: _Parts, limit: int = 0) -> int:
        """Shrink the local blob cache to `limit` bytes; bytes freed."""
        return self._ledger.blobs.prune(limit)

    def removed(self: _Parts) -> list[str]:
        """Refs that can be restored."""
        found = versions_where(self._ledger.fresh(), "removed AND NOT pruned", rest="ORDER BY ref")
        return ["{owner}/{name}:{version}".format(**version.record) for version in found]
