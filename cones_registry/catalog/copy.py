"""The local copy of the catalogue: layers that stay, and the news on top of them.

`layer-<ulid>.duckdb` is a DuckDB file that is never changed once it has its name: the base, made
from the runs, and at times a smaller one over it. `state-<ulid>.bin` holds the news as Arrow
tables, which of the layers' lines they replace, and what syncing needs to know; it is small, and
each sync writes it anew. `CURRENT` names the state. The tables `concepts` and `aliases` that
queries see are views: the news, and the layers without what was replaced.

News go down into a layer when they are many, and the layer into the base when it has grown to a
fair share of it: so what a sync writes follows what is new.

A state is made aside and swapped in with `os.replace`; readers never wait for builders, and of two
builders at once both make a whole state. One engine in memory serves a handle; layers are attached
to it read-only, and SQL can reach no other file.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import zstandard
from ulid import ULID

from cones_registry.catalog import runs
from cones_registry.catalog.chain import Position
from cones_registry.catalog.runs import GONE, Table
from cones_registry.catalog.tables import TABLES, definition
from cones_registry.digest import Digest
from cones_registry.errors import StoreUnavailableError
from cones_registry.store import Fault
from cones_registry.store.fault import no_fault
from cones_registry.store.locks import FileLock

COPY_VERSION: Final = 3
"""Layout of the local files; another one is thrown away and built again."""

LOCK_SECONDS: Final = 10.0
"""How long a builder waits for another one before it builds beside it; once it has waited in vain,
it waits no more until the lock is free again."""

NEWS_ROWS: Final = 2048
"""Lines of news beyond which they go down into a layer."""

SHARE: Final = 8
"""A layer goes down into the one below when it has more than this part of its lines."""

SMALL_BLOCK: Final = 16_384
_SMALL_LAYER: Final = 100_000
_BATCH_ROWS: Final = 16_384
_MAGIC: Final = b"CONES-STATE\n"
_ABANDONED_SECONDS: Final = 3600.0

SEQUENCE: Final = "_sequence"
"""Hidden column of news and layers: the number of the sync that last changed the line."""

LINES: Final = {
    name: Table(name, table.schema.append(pa.field(SEQUENCE, pa.int64())), table.key)
    for name, table in TABLES.items()
}
"""The tables as a local copy keeps them."""

_PLACES: Final = ("*", "{table} AS _table", "rowid AS _line")
"""Columns of the views that also say where each line is."""

_REPLACED: Final = pa.schema([("table", pa.string()), ("layer", pa.string()), ("line", pa.int64())])

ENGINE: Final[dict[str, Any]] = {
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}
"""How the engine is opened. Then files outside of the copy's folder are closed to it, and the
settings locked.

`CONES_QUERY_MEMORY` bounds its memory, 2GB if it is not set; `CONES_QUERY_SPILL` what it writes to
the disk beyond that, 8GB if it is not set.
"""


@dataclass
class Meta:
    """What syncing knows besides the tables.

    Attributes:
        position: the newest manifest whose commits are all in.
        sequence: number of the sync that made the state.
        latest: the latest stamp seen.
        condemned, purged, purged_blobs: as in `Fold`.
    """

    position: Position = field(default_factory=Position)
    sequence: int = 0
    latest: str = ""
    condemned: dict[Digest, tuple[str, int]] = field(default_factory=dict)
    purged: dict[Digest, int] = field(default_factory=dict)
    purged_blobs: list[Digest] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Meta:
        """Inverse of `to_json`."""
        meta = cls(**value)
        meta.position = Position(**value["position"])
        meta.condemned = {key: (stamp, size) for key, (stamp, size) in meta.condemned.items()}
        return meta


@dataclass(frozen=True)
class Layer:
    """One DuckDB file of the copy: its name, its lines per table, its bytes."""

    name: str
    rows: Mapping[str, int]
    size: int

    @property
    def total(self) -> int:
        """Lines of all tables."""
        return sum(self.rows.values())

    @property
    def file(self) -> str:
        """Its file in the folder."""
        return f"layer-{self.name}.duckdb"


Applied = dict[str, tuple[int, int]]
"""Stamp of a commit that is in and listed -> (sync that applied it, manifest that folded it or 0).
"""


class Session:
    """Connections to one state: what they call `concepts` and `aliases` is that state's."""

    def __init__(self, engine: Any, schema: str, discard: Callable[[], None]) -> None:
        self._engine = engine
        self.schema = schema
        self.discard = discard
        """To be called by who finds the files damaged: the next sync makes them anew."""

    def cursor(self) -> Any:
        """A connection of its own, to be closed by who took it."""
        cursor = self._engine.cursor()
        cursor.execute(f"USE memory.{self.schema}")
        return cursor


