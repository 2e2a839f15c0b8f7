"""Counts and sizes of a registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cones_registry.catalog.reader import run_query
from cones_registry.registry.ledger import Ledger


@dataclass(frozen=True)
class Statistics:
    """What a registry holds.

    Attributes:
        owners, concepts, versions: in use.
        removed: versions that can be restored.
        bases: base models of versions in use.
        blobs, blob_bytes: distinct masks in the store, as the catalogue has them.
        raw_bytes: what their members would take as int32 indices.
        dense_bytes: what the K/V weights of all versions would take as float32.
    """

    owners: int
    concepts: int
    versions: int
    removed: int
    bases: int
    blobs: int
    blob_bytes: int
    raw_bytes: int
    dense_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(self.__dict__)


def statistics(ledger: Ledger) -> Statistics:
    """Counts and sizes, now."""
    (row,) = run_query(
        ledger.fresh(),
        """
        SELECT count(DISTINCT owner) FILTER (NOT removed) AS owners,
            count(DISTINCT (owner, name)) FILTER (NOT removed) AS concepts,
            count(*) FILTER (NOT removed) AS versions,
            count(*) FILTER (removed AND NOT pruned) AS removed,
            count(DISTINCT base) FILTER (NOT removed) AS bases,
            count(DISTINCT blob_digest) FILTER (NOT pruned) AS blobs,
            (SELECT coalesce(sum(blob_bytes), 0)::BIGINT FROM (SELECT DISTINCT blob_digest,
                blob_bytes FROM concepts WHERE NOT pruned)) AS blob_bytes,
            coalesce(sum(neuron_count * 4) FILTER (NOT removed), 0)::BIGINT AS raw_bytes,
            coalesce(sum(table_neuron_count * 4) FILTER (NOT removed), 0)::BIGINT AS dense_bytes
        FROM concepts
        """,
    ).to_pylist()
    return Statistics(**row)
