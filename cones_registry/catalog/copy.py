"""The local copy of the catalogue: one DuckDB file per state, never changed once it has its name.

A new state is built aside and swapped in: `catalog-<ulid>.duckdb` gets its name by `os.replace`,
then the file `CURRENT`, which names it, does. Readers open the file read-only, so any number of
processes read while one builds. (DuckDB lets nobody read what somebody writes, and one path opened
twice in a process is one database even after the file under it was replaced or removed: hence a
name a state that no other had or will have.)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import duckdb
import filelock
from ulid import ULID

from cones_registry.catalog.tables import ALIASES, CONCEPTS, definition
from cones_registry.digest import Digest
from cones_registry.errors import StoreUnavailableError
from cones_registry.store import Fault
from cones_registry.store.fault import no_fault

COPY_VERSION: Final = 2
"""Layout of the local files; another one is thrown away and built again."""

LOCK_SECONDS: Final = 600
READER: Final[dict[str, Any]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
"""How every query opens the file: read-only, and with nothing else in reach.

`CONES_QUERY_MEMORY` bounds its memory, 2GB if it is not set.
"""


@dataclass
class Meta:
    """What syncing knows besides the tables.

    Attributes:
        snapshot: number of the newest snapshot whose segments are all in, 0 for none.
        manifest: digest of that snapshot's manifest, "" for none.
        latest: the latest stamp seen.
        condemned, purged, rewritten, purged_blobs: as in `Fold`.
    """

    snapshot: int = 0
    manifest: str = ""
    latest: str = ""
    condemned: dict[Digest, tuple[str, int]] = field(default_factory=dict)
    purged: dict[Digest, int] = field(default_factory=dict)
    rewritten: dict[Digest, tuple[Digest, int]] = field(default_factory=dict)
    purged_blobs: list[Digest] = field(default_factory=list)

    def to_json(self) -> str:
        """As kept in `internal.meta`."""
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Inverse of `to_json`."""
        meta = cls(**json.loads(text))
        meta.condemned = {key: (stamp, size) for key, (stamp, size) in meta.condemned.items()}
        meta.rewritten = {key: (new, size) for key, (new, size) in meta.rewritten.items()}
        return meta


@dataclass(frozen=True)
class State:
    """One state of the local copy, opened for reading.

    Attributes:
        name: ULID of the state; no other one has it, whatever was removed between.
        applied: stamps of the segments that are in and may still be listed in the log.
        meta: what syncing knows besides the tables.
        connection: read-only; take a `cursor()` of it in each thread.
        is_empty: whether there is no version in it, so that nobody need ask.
    """

    name: str
    path: Path
    applied: frozenset[str]
    meta: Meta
    connection: Any
    is_empty: bool


