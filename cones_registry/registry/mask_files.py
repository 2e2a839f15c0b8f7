"""Mask files: masks of the store by digest, and a local cache of them that all processes share."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ulid import ULID

from cones_registry.cache_folder import cache_folder
from cones_registry.catalog.keys import MASKS, mask_key, mask_of
from cones_registry.digest import Digest, require_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.store import Store
from cones_registry.store.local import LocalStore

DEFAULT_LIMIT: Final = 10 * 2**30
"""Bytes the cache may hold; `CONES_CACHE_BYTES` sets another number."""

_STALE_SECONDS: Final = 3600
_SPARE: Final = 10
"""A tenth of the limit is freed when it is passed, and written at most until the next look."""


@dataclass(frozen=True)
class CachedBlob:
    """One file of the cache.

    Attributes:
        digest: what it holds.
        size: bytes.
        used: seconds since 1970 of the last read.
    """

    digest: Digest
    size: int
    used: float


class MaskFiles:
    """Reads blobs of a store through a folder of files named by digest.

    A file is written aside and moved into place, so no process sees half of one; every read is
    checked against the digest, and what does not fit is thrown away and fetched again. Above the
    limit the files used longest ago go first.

    The bound holds after each write of one process; each other one that writes into the folder at
    the same moment can add a tenth of the limit before it looks again.
    """

    def __init__(self, store: Store | None, folder: Path, limit: int | None = None) -> None:
        self.store = store
        self.folder = folder
        self.limit = _limit() if limit is None else limit
        self._lock = threading.Lock()
        # Bytes that may be written before the folder is looked at again; so the first write looks.
        self._room = 0

    def get(self, digest: Digest) -> bytes:
        """The bytes of a blob, checked.

        Raises:
            NotFoundError: the store has no such blob.
            CorruptDataError: the store's bytes do not have the digest.
        """
        if self.store is None:
            raise NotFoundError(f"no blob {digest} here; a cache without a store has no other")
        # A file on this machine is as near as a cached one.
        cached = None if isinstance(self.store, LocalStore) else self._read(digest)
        if cached is not None:
            return cached
        data = self._fetch(digest, self.store)
        if not isinstance(self.store, LocalStore):
            self._write(digest, data)
        return data

    def get_many(self, digests: Iterable[Digest]) -> Iterator[tuple[Digest, bytes]]:
        """(digest, bytes) of each, in order, fetched in parallel."""
        if self.store is None:
            raise NotFoundError("a cache without a store has no blobs to fetch")
        return self.store.each(lambda digest: (digest, self.get(digest)), digests)

    def _fetch(self, digest: Digest, store: Store) -> bytes:
        key = mask_key(digest)
        data = store.get(key)
        if sha256_bytes(data) != digest:
            data = store.get(key)  # once more: a bit may have flipped on the way, not in the store
        try:
            require_digest(data, digest, f"{key} in {store.url}")
        except CorruptDataError as error:
            raise CorruptDataError(
                f"{error}. Push the mask again, or restore the object from a backup. "
                "See: cones check --read-data"
            ) from None
        return data

    def _path(self, digest: Digest) -> Path:
        return self.folder / mask_key(digest).removeprefix(MASKS)

    def _read(self, digest: Digest) -> bytes | None:
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if sha256_bytes(data) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return data

    def _write(self, digest: Digest, data: bytes) -> None:
        path = self._path(digest)
        if len(data) > self.limit:
            return
        aside = path.with_suffix(f".{ULID()}")
        # A full disk or a read-only cache must not fail a read that has succeeded.
        with contextlib.suppress(OSError):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(data)
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
            self._count(len(data))

    def _count(self, written: int) -> None:
        """Keep the bound after a file was written."""
        with self._lock:
            self._room -= written
            if self._room >= 0:
                return
            total = sum(blob.size for blob in self.list())
            if total > self.limit:
                # A spare part besides, so that a full cache is not listed at every write; but what
                # was just written stays.
                total -= self.prune(max(self.limit - self.limit // _SPARE, written))
            self._room = min(self.limit - total, self.limit // _SPARE)

    def list(self) -> list[CachedBlob]:
        """What is cached, last used first."""
        found = []
        for path in self.folder.glob("*/*.parquet"):
            digest = mask_of(f"{MASKS}{path.parent.name}/{path.name}")
            with contextlib.suppress(OSError):
                status = path.stat()
                if digest is not None:
                    found.append(CachedBlob(digest, status.st_size, status.st_mtime))
        return sorted(found, key=lambda blob: -blob.used)

    def prune(self, limit: int = 0) -> int:
        """Remove the files used longest ago until at most `limit` bytes are left; bytes freed."""
        if limit < 0:
            raise UsageError(f"a cache cannot hold {limit} bytes; give 0 or more")
        freed = total = 0
        for blob in self.list():
            total += blob.size
            if total > limit:
                self.forget(blob.digest)
                freed += blob.size
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                if (
                    path.suffix != ".parquet"
                    and time.time() - path.stat().st_mtime > _STALE_SECONDS
                ):
                    path.unlink()
        return freed

    def forget(self, digest: Digest) -> None:
        """Remove one blob from the cache."""
        self._path(digest).unlink(missing_ok=True)


def _limit() -> int:
    text = os.environ.get("CONES_CACHE_BYTES", "")
    # A number of more digits fits no disk, and int() refuses thousands of them.
    if text and not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise UsageError(
            f"CONES_CACHE_BYTES is {text[:50]!r}; expected a number of bytes, as 10000000000"
        )
    return int(text) if text else DEFAULT_LIMIT


def local_mask_files() -> MaskFiles:
    """The blob cache of this machine, which all registries share, without any registry."""
    return MaskFiles(None, cache_folder() / "masks")
