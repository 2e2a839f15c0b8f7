"""The tables of the catalogue: their columns, and versions to rows and back.

The columns of ``concepts`` are the fields of ``Record``, with what folding needs beside them. A new
field of a record is a new column here with no edit.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin

import pyarrow as pa

from cones_registry.catalog.events import Key
from cones_registry.catalog.fold import AliasKey, Version
from cones_registry.catalog.history import HISTORY, HISTORY_KEY
from cones_registry.catalog.runs import Table
from cones_registry.record import Provenance, Record, Time, parse

_PLAIN: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()} | {
    bytes: pa.binary(),
    Provenance: pa.string(),
}


def _column(hint: Any) -> pa.DataType:
    """The Arrow type of a field with a type hint."""
    if hint is Time:
        return pa.timestamp("us")
    if hasattr(hint, "__metadata__"):
        limit = min((each.le for each in hint.__metadata__ if each.le is not None), default=2**63)
        if hint.__origin__ is int and limit < 2**31:
            return pa.int32()
        return _column(hint.__origin__)
    if get_origin(hint) in (typing.Union, UnionType):
        (inner,) = (each for each in get_args(hint) if each is not NoneType)
        return _column(inner)
    if get_origin(hint) is tuple:
        return pa.list_(_column(get_args(hint)[0]))
    if get_origin(hint) is typing.Literal:
        return _column(type(get_args(hint)[0]))
    return _PLAIN[hint]


_HINTS: Final = typing.get_type_hints(Record, include_extras=True)
_FIELDS: Final = {each.name: _column(_HINTS[each.name]) for each in dataclasses.fields(Record)}
"""Field of a record -> type of its column."""

CONCEPTS: Final = pa.schema(
    [
        ("ref", pa.string()),
        *_FIELDS.items(),
        ("method", pa.string()),
        ("removed", pa.bool_()),
        ("pruned", pa.bool_()),
        ("state", pa.string()),
    ]
)
"""Columns of ``concepts``. ``provenance`` and ``state`` are JSON; ``created`` is UTC."""

ALIASES: Final = pa.schema(
    [
        ("owner", pa.string()),
        ("name", pa.string()),
        ("alias", pa.string()),
        ("version", pa.int32()),
        ("generation", pa.int32()),
    ]
)
"""Columns of ``aliases``."""

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
    """One row of ``concepts``."""
    record = version.record
    row = {name: write(getattr(record, name)) for name, write in _WRITERS.items()}
    state: dict[str, Any] = {}
    if version.removed_stamp:
        state["removed"] = version.removed_stamp
    if version.condemned:
        state["condemned"] = version.condemned
    if version.tag_stamps:
        state["tags"] = version.tag_stamps
        state["pushed_tags"] = record.tags
        row["tags"] = version.tags
    return row | {
        "ref": record.ref,
        "method": record.provenance.method if record.provenance else None,
        "removed": version.removed,
        "pruned": version.pruned,
        "state": _json(state) if state else None,
    }


def version_of(row: Mapping[str, Any]) -> Version:
    """Inverse of ``row_of``; columns that are NULL or not there have their default.

    Raises:
        CorruptDataError: the row has values that a record cannot have.
    """
    state = json.loads(row["state"]) if row["state"] else {}
    said = {name: read(row[name]) for name, read in _READERS.items() if row.get(name) is not None}
    if "pushed_tags" in state:
        said["tags"] = state["pushed_tags"]
    return Version(
        parse(said, Record, f"the row of {str(row.get('ref'))[:300]!a}"),
        removed=row["removed"],
        removed_stamp=state.get("removed", ""),
        condemned=state.get("condemned", ""),
        tag_stamps={tag: (stamp, on) for tag, (stamp, on) in state.get("tags", {}).items()},
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


def _provenance(value: Provenance | None) -> str | None:
    return None if value is None else _json(value.to_json())


def _same(value: Any) -> Any:
    return value


def _of_column(special: Mapping[str, Callable[[Any], Any]], name: str) -> Callable[[Any], Any]:
    hint = _HINTS[name]
    if hint is Time:
        return special["time"]
    if Provenance in (hint, *get_args(hint)):
        return special["provenance"]
    return _same


_WRITERS: Final = {
    name: _of_column(
        {"time": lambda text: parse_time(text) if text else None, "provenance": _provenance}, name
    )
    for name in _FIELDS
}
_READERS: Final = {
    name: _of_column({"time": format_time, "provenance": json.loads}, name) for name in _FIELDS
}

TABLES: Final = {
    "concepts": Table("concepts", CONCEPTS, ("owner", "name", "version")),
    "aliases": Table("aliases", ALIASES, ("owner", "name", "alias")),
}
"""Tables that the runs and the local copy hold."""

RUN_TABLES: Final = TABLES | {"history": Table("history", HISTORY, HISTORY_KEY)}
"""Tables that the runs hold."""
