"""Rows: what a fold needs of the tables of a local copy, and what it writes back to them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from cones_registry.catalog.copy import Meta
from cones_registry.catalog.fold import AliasKey, Fold, Key, name_digest, touched
from cones_registry.catalog.segments import Segment
from cones_registry.catalog.tables import aliases_table, concepts_table, version_of
from cones_registry.digest import Digest


def load_fold(connection: Any, registry_id: str, meta: Meta, segments: list[Segment]) -> Fold:
    """A fold that holds the versions and aliases that `segments` speak of."""
    fold = Fold(
        registry_id,
        condemned=dict(meta.condemned),
        purged=dict(meta.purged),
        rewritten=dict(meta.rewritten),
    )
    versions, aliases, blobs = touched(segments)
    fold.versions = {
        (row["owner"], row["name"], row["version"]): version_of(row)
        for row in [*_rows_of(connection, versions), *_rows_with_blobs(connection, blobs)]
    }
    fold.aliases = _aliases_of(connection, aliases)
    return fold


def _rows_of(connection: Any, keys: set[Key]) -> list[dict[str, Any]]:
    if not keys:
        return []
    wanted = pa.table(
        {
            "owner": [key[0] for key in keys],
            "name": [key[1] for key in keys],
            "version": pa.array([key[2] for key in keys], pa.int32()),
        }
    )
    query = "SELECT c.* FROM concepts c SEMI JOIN wanted w USING (owner, name, version)"
    return _select(connection, query, wanted)


def _rows_with_blobs(connection: Any, blobs: set[Digest]) -> list[dict[str, Any]]:
    if not blobs:
        return []
    wanted = pa.table({"blob_digest": sorted(blobs)})
    query = "SELECT c.* FROM concepts c SEMI JOIN wanted w USING (blob_digest)"
    return _select(connection, query, wanted)


def _aliases_of(connection: Any, keys: set[AliasKey]) -> dict[AliasKey, tuple[int, int]]:
    if not keys:
        return {}
    wanted = pa.table(
        {
            "owner": [key[0] for key in keys],
            "name": [key[1] for key in keys],
            "alias": [key[2] for key in keys],
        }
    )
    query = "SELECT a.* FROM aliases a SEMI JOIN wanted w USING (owner, name, alias)"
    return {
        (row["owner"], row["name"], row["alias"]): (row["generation"], row["version"])
        for row in _select(connection, query, wanted)
    }


def _select(connection: Any, query: str, wanted: pa.Table) -> list[dict[str, Any]]:
    connection.register("wanted", wanted)
    try:
        rows: list[dict[str, Any]] = connection.sql(query).to_arrow_table().to_pylist()
        return rows
    finally:
        connection.unregister("wanted")


def insert(connection: Any, table: str, rows: pa.Table) -> None:
    """Add `rows` to a table of the same columns."""
    if rows.num_rows:
        connection.register("rows_in", rows)
        connection.execute(f"INSERT INTO {table} SELECT * FROM rows_in")
        connection.unregister("rows_in")


def store_fold(connection: Any, fold: Fold) -> None:
    """Write the fold's versions and aliases over what the tables say of them."""
    for table, rows, key in (
        ("concepts", concepts_table(fold.versions), "owner, name, version"),
        ("aliases", aliases_table(fold.aliases.items()), "owner, name, alias"),
    ):
        if rows.num_rows:
            connection.register("rows_in", rows)
            connection.execute(
                f"DELETE FROM {table} WHERE ({key}) IN (SELECT ({key}) FROM rows_in)"
            )
            connection.execute(f"INSERT INTO {table} SELECT * FROM rows_in")
            connection.unregister("rows_in")


def drop_purged(connection: Any, fold: Fold) -> None:
    """Remove the rows of purged names, found by their digests."""
    names = connection.execute(
        "SELECT owner, name, max(version) FROM concepts GROUP BY ALL "
        "UNION SELECT owner, name, max(version) FROM aliases GROUP BY ALL"
    ).fetchall()
    for owner, name, _ in names:
        highest = fold.purged.get(name_digest(fold.registry_id, owner, name))
        if highest is not None:
            for table in ("concepts", "aliases"):
                connection.execute(
                    f"DELETE FROM {table} WHERE owner = ? AND name = ? AND version <= ?",
                    [owner, name, highest],
                )
