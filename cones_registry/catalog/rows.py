"""Lines: what a fold needs of the tables of a local copy, and what it says of them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cones_registry.catalog.copy import Meta, State
from cones_registry.catalog.fold import Fold, name_digest, touched
from cones_registry.catalog.segments import Segment
from cones_registry.catalog.tables import TABLES, aliases_table, concepts_table, version_of

_ONE_BY_ONE = 8
"""Keys up to which each is looked up by itself: in a sorted file that reads next to nothing."""


def load_fold(
    state: State | None, registry_id: str, meta: Meta, segments: Sequence[Segment]
) -> Fold:
    """A fold that holds the versions and aliases that `segments` speak of."""
    fold = Fold(
        registry_id,
        condemned=dict(meta.condemned),
        purged=dict(meta.purged),
    )
    if state is None:
        return fold
    versions, aliases = touched(segments)
    cursor = state.connection.cursor()
    try:
        rows = _select(cursor, "concepts", TABLES["concepts"].key, versions)
        fold.versions = {
            (row["owner"], row["name"], row["version"]): version_of(row) for row in rows
        }
        fold.aliases = {
            (row["owner"], row["name"], row["alias"]): (row["generation"], row["version"])
            for row in _select(cursor, "aliases", TABLES["aliases"].key, aliases)
        }
    finally:
        cursor.close()
    return fold


def _select(
    cursor: Any, table: str, columns: Sequence[str], keys: set[Any]
) -> list[dict[str, Any]]:
    """Rows whose columns hold one of the keys."""
    found: list[dict[str, Any]] = []
    if len(keys) <= _ONE_BY_ONE:
        condition = " AND ".join(f"{name} = ?" for name in columns)
        for key in sorted(keys):
            answer = cursor.execute(f"SELECT * FROM {table} WHERE {condition}", list(key))
            names = [each[0] for each in answer.description]
            found += [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        return found
    schema = pa.schema([TABLES[table].schema.field(name) for name in columns])
    rows = [dict(zip(columns, key, strict=True)) for key in sorted(keys)]
    cursor.register("wanted", pa.Table.from_pylist(rows, schema))
    try:
        query = f"SELECT t.* FROM {table} t SEMI JOIN wanted USING ({', '.join(columns)})"
        found = cursor.sql(query).to_arrow_table().to_pylist()
        return found
    finally:
        cursor.unregister("wanted")


def fold_lines(fold: Fold) -> dict[str, pa.Table]:
    """The lines that a fold says anew, sorted."""
    return {
        "concepts": TABLES["concepts"].as_lines(concepts_table(fold.versions)),
        "aliases": TABLES["aliases"].as_lines(aliases_table(fold.aliases.items())),
    }


def purged_names(state: State, fold: Fold) -> list[tuple[str, str, int]]:
    """(owner, name, highest version) of the purged concepts that a state still has; a name is found
    by its digest."""
    cursor = state.connection.cursor()
    try:
        names = cursor.execute(
            "SELECT DISTINCT owner, name FROM concepts UNION SELECT owner, name FROM aliases"
        ).fetchall()
    finally:
        cursor.close()
    found = []
    for owner, name in names:
        highest = fold.purged.get(name_digest(fold.registry_id, owner, name))
        if highest is not None:
            found.append((owner, name, highest))
    return found
