"""The tables of the catalogue: their columns, and versions to rows and back.

A snapshot's Parquet columns are those of `concepts` and `aliases` of each row; the local DuckDB
file has both tables, and the schema `internal` for what syncing needs.
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

from cones_registry.catalog.fold import AliasKey, Key, Version
from cones_registry.catalog.runs import Table

CONCEPTS: Final = pa.schema(
    [
        ("ref", pa.string()),
        ("owner", pa.string()),
        ("name", pa.string()),
        ("version", pa.int32()),
        ("base", pa.string()),
        ("mask_digest", pa.string()),
        ("blob_digest", pa.string()),
        ("blob_bytes", pa.int64()),
        ("neuron_count", pa.int64()),
        ("table_neuron_count", pa.int64()),
        ("density", pa.float64()),
        ("precision", pa.string()),
        ("layout", pa.string()),
        ("scope", pa.string()),
        ("token", pa.string()),
        ("class_noun", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("note", pa.string()),
        ("created", pa.timestamp("us")),
        ("method", pa.string()),
        ("provenance", pa.string()),
        ("removed", pa.bool_()),
        ("pruned", pa.bool_()),
        ("state", pa.string()),
        ("ranked", pa.bool_()),
        ("sketch", pa.binary()),
    ]
)
"""Columns of `concepts`. `provenance` and `state` are JSON; `created` is UTC."""

LATER: Final = frozenset(("ranked", "sketch"))
"""Columns that snapshots of before do not have; NULL then."""

ALIASES: Final = pa.schema(
    [
        ("owner", pa.string()),
        ("name", pa.string()),
        ("alias", pa.string()),
        ("version", pa.int32()),
        ("generation", pa.int32()),
    ]
)
"""Columns of `aliases`."""

SNAPSHOT_ALIASES: Final = "STRUCT(alias VARCHAR, generation INTEGER)[]"
"""DuckDB type of the column `aliases` of a snapshot: the aliases that name the row's version."""

_DUCKDB_TYPES: Final = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.binary(): "BLOB",
    pa.timestamp("us"): "TIMESTAMP",
    pa.list_(pa.string()): "VARCHAR[]",
}


def definition(schema: pa.Schema) -> str:
    """Column list of `CREATE TABLE`."""
    return ", ".join(f"{each.name} {_DUCKDB_TYPES[each.type]}" for each in schema)


def row_of(version: Version) -> dict[str, Any]:
    """One row of `concepts`."""
    record = version.record
    provenance = record.get("provenance")
    state: dict[str, Any] = {}
    if version.push:
        state["push"] = version.push
    if version.history:
        state["history"] = True
    if version.removed_stamp:
        state["removed"] = version.removed_stamp
    if version.tag_stamps:
        state["tags"] = version.tag_stamps
        state["pushed_tags"] = record["tags"]
    row = {name: record.get(name) for name in CONCEPTS.names}
    row.update(
        ref=f"{record['owner']}/{record['name']}:{record['version']}",
        tags=version.tags,
        created=parse_time(record["created"]),
        method=provenance["method"] if provenance else None,
        provenance=_json(provenance) if provenance else None,
        removed=version.removed,
        pruned=version.pruned,
        state=_json(state) if state else None,
        ranked=record.get("ranked", False),
        sketch=version.sketch or None,
    )
    return row


def version_of(row: Mapping[str, Any]) -> Version:
    """Inverse of `row_of`."""
    state = json.loads(row["state"]) if row["state"] else {}
    record = {name: row[name] for name in _RECORD_NAMES}
    record["created"] = format_time(row["created"])
    record["provenance"] = json.loads(row["provenance"]) if row["provenance"] else None
    record["tags"] = state.get("pushed_tags", row["tags"])
    record["ranked"] = bool(row["ranked"])
    return Version(
        record,
        push=state.get("push", ""),
        history=state.get("history", False),
        removed=row["removed"],
        removed_stamp=state.get("removed", ""),
        pruned=row["pruned"],
        tag_stamps={tag: (stamp, on) for tag, (stamp, on) in state.get("tags", {}).items()},
        sketch=row.get("sketch") or b"",
    )


def concepts_table(versions: Mapping[Key, Version]) -> pa.Table:
    """Rows of `concepts`, sorted by owner, name and version."""
    return pa.Table.from_pylist([row_of(versions[key]) for key in sorted(versions)], CONCEPTS)


def aliases_table(aliases: Iterable[tuple[AliasKey, tuple[int, int]]]) -> pa.Table:
    """Rows of `aliases`."""
    rows = [
        {"owner": owner, "name": name, "alias": alias, "version": number, "generation": generation}
        for (owner, name, alias), (generation, number) in sorted(aliases)
    ]
    return pa.Table.from_pylist(rows, ALIASES)


def parse_time(text: str) -> datetime.datetime:
    """UTC, without a zone, as DuckDB's TIMESTAMP has it."""
    return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC).replace(tzinfo=None)


def format_time(value: datetime.datetime) -> str:
    """ISO 8601 with microseconds and Z."""
    return value.isoformat(timespec="microseconds") + "Z"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


_NOT_OF_A_RECORD: Final = frozenset(("ref", "method", "removed", "pruned", "state", "sketch"))
_RECORD_NAMES: Final = tuple(name for name in CONCEPTS.names if name not in _NOT_OF_A_RECORD)

TABLES: Final = {
    "concepts": Table("concepts", CONCEPTS, ("owner", "name", "version")),
    "aliases": Table("aliases", ALIASES, ("owner", "name", "alias")),
}
"""Tables that the runs and the local copy hold."""
