"""Reading the local copy: rows to concepts, and one SELECT of the user's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa

from cones_registry.catalog.copy import State
from cones_registry.catalog.events import Key
from cones_registry.catalog.first_rows import over_first_rows
from cones_registry.catalog.fold import Version
from cones_registry.catalog.tables import version_of
from cones_registry.catalog.watchdog import Watchdog
from cones_registry.digest import Digest
from cones_registry.errors import LimitExceededError, StoreUnavailableError, UsageError
from cones_registry.record import Concept, concept_from

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds a query may take."""

MAX_SQL_LENGTH: Final = 100_000
MAX_RESULT_BYTES: Final = 4 * 2**30
"""Of an answer in memory: every column of some millions of versions."""

_ROWS_AT_ONCE: Final = 100_000

_WATCHDOG: Final = Watchdog()
_DAMAGE: Final = re.compile(
    r"[Cc]orrupt database|computed checksum|database has been invalidated|Failed to deserialize"
)


def run_query(
    state: State,
    sql: str,
    params: Sequence[Any] = (),
    *,
    timeout: float | None = DEFAULT_TIMEOUT,
    as_text: bool = False,
) -> pa.Table:
    """The answer to exactly one SELECT over `concepts` and `aliases`.

    The file is open read-only, with nothing outside of it in reach and a bound on memory; the
    statement is parsed before it runs, and values travel beside it, never inside. (What DuckDB does
    not count is the one value that a function like `range` or `list` builds: SQL of strangers needs
    a bound on the process besides.)

    Args:
        state: the local copy.
        sql: one SELECT; each `?` stands for one of `params`.
        params: values.
        timeout: seconds after which it is stopped; None: never.
        as_text: columns whose values Python has no like of (intervals, times with a zone, dates
            before Christ, integers of 128 bits …) are DuckDB's own text of them.

    Raises:
        UsageError: not one SELECT, or one that DuckDB cannot run.
        LimitExceededError: stopped by the time or memory limit.
    """
    statement = _only_select(sql)
    cursor = state.connection.cursor()
    deadline = _WATCHDOG.watch(timeout, cursor.interrupt) if timeout else None
    try:
        with _healing(state):
            statement, params = over_first_rows(state, cursor, statement, params)
            return _answer(cursor, statement, params, as_text=as_text)
    except (LimitExceededError, StoreUnavailableError):
        raise
    # An error after the first rows comes as an OSError with DuckDB's text.
    except (duckdb.InterruptException, OSError) as error:
        if deadline is None or not deadline.expired:
            raise UsageError(f"the query cannot run: {str(error)[:1000]}") from error
        raise LimitExceededError(
            f"the query was stopped after {timeout:g} s. Ask for less, or give a longer timeout"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise LimitExceededError(
            f"the query needs more memory than allowed: {str(error)[:300]}. Ask for less, or set "
            "CONES_QUERY_MEMORY"
        ) from error
    except (duckdb.Error, RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"the query cannot run: {str(error)[:1000]}. Tables: concepts, aliases"
        ) from error
    finally:
        if deadline:
            _WATCHDOG.cancel(deadline)
        cursor.close()


# Types of DuckDB, by its own names, whose values are the same in Arrow, in Python and as text.
_PLAIN: Final = frozenset(
    {
        *("boolean", "varchar", "blob", "float", "double", "decimal", "enum", "uuid", "null"),
        *("tinyint", "smallint", "integer", "bigint", "hugeint"),
        *("utinyint", "usmallint", "uinteger", "ubigint"),
    }
)


def _without_end(statement: str) -> str:
    """A statement without the semicolon that ends it, and without comments behind that."""
    for place, kind in reversed(duckdb.tokenize(statement)):
        if kind != duckdb.token_type.comment:
            return statement[:place] if statement[place] == ";" else statement
    return statement


def _is_plain(kind: Any) -> bool:
    """Whether a type of DuckDB, as its Python library describes it, needs no text."""
    if kind.id in ("list", "array", "struct"):
        return all(name == "size" or _is_plain(child) for name, child in kind.children)
    return kind.id in _PLAIN


def _answer(cursor: Any, statement: str, params: Sequence[Any], *, as_text: bool) -> pa.Table:
    relation = cursor.sql(statement, params=list(params))
    names = list(relation.columns)
    odd = [not _is_plain(kind) for kind in relation.types]
    if as_text and any(odd):
        # By position: a join of both tables has columns of one name.
        chosen = (f"c{n}::varchar as c{n}" if each else f"c{n}" for n, each in enumerate(odd))
        places = ", ".join(f"c{n}" for n in range(len(odd)))
        inner = _without_end(statement)
        statement = f"select {', '.join(chosen)} from ({inner}\n) as answer({places})"
        relation = cursor.sql(statement, params=list(params))
    found = _read(relation.to_arrow_reader(_ROWS_AT_ONCE))
    return found.rename_columns(names) if as_text else found


@contextlib.contextmanager
def _healing(state: State) -> Iterator[None]:
    """Throw a local copy away whose files turn out to be damaged; the next read makes it again."""
    try:
        yield
    except (duckdb.Error, OSError) as error:
        if _DAMAGE.search(str(error)) is None:
            raise
        state.connection.discard()
        raise StoreUnavailableError(
            f"the local copy was damaged on disk: {str(error)[:200]}. It is made again with the "
            "next read: try again"
        ) from error


def _read(reader: Any) -> pa.Table:
    """All rows, as long as they are not too many for the memory of this machine."""
    batches, size = [], 0
    for batch in reader:
        size += batch.nbytes
        if size > MAX_RESULT_BYTES:
            raise LimitExceededError(
                f"the answer has more than {MAX_RESULT_BYTES} bytes. Ask for fewer rows or columns"
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def _only_select(sql: str) -> str:
    if not isinstance(sql, str) or not sql.strip() or len(sql) > MAX_SQL_LENGTH or "\0" in sql:
        raise UsageError(f"a query is one SELECT of at most {MAX_SQL_LENGTH} characters")
    try:
        statements = duckdb.extract_statements(sql)
    except (duckdb.Error, RuntimeError, ValueError) as error:
        raise UsageError(f"the query cannot be read: {str(error)[:1000]}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(each.type.name for each in statements[:5]) or "nothing"
        raise UsageError(
            f"a query is exactly one SELECT; this is {kinds}. The catalogue is changed with push, "
            "alias, tag, remove and restore"
        )
    text: str = statements[0].query
    return text


def versions_where(
    state: State, condition: str, params: Sequence[Any] = (), *, rest: str = ""
) -> list[Version]:
    """Versions for which an SQL condition of this package's own holds; `rest` follows it."""
    sql = f"SELECT * FROM concepts WHERE {condition} {rest}"
    return [version_of(row) for row in _rows(state, sql, params)]


def _rows(state: State, sql: str, params: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows for a statement of this package's own: no parsing, no time limit."""
    if state.is_empty:
        return []
    cursor = state.connection.cursor()
    try:
        with _healing(state):
            # Not through Arrow: most answers are a row or two, its tables cost more than those.
            names = [column[0] for column in cursor.execute(sql, list(params)).description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    finally:
        cursor.close()


def refs_of(state: State | None) -> set[str]:
    """Every version there is, removed ones included."""
    if state is None:
        return set()
    return {row["ref"] for row in _rows(state, "SELECT ref FROM concepts", [])}


def any_of(columns: Sequence[str], keys: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """(SQL condition, its values): the columns hold one of the keys; at least one key.

    One key is compared with `=`: four times as fast as a join with a list of one.
    """
    if len(keys) == 1:
        return " AND ".join(f"{column} = ?" for column in columns), list(keys[0])
    listed = ", ".join("unnest(?)" for _ in columns)
    values = [list(column) for column in zip(*keys, strict=True)]
    return f"({', '.join(columns)}) IN (SELECT ({listed}))", values


def highest_versions(state: State, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """(owner, name) -> highest version, removed ones included, of the names that are there."""
    condition, params = any_of(("owner", "name"), sorted(names))
    rows = _rows(
        state,
        f"SELECT owner, name, max(version) AS version FROM concepts WHERE {condition} GROUP BY ALL",
        params,
    )
    return {(row["owner"], row["name"]): row["version"] for row in rows}


def has_mask(state: State, digests: Iterable[Digest]) -> bool:
    """Whether some version, in use or not, has one of these masks."""
    condition, params = any_of(("mask_digest",), [(digest,) for digest in digests])
    return bool(_rows(state, f"SELECT 1 FROM concepts WHERE {condition} LIMIT 1", params))


def concepts_of(state: State, versions: Iterable[Version]) -> list[Concept]:
    """The records users hold, with the aliases that name them now, in the same order."""
    listed = list(versions)
    aliases: dict[Key, list[str]] = {}
    names = sorted({(v.record.owner, v.record.name) for v in listed})
    for start in range(0, len(names), 1000):
        chunk = names[start : start + 1000]
        places = ", ".join("(?, ?)" for _ in chunk)
        rows = _rows(
            state,
            f"SELECT owner, name, version, alias FROM aliases WHERE (owner, name) IN ({places})",
            [part for name in chunk for part in name],
        )
        for row in rows:
            key = (row["owner"], row["name"], row["version"])
            aliases.setdefault(key, []).append(row["alias"])
    return [concept_of(version, aliases.get(version.record.place, [])) for version in listed]


def concept_of(version: Version, aliases: Sequence[str] = ()) -> Concept:
    """What users see of a version."""
    return concept_from(
        version.record,
        tags=tuple(version.tags),
        aliases=tuple(sorted(aliases)),
        removed=version.removed,
    )
