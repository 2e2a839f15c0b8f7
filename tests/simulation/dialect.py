"""What a simulated run leaves out: no part of the protocol, and nearly all of the time.

Answers to the package's own SELECTs come from SQLite, whose database is made in no time: DuckDB
takes 25 ms to open and milliseconds a statement, and a run asks some hundred questions of a handful
of rows. Only what the package itself asks is understood: everything else fails loudly. Local copies
are kept in memory instead of in files. Bytes that were seen before are not encoded, decoded or
sketched again: a run has few masks, and several machines read each part of a run.
``test_search.py`` shows that runs on DuckDB and files are the same, step for step.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
from ulid import ULID

from cones_registry.catalog import runs
from cones_registry.catalog.copy import LocalCopy, State
from cones_registry.catalog.tables import TABLES
from cones_registry.digest import sha256_bytes
from cones_registry.registry import check, drafts, pull
from cones_registry.resolver.sketch import SketchFormat


class Session:
    """Tables that can be asked, as a connection of DuckDB can; each is filled when it is asked."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        self._tables = tables
        self._filled: set[str] = set()
        self._database: sqlite3.Connection | None = None
        self.types = {field.name: field.type for table in tables.values() for field in table.schema}
        self.concepts = tuple(tables["concepts"].schema.names)

    def cursor(self) -> Cursor:
        """One that can be asked."""
        return Cursor(self)

    def close(self) -> None:
        """Forget the tables."""
        if self._database is not None:
            self._database.close()
            self._database = None
            self._filled.clear()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = _empty()
        return self._database

    def add(self, name: str, table: pa.Table) -> None:
        """One table more."""
        _fill(self._open(), name, table)

    def run(self, sql: str, params: Sequence[Any]) -> sqlite3.Cursor:
        """The answer of SQLite, from whichever machine's thread."""
        database = self._open()
        for name in self._tables.keys() - self._filled:
            if name in sql:
                _fill(database, name, self._tables[name])
                self._filled.add(name)
        sizes = tuple(len(each) if isinstance(each, list) else -1 for each in params)
        values: list[Any] = []
        flat = [each for each in params]
        lists = [each for each in flat if isinstance(each, list)]
        if lists:
            # (a, b) IN (SELECT (unnest(?), unnest(?))): the lists are columns of one table.
            before = next(i for i, each in enumerate(flat) if isinstance(each, list))
            values = flat[:before]
            values += [value for row in zip(*lists, strict=True) for value in row]
            values += flat[before + len(lists) :]
        else:
            values = flat
        return database.execute(_translated(sql, sizes, self.concepts), values)


class Cursor:
    """As far as the package uses a cursor of DuckDB."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._answer: sqlite3.Cursor | None = None

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """Ask."""
        self._answer = self._session.run(sql, params)
        return self

    def sql(self, sql: str, *, params: Sequence[Any] = ()) -> Cursor:
        """Ask."""
        return self.execute(sql, params)

    def register(self, name: str, table: pa.Table) -> None:
        """Make a table of the caller's one that can be asked."""
        self._session.add(name, table)

    def unregister(self, name: str) -> None:
        """Take it away again."""
        self._session.run(f"DROP TABLE {name}", ())

    @property
    def description(self) -> Any:
        """One tuple a column, its name first."""
        assert self._answer is not None
        return self._answer.description

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [column[0] for column in self.description]

    @property
    def types(self) -> list[Any]:
        """None that would have to be turned into text."""
        return []

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Every row."""
        assert self._answer is not None
        names = [column[0] for column in self._answer.description]
        return [
            tuple(
                _read(self._session.types.get(name), value)
                for name, value in zip(names, row, strict=True)
            )
            for row in self._answer.fetchall()
        ]

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row."""
        rows = self.fetchall()
        return rows[0] if rows else None

    def to_arrow_table(self) -> pa.Table:
        """Every row, as Arrow."""
        assert self._answer is not None
        names = [column[0] for column in self._answer.description]
        rows = self.fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [() for _ in names]
        arrays = [
            pa.array(list(column), self._session.types.get(name))
            for name, column in zip(names, columns, strict=True)
        ]
        return pa.table(arrays, names=names)

    def to_arrow_reader(self, size: int = 0) -> pa.RecordBatchReader:
        """Every row, as a reader."""
        return self.to_arrow_table().to_reader()

    def interrupt(self) -> None:
        """Nothing takes long."""

    def close(self) -> None:
        """Nothing to close."""


