"""A folder on a local disk.

A create is: temporary file, write, fsync, `link` to the final name, fsync of the folder. `link` is
atomic and fails if the name is taken, so one of any number of racers wins, and a crash at any point
leaves either the whole object or none. (`open(…, "xb")`
would leave a torn file under the final name.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ulid import ULID

from cones_registry.store.base import MAX_OBJECT_BYTES, Entry, Store
from cones_registry.store.trouble import ObjectTooLargeError

UNFINISHED: Final = ".unfinished"
"""Folder of temporary files below the root; never listed."""

_LINK_ATTEMPTS: Final = 10


class LocalStore(Store):
    """Objects are files below `root`, named by their key."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.as_uri())
        self.root = root

    def _get(self, key: str) -> bytes:
        with (self.root / key).open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_OBJECT_BYTES:
                raise ObjectTooLargeError
            return file.read()

    def _create(self, key: str, data: bytes) -> None:
        path = self.root / key
        temporary = self.root / UNFINISHED / str(ULID())
        self._make_folder(temporary.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.fault("written", key)
            self._link(temporary, path)
            self.fault("linked", key)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _link(self, temporary: Path, path: Path) -> None:
        for _ in range(_LINK_ATTEMPTS - 1):
            try:
                self._make_folder(path.parent)
                os.link(temporary, path)
                return
            except FileNotFoundError:
                continue  # a delete took the folder, which was empty
        self._make_folder(path.parent)
        os.link(temporary, path)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        folder.mkdir(parents=folder == self.root, exist_ok=True)
        # The new name is an entry of its parent, which must be on disk before anything in it
        # counts.
        _sync_folder(folder.parent)

    def _delete(self, key: str) -> None:
        path = self.root / key
        path.unlink()
        # A name must not live on as that of an empty folder.
        with contextlib.suppress(OSError):
            for folder in path.parents:
                if folder == self.root:
                    break
                folder.rmdir()

    def _head(self, key: str) -> Entry:
        path = self.root / key
        status = path.stat()
        if not path.is_file():
            raise FileNotFoundError(key)
        return Entry(key, status.st_size, status.st_mtime)

    def _list(self, prefix: str) -> list[Entry]:
        return list(self._walk(self.root / prefix, prefix))

    def _walk(self, folder: Path, prefix: str) -> Iterator[Entry]:
        with os.scandir(folder) as found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    if prefix or item.name != UNFINISHED:
                        yield from self._walk(folder / item.name, f"{prefix}{item.name}/")
                elif item.is_file(follow_symlinks=False):
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # removed since the folder was read
                    yield Entry(prefix + item.name, status.st_size, status.st_mtime)

    def sweep_unfinished(self, before: float) -> int:
        """Remove what killed writers left, last written before `before`; bytes freed."""
        freed = 0
        folder = self.root / UNFINISHED
        if folder.is_dir():
            for path in folder.iterdir():
                try:
                    status = path.stat()
                    if status.st_mtime < before:
                        path.unlink()
                        freed += status.st_size
                except FileNotFoundError:
                    continue
        return freed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