@dataclass(frozen=True, eq=False)
class State:
    """One state of the local copy, opened for reading.

    Attributes:
        name: ULID of the state; no other one has it, whatever was removed between.
        applied: the commits that are in and may still be listed in the log.
        meta: what syncing knows besides the tables.
        layers: the DuckDB files below the news, the base first.
        news: lines of each table above the layers, sorted by key.
        replaced: which lines of the layers the news replace or take away.
        connection: take a `cursor()` of it in each thread.
        is_empty: whether there is no version in it, so that nobody need ask.
    """

    name: str
    applied: Applied
    meta: Meta
    layers: tuple[Layer, ...]
    news: Mapping[str, pa.Table]
    replaced: pa.Table
    connection: Session
    is_empty: bool

    def tables(self, name: str) -> list[str]:
        """SQL names of what a table's view is of: the news, and the layers from the base on.

        Their positions are ``_table`` in the view ``<name>_places``, whose ``_line`` is the rowid.
        """
        return [
            f"memory.{self.connection.schema}_news.{name}",
            *(f"{_catalog(layer)}.{name}" for layer in self.layers),
        ]


# DuckDB complains at interpreter exit about connections that are open then.
_OPEN: Final[weakref.WeakSet[LocalCopy]] = weakref.WeakSet()
_LEFT_BY_FORK: Final[list[Any]] = []
"""Engines of a parent process: to close one here would wait for threads that a fork lost."""


@atexit.register
def _close_all() -> None:
    for copy in list(_OPEN):
        copy.close()


class _Damaged(Exception):
    """The files of a state are not what they should be."""