@contextlib.contextmanager
def without_what_takes_time() -> Iterator[None]:
    """Within the block local copies are in memory and asked through a ``Session``, and what makes
    the same of the same bytes does so once."""
    disk: dict[Path, State] = {}

    def open_state(
        copy: Any, name: str, applied: Any, meta: Any, layers: Any, news: Any, replaced: Any
    ) -> State:
        assert not layers, "a registry of a simulated run has no more lines than news may have"
        tables = {}
        for table, lines in news.items():
            tables[table] = lines.select(TABLES[table].schema.names)
            tables[f"{table}_lines"] = lines
        session: Any = Session(tables)
        empty = not news["concepts"].num_rows
        return State(name, applied, meta, layers, news, replaced, session, is_empty=empty)

    def swap(copy: Any, applied: Any, meta: Any, layers: Any, news: Any, replaced: Any) -> State:
        name = str(ULID())
        disk[copy.folder] = copy._open_state(name, applied, meta, layers, news, replaced)
        return disk[copy.folder]

    instead: dict[str, Any] = {
        "_open_state": open_state,
        "_swap": swap,
        "_connect": lambda copy: None,
        "state": lambda copy: disk.get(copy.folder),
        "exclusive": lambda copy: contextlib.nullcontext(),
        "forget": lambda copy: disk.pop(copy.folder, None),
        "close": lambda copy: None,
    }
    before = {name: getattr(LocalCopy, name) for name in instead}
    for name, function in instead.items():
        setattr(LocalCopy, name, function)
    once = (
        (drafts, "encode_smallest", lambda mask, ranks=None: (mask.digest, ranks is None)),
        (SketchFormat, "sketch", lambda form, mask: mask.digest),
        (pull, "decode", sha256_bytes),
        (check, "decode", sha256_bytes),
    )
    others: list[tuple[Any, str, Any]] = [
        (place, name, getattr(place, name)) for place, name, _ in once
    ]
    for place, name, key_of in once:
        setattr(place, name, _once(getattr(place, name), key_of))
    others += [(place, "read_part", runs.read_part) for place in (runs, check)]
    for place in (runs, check):
        place.read_part = _parts_once(others[-1][2])
    others.append((duckdb, "extract_statements", duckdb.extract_statements))
    duckdb.extract_statements = statements
    # More threads would only hand each other tables of three lines.
    threads = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(threads)
        for name, function in before.items():
            setattr(LocalCopy, name, function)
        for place, name, function in others:
            setattr(place, name, function)


_SEEN: dict[tuple[Any, ...], Any] = {}


def _once(function: Callable[..., Any], key_of: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        key = (function.__qualname__, key_of(*arguments, **named))
        if key not in _SEEN:
            _SEEN[key] = function(*arguments, **named)
        return _SEEN[key]

    return call


def _parts_once(read: Callable[..., Iterator[pa.Table]]) -> Callable[..., Iterator[pa.Table]]:
    def call(table: Any, part: Any, data: bytes, *, to_rewrite: bool = False) -> Iterator[pa.Table]:
        key = (table.name, part, sha256_bytes(data), to_rewrite)
        if key not in _SEEN:
            if len(_SEEN) > 10_000:
                _SEEN.clear()
            _SEEN[key] = list(read(table, part, data, to_rewrite=to_rewrite))
        return iter(_SEEN[key])

    return call


def statements(sql: str) -> list[Any]:
    """What ``duckdb.extract_statements`` says of one SELECT."""
    assert sql.strip().upper().startswith("SELECT"), sql
    return [SimpleNamespace(query=sql, type=duckdb.StatementType.SELECT)]


def _empty() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    for name, count, function in _FUNCTIONS:
        database.create_function(name, count, function, deterministic=True)
    return database


def _fill(database: sqlite3.Connection, name: str, table: pa.Table) -> None:
    columns = table.schema.names
    database.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
    database.executemany(
        f"INSERT INTO {name} VALUES ({', '.join('?' for _ in columns)})",
        [[_written(value) for value in row.values()] for row in table.to_pylist()],
    )


def _written(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return json.dumps(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    return value


def _read(kind: pa.DataType | None, value: Any) -> Any:
    if value is None or kind is None:
        return value
    if pa.types.is_boolean(kind):
        return bool(value)
    if pa.types.is_list(kind):
        return json.loads(value)
    if pa.types.is_timestamp(kind) and isinstance(value, str):
        return datetime.datetime.fromisoformat(value)
    return value


_FUNCTIONS: tuple[tuple[str, int, Callable[..., Any]], ...] = (
    ("contains", 2, lambda text, part: None if text is None else part in text),
    ("list_contains", 2, lambda items, item: None if items is None else item in json.loads(items)),
    ("array_to_string", 2, lambda items, between: between.join(json.loads(items or "[]"))),
    ("concat_ws", -1, lambda between, *texts: between.join(t for t in texts if t is not None)),
)


@functools.lru_cache(maxsize=10_000)
def _translated(sql: str, sizes: tuple[int, ...], concepts: tuple[str, ...]) -> str:
    def without(match: re.Match[str]) -> str:
        left_out = {name.strip() for name in match[1].split(",")}
        return ", ".join(name for name in concepts if name not in left_out)

    sql = re.sub(r"\* EXCLUDE \(([^)]*)\)", without, sql)
    sql = re.sub(r"SELECT \(([\w, .]+)\) FROM", r"SELECT \1 FROM", sql)
    sql = re.sub(r"::[A-Z]+", "", sql).replace("SEMI JOIN", "JOIN")
    rows = max(sizes, default=-1)
    if rows >= 0:
        width = sum(size >= 0 for size in sizes)
        row = "(" + ", ".join("?" * width) + ")"
        table = "VALUES " + ", ".join([row] * rows)
        sql = re.sub(r"SELECT \(unnest\(\?\)(?:, unnest\(\?\))*\)", table, sql)
        sql = re.sub(r"SELECT unnest\(\?\)", table, sql)
    if "GROUP BY ALL" in sql:
        listed = sql.partition("FROM")[0].removeprefix("SELECT").split(",")
        plain = [item.strip() for item in listed if "(" not in item]
        sql = sql.replace("GROUP BY ALL", "GROUP BY " + ", ".join(plain))
    return sql