# DuckDB complains at interpreter exit about connections that are open then.
_OPEN: Final[weakref.WeakSet[LocalCopy]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for copy in list(_OPEN):
        copy.close()


@dataclass
class Builder:
    """A new state while it is made.

    Attributes:
        connection: writable.
        rewrite: copy all rows to a new file at the end, so that no deleted row stays in a free
            block of this one.
    """

    connection: Any
    rewrite: bool = False


class LocalCopy:
    """The folder of local files of one registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Fault = no_fault
        self._state: State | None = None
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(
                f"cannot make the cache folder {folder}: {error}. Set CONES_CACHE to a folder "
                "that may be written"
            ) from error
        _OPEN.add(self)
        self._file_lock = filelock.FileLock(folder / "lock", timeout=LOCK_SECONDS)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only one, of all threads and processes, that builds a new state."""
        with self._lock:
            try:
                self._file_lock.acquire()
            except filelock.Timeout as error:
                raise StoreUnavailableError(
                    f"another process has held {self.folder} for {LOCK_SECONDS} s. End it, or "
                    "set CONES_CACHE to another folder"
                ) from error
            try:
                yield
            finally:
                self._file_lock.release()

    def state(self) -> State | None:
        """The current state, None if there is none that can be read."""
        with self._lock:
            for _ in range(20):
                name = self._current()
                if name is None:
                    return None
                if self._state is not None and self._state.name == name:
                    return self._state
                try:
                    self._state = _open(name, self._path(name))
                    return self._state
                except FileNotFoundError:
                    continue  # swapped since CURRENT was read
                except (duckdb.Error, ValueError, TypeError):
                    return None  # damaged or of an older layout: it is built again
            return None

    def _current(self) -> str | None:
        try:
            return str(ULID.from_str((self.folder / "CURRENT").read_text(encoding="ascii").strip()))
        except (FileNotFoundError, ValueError):
            return None

    def _path(self, name: str) -> Path:
        return self.folder / f"catalog-{name}.duckdb"

    @contextlib.contextmanager
    def build(self, source: State | None) -> Iterator[Builder]:
        """A new state, a copy of `source` or empty; swapped in at the end.

        Only within `exclusive()`. Nothing changes if the block raises.
        """
        self._sweep()
        aside = self.folder / f"building-{ULID()}.duckdb"
        try:
            if source is not None:
                shutil.copyfile(source.path, aside)
            connection = duckdb.connect(str(aside), config={"python_enable_replacements": "false"})
            try:
                if source is None:
                    _create(connection)
                builder = Builder(connection)
                yield builder
                connection.execute("CHECKPOINT")
                if builder.rewrite:
                    _rewrite(connection, aside.with_suffix(".rewritten"))
            finally:
                connection.close()
            if builder.rewrite:
                aside.with_suffix(".rewritten").replace(aside)
            name = str(ULID())
            self.fault("swap", name)
            aside.replace(self._path(name))
            pointer = self.folder / f"CURRENT-{ULID()}"
            pointer.write_text(f"{name}\n", encoding="ascii")
            pointer.replace(self.folder / "CURRENT")
            self.fault("swap-done", name)
        finally:
            aside.unlink(missing_ok=True)
            Path(f"{aside}.wal").unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove old states and what killed builders left; open readers keep their files."""
        current = self._current()
        for path in self.folder.glob("catalog-*.duckdb"):
            if current is None or path != self._path(current):
                path.unlink(missing_ok=True)
        for pattern in ("building-*", "CURRENT-*", "snapshot-*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the local copy; the next sync builds it again."""
        with self.exclusive():
            self.close()
            (self.folder / "CURRENT").unlink(missing_ok=True)
            self._sweep()

    def close(self) -> None:
        """Close what is open; the next read opens it again."""
        with self._lock:
            if self._state is not None:
                self._state.connection.close()
                self._state = None


def _create(connection: Any) -> None:
    connection.execute(f"CREATE TABLE concepts ({definition(CONCEPTS)})")
    connection.execute(f"CREATE TABLE aliases ({definition(ALIASES)})")
    connection.execute("CREATE SCHEMA internal")
    connection.execute("CREATE TABLE internal.applied (stamp VARCHAR)")
    connection.execute("CREATE TABLE internal.meta (layout INTEGER, value VARCHAR)")


def _rewrite(connection: Any, path: Path) -> None:
    """Copy every table into a new file."""
    (name,) = connection.execute("SELECT current_database()").fetchone()
    target = str(path).replace("'", "''")
    connection.execute(f"ATTACH '{target}' AS rewritten")
    connection.execute(f'COPY FROM DATABASE "{name}" TO rewritten')
    connection.execute("DETACH rewritten")


def _reader() -> dict[str, Any]:
    return READER | {"memory_limit": os.environ.get("CONES_QUERY_MEMORY") or "2GB"}


def _open(name: str, path: Path) -> State:
    if not path.is_file():
        raise FileNotFoundError(path)
    connection = duckdb.connect(str(path), read_only=True, config=_reader())
    try:
        rows = connection.execute("SELECT layout, value FROM internal.meta").fetchall()
        if len(rows) != 1 or rows[0][0] != COPY_VERSION:
            raise ValueError("the local copy has another layout")
        stamps = connection.execute("SELECT stamp FROM internal.applied").fetchall()
        found = connection.execute("SELECT 1 FROM concepts LIMIT 1").fetchall()
        applied, meta = frozenset(stamp for (stamp,) in stamps), Meta.from_json(rows[0][1])
        return State(name, path, applied, meta, connection, is_empty=not found)
    except BaseException:
        connection.close()
        raise


def write_meta(connection: Any, meta: Meta) -> None:
    """Set what `State.meta` will be."""
    connection.execute("DELETE FROM internal.meta")
    connection.execute("INSERT INTO internal.meta VALUES (?, ?)", [COPY_VERSION, meta.to_json()])
