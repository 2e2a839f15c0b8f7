"""First rows: ``SELECT * … ORDER BY … LIMIT n`` in two steps, so that few columns are sorted.

Over one table DuckDB sorts the columns of ORDER BY and then reads the rows that are left. Over the
view of news and layers it would read and sort every column of every row. So the places of the rows
are chosen first (table and rowid), and the statement runs over the rows at these places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from cones_registry.cache import ByteCache
from cones_registry.catalog.copy import State
from cones_registry.catalog.tables import TABLES

MOST_ROWS: Final = 1000
"""Rows beyond which reading them by their places saves nothing."""

_FITS: Final = re.compile(r"\*.*\bconcepts\b.*\border\s+by\b.*\blimit\b", re.I | re.S)
_CHOSEN: Final = "first_rows"
_READ: Final = ("select_list", "modifiers", "from_table", "where_clause")
"""Parts of a SELECT that are understood here; it must have no other."""


@dataclass(frozen=True)
class _Steps:
    """A statement in two steps.

    Attributes:
        choosing: SELECT of the places; takes the values of the statement.
        showing: SELECT over the rows at these places; takes none.
        limit: DuckDB's description of the statement's LIMIT.
    """

    choosing: str
    showing: str
    limit: dict[str, Any]


_KNOWN: Final[ByteCache[_Steps | None]] = ByteCache(
    2**20, lambda steps: 1000 if steps is None else 1000 + len(steps.choosing) + len(steps.showing)
)
"""Statement -> its steps; None where it is not understood."""


def over_first_rows(
    state: State, cursor: Any, statement: str, params: Sequence[Any]
) -> tuple[str, Sequence[Any]]:
    """(statement, its values) with the same answer as those given, where there is a faster one.

    Args:
        state: the local copy.
        cursor: a connection to it, which gets a view of the chosen rows.
        statement: one SELECT.
        params: its values.
    """
    if _FITS.search(statement) is None:
        return statement, params
    try:
        steps = _KNOWN.get(statement, lambda: _steps_of(statement, cursor))
        if steps is None or not _is_small(steps.limit, params):
            return statement, params
        _show(state, cursor, cursor.execute(steps.choosing, list(params)).fetchall())
        return steps.showing, ()
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, RuntimeError, ValueError, KeyError, TypeError, IndexError):
        return statement, params  # what is wrong with it is told of the statement as it was given


def _steps_of(statement: str, cursor: Any) -> _Steps | None:
    parsed = json.loads(_value(cursor, "SELECT json_serialize_sql(?)", statement))
    node = parsed["statements"][0]["node"]
    if not _is_understood(node):
        return None
    order, limit = node["modifiers"]
    table = node["from_table"] | {"alias": node["from_table"]["alias"] or "concepts"}
    choosing = node | {
        "select_list": [_column("_table"), _column("_line")],
        "from_table": _named(table, "concepts_places"),
    }
    showing = node | {
        "from_table": _named(table, _CHOSEN),
        "where_clause": None,
        "modifiers": [order],
    }
    return _Steps(_text(cursor, parsed, choosing), _text(cursor, parsed, showing), limit["limit"])


def _is_understood(node: dict[str, Any]) -> bool:
    """Whether a SELECT takes first rows of `concepts` as they are, and nothing else."""
    kinds = [each["type"] for each in node["modifiers"]]
    table = node["from_table"]
    empty = {"type", "cte_map", "aggregate_handling"} | set(_READ)
    if (
        node["type"] != "SELECT_NODE"
        or kinds != ["ORDER_MODIFIER", "LIMIT_MODIFIER"]
        or node["cte_map"]["map"]
        or node["aggregate_handling"] != "STANDARD_HANDLING"
        or any(value for name, value in node.items() if name not in empty)
        or table["type"] != "BASE_TABLE"
        or (table["table_name"] or table["qualified_name"]["path"][-1]) != "concepts"
        or table["schema_name"]
        or table["sample"]
        or table["column_name_alias"]
    ):
        return False
    order, limit = node["modifiers"]
    by = [each["expression"] for each in order["orders"]]
    plain = all(
        each["class"] in ("STAR", "COLUMN_REF") and not each["alias"]
        for each in node["select_list"]
    )
    return (
        plain
        and any(each["class"] == "STAR" for each in node["select_list"])
        and all(each["class"] not in ("CONSTANT", "STAR", "PARAMETER") for each in by)
        and '"PARAMETER"' not in json.dumps([node["select_list"], by])
        and '"WINDOW"' not in json.dumps([node["where_clause"], by])
        and limit["limit_type"] == "ROW_COUNT"
    )


def _is_small(limit: dict[str, Any], params: Sequence[Any]) -> bool:
    if limit["class"] == "PARAMETER":
        value = params[int(limit["identifier"]) - 1]
    else:
        literal = limit.get("literal") or {}
        value = int(literal["text"]) if "text" in literal else limit["value"]["value"]
    return isinstance(value, int) and 0 <= value <= MOST_ROWS


def _show(state: State, cursor: Any, places: Sequence[tuple[int, int]]) -> None:
    """Make a view of the rows at places, for this connection alone."""
    columns = ", ".join(TABLES["concepts"].schema.names)
    pieces = []
    for number, table in enumerate(state.tables("concepts")):
        here = [line for at, line in places if at == number]
        if here or not number:  # a join by rowid; a list in IN would be compared with every row
            pieces.append(
                f"SELECT {columns} FROM {table} WHERE rowid IN (SELECT unnest({here}::BIGINT[]))"
            )
    cursor.execute(f"CREATE TEMP VIEW {_CHOSEN} AS {' UNION ALL '.join(pieces)}")


def _column(name: str) -> dict[str, Any]:
    return {
        "class": "COLUMN_REF",
        "type": "COLUMN_REF",
        "alias": "",
        "query_location": 0,
        "column_names": [name],
    }


def _named(table: dict[str, Any], name: str) -> dict[str, Any]:
    named = table | {"table_name": name}
    if "qualified_name" in table:
        named["qualified_name"] = {"path": [name]}
    return named


def _text(cursor: Any, parsed: dict[str, Any], node: dict[str, Any]) -> str:
    """A changed SELECT as SQL."""
    whole = parsed | {"statements": [parsed["statements"][0] | {"node": node}]}
    return _value(cursor, "SELECT json_deserialize_sql(?)", json.dumps(whole))


def _value(cursor: Any, sql: str, given: str) -> str:
    ((found,),) = cursor.execute(sql, [given]).fetchall()
    return str(found)
