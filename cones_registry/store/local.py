"""A folder on a local disk.

A create is: temporary file, write, fsync, `link` to the final name, fsync of the folder. `link` is
atomic and fails if the name is taken, so one of any number of racers wins, and a crash at any point
leaves either the whole object or none. (`open(…, "xb")` would leave a torn file under the final
name.) Disks without hard links (FAT, some shares) are asked for a rename that fails if the name is
taken; on those that have neither no registry can be kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from cones_registry.errors import StoreUnavailableError
from cones_registry.store.base import MAX_OBJECT_BYTES, Entry, Store
from cones_registry.store.exclusive import rename_to_new
from cones_registry.store.trouble import ObjectTooLargeError

UNFINISHED: Final = ".unfinished"
"""Folder of temporary files below the root; never listed."""

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
_LINK_ATTEMPTS: Final = 10
_MOST_SETTLED: Final = 100_000
_NO_RENAME: Final = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP))
# Where there are no links at all, the call is "not permitted" or as good as not there.
_NO_LINKS: Final = _NO_RENAME | {errno.EPERM, errno.EMLINK, errno.EXDEV}


class LocalStore(Store):
    """Objects are files below `root`, named by their key.

    Attributes:
        root: without symlinks, so that one folder has one URL, however it was spelled.
    """

    def __init__(self, root: Path) -> None:
        root = Path(os.path.realpath(root))
        super().__init__(root.as_uri())
        self.root = root
        self._unfinished = root / UNFINISHED
        # Folders that are on disk under their names, as far as this process has seen to it. Only
        # `tidy` removes a folder.
        self._settled: set[PurePosixPath] = set()
        self._links = True  # as far as is known

    def _get(self, key: str) -> bytes:
        with (self.root / key).open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_OBJECT_BYTES:
                raise ObjectTooLargeError
            return file.read()

    def _get_range(self, key: str, start: int, end: int) -> bytes:
        with (self.root / key).open("rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def _create(self, key: str, data: bytes) -> None:
        # Plain calls on plain text: a writer of many objects waits for Python, not for the disk.
        temporary = f"{self._unfinished}/{secrets.token_hex(16)}"
        try:
            descriptor = self._open_new(temporary)
            try:
                _write_whole(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.fault("written", key)
            self._link(temporary, f"{self.root}/{key}")
            self.fault("linked", key)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _open_new(self, path: str) -> int:
        try:
            return os.open(path, _NEW, 0o666)
        except FileNotFoundError:
            if not self.root.is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                _sync_folder(self.root.parent)
            self._unfinished.mkdir(exist_ok=True)
            return os.open(path, _NEW, 0o666)

    def _link(self, temporary: str, path: str) -> None:
        for attempt in range(_LINK_ATTEMPTS):
            try:
                self._name(temporary, path)
                return
            except FileNotFoundError:
                if not os.path.lexists(temporary):
                    # A purge takes every unfinished file, for it cannot tell who still lives. This
                    # is an error that passes: the object is written again.
                    raise BlockingIOError(
                        errno.EAGAIN, "the unfinished file was removed", temporary
                    ) from None
                # No folder yet, or a delete took it away, since it was empty.
                if attempt == _LINK_ATTEMPTS - 1:
                    raise
                Path(path).parent.mkdir(parents=True, exist_ok=True)

    def _name(self, temporary: str, path: str) -> None:
        if self._links:
            try:
                os.link(temporary, path)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        try:
            rename_to_new(temporary, path)
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            raise StoreUnavailableError(
                f"cannot keep a registry in {self.root}: this disk can neither link files nor "
                "rename one without replacing another, so two writers could undo each other. "
                "Choose a folder on another disk"
            ) from error
        self._links = False  # it was the disk that refused, not this one file

    def _settle(self, keys: Iterable[str]) -> None:
        # A name is an entry of its folder, and that folder of the one above: each must be on disk,
        # whoever made it.
        folders: set[PurePosixPath] = set()
        named: set[PurePosixPath] = set()
        for key in keys:
            for folder in PurePosixPath(key).parents:
                folders.add(folder)
                if folder in self._settled:
                    break
                named.add(folder)
        try:
            # Side by side: the disk flushes once for all that wait.
            each = self._workers().map if len(folders) > 1 else map
            list(each(_sync_folder, [self.root / folder for folder in folders]))
        except OSError as error:
            # Not again: a second fsync succeeds even where the first has lost something.
            raise StoreUnavailableError(
                f"cannot write the folders of {self.url} to disk: {error}. Try again"
            ) from error
        if len(self._settled) > _MOST_SETTLED:
            self._settled.clear()
        self._settled |= named

    def _delete(self, key: str) -> None:
        (self.root / key).unlink()

    def tidy(self, prefix: str) -> None:
        """Remove the empty folders below `prefix`, itself included."""
        top = self.root / prefix
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # not empty, or gone
                Path(folder).rmdir()
        self._settled.clear()

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

    def now(self) -> float | None:
        """As ``Store.now``; on a share it is the server's clock."""

        def made() -> float | None:
            path = f"{self._unfinished}/{secrets.token_hex(16)}"
            descriptor = self._open_new(path)
            try:
                os.write(descriptor, b"now")
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
                Path(path).unlink(missing_ok=True)

        return self._attempt(made, "create", UNFINISHED)

    def unfinished(self) -> Iterator[bytes]:
        """What is in each file that a writer has not finished, or that a killed one left."""
        folder = self.root / UNFINISHED
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                yield path.read_bytes()

    def sweep_unfinished(self, before: float) -> int:
        """Remove unfinished files last written before `before`; bytes freed.

        A writer that lives and loses one so writes it again.
        """
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


def _write_whole(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:  # one call writes at most 2 GiB
        left = left[os.write(descriptor, left) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