class LocalCopy:
    """The folder of local files of one registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Fault = no_fault
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(
                f"cannot make the cache folder {folder}: {error}. Set CONES_CACHE to a folder "
                "that may be written"
            ) from error
        self._start()
        _OPEN.add(self)

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._file_lock = FileLock(self.folder / "lock")
        self._patience = LOCK_SECONDS
        self._engine: Any = None
        self._state: State | None = None
        self._attached: set[str] = set()
        self._opened: list[tuple[weakref.ref[State], str, frozenset[str]]] = []
        self._count = 0

    def _after_fork(self) -> None:
        """A child starts anew: locks and engine are its parent's."""
        if self._process != os.getpid():
            _LEFT_BY_FORK.append((self._engine, self._state, self._file_lock))
            self._start()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only builder of all threads, and of all processes that do not stand still.

        Two builders at once do no harm. So one that was stopped with the lock in its hand is waited
        for `LOCK_SECONDS` and then passed by, and a disk that knows no locks is done without.
        """
        self._after_fork()
        with self._lock:
            held = self._file_lock.acquire(self._patience)
            self._patience = LOCK_SECONDS if held else 0.0
            try:
                yield
            finally:
                if held:
                    self._file_lock.release()

    # -- reading ----------------------------------------------------------------------------------

    def state(self) -> State | None:
        """The current state, None if there is none that can be read."""
        self._after_fork()
        with self._lock:
            for _ in range(20):
                current = self._current()
                if current is None:
                    return None
                if self._state is not None and self._state.name == current[0]:
                    return self._state
                try:
                    self._turn_to(self._load(*current))
                    return self._state
                except FileNotFoundError:
                    continue  # swapped since CURRENT was read
                except (_Damaged, duckdb.Error, pa.ArrowException, ValueError, TypeError, KeyError):
                    return None  # damaged or of an older layout: it is built again
            return None

    def _current(self) -> tuple[str, str] | None:
        """(name, digest) of the current state."""
        try:
            name, digest = (self.folder / "CURRENT").read_text(encoding="ascii").split()
            return str(ULID.from_str(name)), digest
        except (FileNotFoundError, ValueError):
            return None

    def _load(self, name: str, digest: str) -> State:
        data = (self.folder / f"state-{name}.bin").read_bytes()
        if hashlib.sha256(data).hexdigest() != digest or not data.startswith(_MAGIC):
            raise _Damaged
        start = len(_MAGIC) + 4
        end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
        head = json.loads(zstandard.ZstdDecompressor().decompress(data[start:end]))
        if head["layout"] != COPY_VERSION:
            raise _Damaged
        found: dict[str, pa.Table] = {}
        for table, size in head["tables"]:
            with pa.ipc.open_stream(pa.BufferReader(data[end : end + size])) as stream:
                found[table] = stream.read_all()
            end += size
        layers = tuple(Layer(**each) for each in head["layers"])
        for layer in layers:
            if (self.folder / layer.file).stat().st_size != layer.size:
                raise _Damaged
        return self._open_state(
            name,
            {stamp: (sync, fold) for stamp, sync, fold in head["applied"]},
            Meta.from_json(head["meta"]),
            layers,
            {table: found[table] for table in LINES},
            found["replaced"],
        )

    def _open_state(
        self,
        name: str,
        applied: Applied,
        meta: Meta,
        layers: tuple[Layer, ...],
        news: Mapping[str, pa.Table],
        replaced: pa.Table,
    ) -> State:
        engine = self._connect()
        for layer in layers:
            self._attach(layer)
        self._count += 1
        schema = f"s{self._count}"
        cursor = engine.cursor()
        try:
            cursor.execute("BEGIN")
            cursor.execute(f"CREATE SCHEMA memory.{schema}")
            cursor.execute(f"CREATE SCHEMA memory.{schema}_news")
            cursor.register("replaced_in", replaced)
            cursor.execute(
                f"CREATE TABLE memory.{schema}_news.replaced AS SELECT * FROM replaced_in "
                + "".join(
                    f"UNION ALL SELECT * FROM {_catalog(layer)}.internal.replaced "
                    for layer in layers[1:]
                )
            )
            for table in LINES.values():
                cursor.register("lines_in", news[table.name])
                columns = definition(table.schema)
                place = f"memory.{schema}_news.{table.name}"
                cursor.execute(f"CREATE TABLE {place} ({columns})")
                cursor.execute(f"INSERT INTO {place} SELECT * FROM lines_in")
                own = TABLES[table.name].schema.names
                for kind, names in (("", own), ("_lines", None), ("_places", _PLACES)):
                    cursor.execute(
                        f"CREATE VIEW memory.{schema}.{table.name}{kind} AS "
                        + _view(table, schema, layers, names, cursor)
                    )
            cursor.execute("COMMIT")
        finally:
            cursor.close()
        rows = len(news["concepts"]) + sum(layer.rows["concepts"] for layer in layers)
        session = Session(engine, schema, lambda: self._discard(name))
        state = State(name, applied, meta, layers, news, replaced, session, is_empty=not rows)
        uses = frozenset(_catalog(layer) for layer in layers)
        self._opened.append((weakref.ref(state), schema, uses))
        return state

    def _turn_to(self, state: State) -> None:
        """Read `state` from here on; what no state needs that somebody holds is let go."""
        self._state = state
        live = [each for each in self._opened if each[0]() is not None]
        dead = [each for each in self._opened if each[0]() is None]
        kept = frozenset[str]().union(*(uses for _, _, uses in live))
        self._opened = live
        cursor = self._connect().cursor()
        try:
            for _, schema, _ in dead:
                with contextlib.suppress(duckdb.Error):
                    cursor.execute(f"DROP SCHEMA memory.{schema} CASCADE")
                    cursor.execute(f"DROP SCHEMA memory.{schema}_news CASCADE")
            for name in self._attached - kept:
                with contextlib.suppress(duckdb.Error):
                    cursor.execute(f"DETACH {name}")
        finally:
            cursor.close()
        self._attached &= kept

    def _discard(self, name: str) -> None:
        """Have a state made anew."""
        with self._lock:
            current = self._current()
            if current is not None and current[0] == name:
                (self.folder / "CURRENT").unlink(missing_ok=True)
            self.close()  # an engine that met damage answers nothing more

    def _connect(self) -> Any:
        if self._engine is None:
            spill = self.folder / "spill" / str(ULID())
            config = ENGINE | {
                "memory_limit": os.environ.get("CONES_QUERY_MEMORY") or "2GB",
                "max_temp_directory_size": os.environ.get("CONES_QUERY_SPILL") or "8GB",
                "temp_directory": str(spill),
            }
            engine = duckdb.connect(":memory:", config=config)
            engine.execute(f"SET allowed_directories = [{_quoted(f'{self.folder}/')}]")
            engine.execute("SET enable_external_access = false")
            engine.execute("SET lock_configuration = true")
            self._engine = engine
        return self._engine

    def _attach(self, layer: Layer) -> None:
        name = _catalog(layer)
        if name not in self._attached:
            path = self.folder / layer.file
            if not path.is_file():
                raise FileNotFoundError(path)
            self._engine.execute(f"ATTACH {_quoted(str(path))} AS {name} (READ_ONLY)")
            self._attached.add(name)

    # -- building ---------------------------------------------------------------------------------

    def build(
        self,
        source: State | None,
        news: Mapping[str, pa.Table],
        meta: Meta,
        applied: Applied,
        *,
        without: Sequence[tuple[str, str, int]] = (),
    ) -> State:
        """Make the state of `source` and some news, and swap it in.

        Args:
            source: what it builds upon; None: nothing.
            news: lines of each table that replace those of equal key, sorted; `gone` takes away.
            meta, applied: of the new state.
            without: (owner, name, highest version) whose lines go from every file.
        """
        lines = {
            name: _stamped(table, news.get(name), meta.sequence) for name, table in TABLES.items()
        }
        if source is None:
            source = self._empty()
        tops, replaced = {}, [source.replaced]
        for name, table in LINES.items():
            replaced += self._replaced_by(source, table, lines[name])
            merged = runs.merge(
                table, [[lines[name]], [table.as_lines(source.news[name])]], keep_gone=False
            )
            tops[name] = pa.concat_tables([*merged, table.lines.empty_table()]).drop_columns([GONE])
        layers = source.layers
        together = pa.concat_tables(replaced)
        if together.num_rows:
            together = together.group_by(_REPLACED.names).aggregate([])
            together = together.select(_REPLACED.names).combine_chunks()
        if without:
            tops = {name: _without(tops[name], without) for name in tops}
        count = sum(top.num_rows for top in tops.values())
        keep = 0 if without and layers else _to_keep(layers, count)
        if keep is not None:
            seen = self._open_state("", {}, source.meta, layers, tops, together)
            made = self._merge_down(seen, keep, without)
            layers = (*layers[:keep], made) if made else layers[:keep]
            tops = {name: table.schema.empty_table() for name, table in LINES.items()}
            together = _REPLACED.empty_table()
        return self._swap(applied, meta, layers, tops, together)

    def build_from(
        self, sources: Mapping[str, Iterator[pa.Table]], meta: Meta, applied: Applied, rows: int
    ) -> State:
        """Make a state of whole tables, and swap it in.

        Args:
            sources: lines of each table, sorted, of distinct keys.
            meta, applied: of the new state.
            rows: about how many lines there are.
        """
        if rows <= NEWS_ROWS:
            news = {
                name: pa.concat_tables([*sources[name], table.lines.empty_table()])
                for name, table in TABLES.items()
            }
            return self.build(None, news, meta, applied)
        stamped = {
            name: map(functools.partial(_stamped, table, sequence=meta.sequence), sources[name])
            for name, table in TABLES.items()
        }
        layer = self._write_layer(stamped, _REPLACED.empty_table(), rows)
        empty = {name: table.schema.empty_table() for name, table in LINES.items()}
        layers = (layer,) if layer.total else ()
        return self._swap(applied, meta, layers, empty, _REPLACED.empty_table())

    def _empty(self) -> State:
        empty = {name: table.schema.empty_table() for name, table in LINES.items()}
        session = Session(self._connect(), "main", lambda: None)
        return State("", {}, Meta(), (), empty, _REPLACED.empty_table(), session, is_empty=True)

    def _replaced_by(self, source: State, table: Table, lines: pa.Table) -> Iterator[pa.Table]:
        """Which lines of the layers have the keys of `lines`."""
        if not lines.num_rows or not source.layers:
            return
        columns = ", ".join(table.key)
        cursor = source.connection.cursor()
        try:
            keys = lines.select(list(table.key))
            cursor.register("keys_in", keys)
            for layer in source.layers:
                place = f"{_catalog(layer)}.{table.name}"
                if lines.num_rows <= 8:  # looked up one by one in the sorted file
                    condition = " AND ".join(f"{name} = ?" for name in table.key)
                    found = [
                        line
                        for key in keys.to_pylist()
                        for (line,) in cursor.execute(
                            f"SELECT rowid FROM {place} WHERE {condition}", list(key.values())
                        ).fetchall()
                    ]
                else:
                    found = [
                        line
                        for (line,) in cursor.execute(
                            f"SELECT rowid FROM {place} SEMI JOIN keys_in USING ({columns})"
                        ).fetchall()
                    ]
                yield pa.table(
                    [[table.name] * len(found), [layer.name] * len(found), found],
                    schema=_REPLACED,
                )
        finally:
            cursor.close()

    def _merge_down(
        self, state: State, keep: int, without: Sequence[tuple[str, str, int]]
    ) -> Layer | None:
        """The news and every layer from number `keep` on as one layer; None if that is nothing."""
        upper = state.layers[keep:]
        kept = pa.array([layer.name for layer in state.layers[:keep]], pa.string())
        cursor = state.connection.cursor()
        try:
            schema = state.connection.schema
            replaced = cursor.sql(f"SELECT * FROM memory.{schema}_news.replaced").to_arrow_table()
            replaced = replaced.filter(pc.is_in(replaced["layer"], kept)).cast(_REPLACED)
            sources = {
                table.name: runs.merge(
                    table,
                    [
                        [table.as_lines(state.news[table.name])],
                        *(_layer_lines(state, table, each, without) for each in reversed(upper)),
                    ],
                    keep_gone=False,
                )
                for table in LINES.values()
            }
            rows = sum(layer.total for layer in upper) + sum(map(len, state.news.values()))
            made = self._write_layer(sources, replaced, rows)
        finally:
            cursor.close()
        if not made.total and not replaced.num_rows:
            (self.folder / made.file).unlink(missing_ok=True)
            return None
        return made

    def _write_layer(
        self, sources: Mapping[str, Iterator[pa.Table]], replaced: pa.Table, rows: int
    ) -> Layer:
        name = str(ULID())
        aside = self.folder / f"building-{name}.duckdb"
        engine = self._connect()
        cursor = engine.cursor()
        block = f" (BLOCK_SIZE {SMALL_BLOCK})" if rows < _SMALL_LAYER else ""
        place = f"b{name.lower()}"
        counts: dict[str, int] = {}
        try:
            cursor.execute(f"ATTACH {_quoted(str(aside))} AS {place}{block}")
            try:
                cursor.execute("BEGIN")
                cursor.execute(f"CREATE SCHEMA {place}.internal")
                cursor.register("replaced_in", replaced)
                cursor.execute(
                    f"CREATE TABLE {place}.internal.replaced AS SELECT * FROM replaced_in"
                )
                for table in LINES.values():
                    cursor.execute(
                        f"CREATE TABLE {place}.{table.name} ({definition(table.schema)})"
                    )
                    counted = _Counted(sources[table.name], table)
                    cursor.register("lines_in", counted.reader())
                    cursor.execute(f"INSERT INTO {place}.{table.name} SELECT * FROM lines_in")
                    counts[table.name] = counted.rows
                cursor.execute("COMMIT")
                cursor.execute(f"CHECKPOINT {place}")
            finally:
                with contextlib.suppress(duckdb.Error):
                    cursor.execute("ROLLBACK")
                cursor.execute(f"DETACH {place}")
            layer = Layer(name, counts, aside.stat().st_size)
            self.fault("layer", name)
            aside.replace(self.folder / layer.file)
            return layer
        except OSError as error:
            raise _no_room(self.folder, error) from error
        except duckdb.IOException as error:
            raise _no_room(self.folder, error) from error
        finally:
            cursor.close()
            aside.unlink(missing_ok=True)
            Path(f"{aside}.wal").unlink(missing_ok=True)

    def _swap(
        self,
        applied: Applied,
        meta: Meta,
        layers: tuple[Layer, ...],
        news: Mapping[str, pa.Table],
        replaced: pa.Table,
    ) -> State:
        with self._lock:
            name = str(ULID())
            state = self._open_state(name, applied, meta, layers, news, replaced)
            data = _encode(state)
            digest = hashlib.sha256(data).hexdigest()
            aside = self.folder / f"building-{name}.bin"
            pointer = self.folder / f"building-{name}.current"
            try:
                aside.write_bytes(data)
                aside.replace(self.folder / f"state-{name}.bin")
                pointer.write_text(f"{name} {digest}\n", encoding="ascii")
                self.fault("swap", name)
                pointer.replace(self.folder / "CURRENT")
                self.fault("swap-done", name)
            except OSError as error:
                raise _no_room(self.folder, error) from error
            finally:
                aside.unlink(missing_ok=True)
                pointer.unlink(missing_ok=True)
            self._turn_to(state)
            self._sweep(state)
            return state

    def _sweep(self, state: State | None) -> None:
        """Remove old files, and what killed builders left; open readers keep theirs."""
        kept = {f"state-{state.name}.bin", *(each.file for each in state.layers)} if state else ()
        abandoned = time.time() - _ABANDONED_SECONDS
        for pattern in ("state-*", "layer-*", "building-*", "catalog-*", "snapshot-*", "spill/*"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    if pattern in ("building-*", "spill/*") and path.stat().st_mtime > abandoned:
                        continue  # somebody else's, who may live
                    if path.name not in kept:
                        path.rmdir() if path.is_dir() else path.unlink()

    def forget(self) -> None:
        """Remove the local copy; the next sync builds it again."""
        with self.exclusive():
            self.close()
            (self.folder / "CURRENT").unlink(missing_ok=True)
            self._sweep(None)

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        self._after_fork()
        with self._lock:
            self._state = None
            self._attached, self._opened = set(), []
            if self._engine is not None:
                self._engine.close()
                self._engine = None


def _layer_lines(
    state: State, table: Table, layer: Layer, without: Sequence[tuple[str, str, int]]
) -> Iterator[pa.Table]:
    """The lines of one layer that nothing above it replaced, in order."""
    cursor = state.connection.cursor()
    try:
        sql = _piece(table, state.connection.schema, layer, "*", has_replaced=True)
        for batch in cursor.sql(sql).to_arrow_reader(_BATCH_ROWS):
            lines = pa.Table.from_batches([batch]).cast(table.schema)
            yield _without(table.as_lines(lines), without)
    finally:
        cursor.close()


def _encode(state: State) -> bytes:
    """The bytes of a state's file."""
    blobs = [(name, _stream(table)) for name, table in state.news.items()]
    blobs.append(("replaced", _stream(state.replaced)))
    head = {
        "layout": COPY_VERSION,
        "layers": [dataclasses.asdict(layer) for layer in state.layers],
        "meta": state.meta.to_json(),
        "applied": [[stamp, *each] for stamp, each in state.applied.items()],
        "tables": [[name, len(blob)] for name, blob in blobs],
    }
    packed = zstandard.ZstdCompressor().compress(json.dumps(head).encode())
    return b"".join(
        [_MAGIC, len(packed).to_bytes(4, "little"), packed, *(blob for _, blob in blobs)]
    )


def _stream(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(buffer, table.schema, options=options) as writer:
        writer.write_table(table)
    return buffer.getvalue()


class _Counted:
    """Lines as a reader that DuckDB takes in, and how many it took."""

    def __init__(self, lines: Iterator[pa.Table], table: Table) -> None:
        self._lines = lines
        self._schema = table.schema
        self.rows = 0

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for lines in self._lines:
            self.rows += lines.num_rows
            yield from lines.select(self._schema.names).cast(self._schema).to_batches()


def _stamped(table: Table, lines: pa.Table | None, sequence: int) -> pa.Table:
    """Lines of a table with the number of the sync that changed them."""
    found = table.lines.empty_table() if lines is None else lines
    column = pa.repeat(pa.scalar(sequence, pa.int64()), found.num_rows)
    stamped = found.add_column(len(table.schema), SEQUENCE, column)
    schema = LINES[table.name].lines
    return stamped if stamped.schema.equals(schema) else stamped.cast(schema)


def _without(lines: pa.Table, names: Sequence[tuple[str, str, int]]) -> pa.Table:
    """Lines of all but some concepts, up to a version of each."""
    for owner, name, highest in names:
        its = pc.and_(pc.equal(lines["owner"], owner), pc.equal(lines["name"], name))
        lines = lines.filter(
            pc.invert(pc.and_(its, pc.less_equal(lines["version"], pa.scalar(highest, pa.int32()))))
        )
    return lines


def _to_keep(layers: Sequence[Layer], news: int) -> int | None:
    """How many of the lower layers stay when news go down; None if they stay on top."""
    if news <= NEWS_ROWS:
        return None
    keep = len(layers)
    while keep and (layers[keep - 1].total <= max(NEWS_ROWS, SHARE * news)):
        keep -= 1
        news += layers[keep].total
    return keep


def _catalog(layer: Layer) -> str:
    return f"l{layer.name.lower()}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _view(
    table: Table,
    schema: str,
    layers: Sequence[Layer],
    names: Sequence[str] | None,
    cursor: Any,
) -> str:
    """The SELECT over news and layers."""
    hit = {
        layer
        for (layer,) in cursor.execute(
            f'SELECT DISTINCT layer FROM memory.{schema}_news.replaced WHERE "table" = ?',
            [table.name],
        ).fetchall()
    }
    pieces = [f"SELECT {_columns(names, 0)} FROM memory.{schema}_news.{table.name}"]
    pieces += [
        _piece(table, schema, layer, _columns(names, number), has_replaced=layer.name in hit)
        for number, layer in enumerate(layers, start=1)
    ]
    return " UNION ALL ".join(pieces)


def _piece(table: Table, schema: str, layer: Layer, columns: str, *, has_replaced: bool) -> str:
    """The SELECT over one layer, without what was replaced."""
    text = f"SELECT {columns} FROM {_catalog(layer)}.{table.name}"
    if has_replaced:
        text += (
            f" WHERE rowid NOT IN (SELECT line FROM memory.{schema}_news.replaced "
            f"WHERE \"table\" = '{table.name}' AND layer = '{layer.name}')"
        )
    return text


def _columns(names: Sequence[str] | None, number: int) -> str:
    """What a view selects of the news (0) or of a layer (from 1)."""
    return "*" if names is None else ", ".join(names).format(table=number)


def _no_room(folder: Path, error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"cannot write the local copy in {folder}: {str(error)[:300]}. Make room, or set "
        "CONES_CACHE to another folder"
    )
