"""Object stores and memory, through fsspec."""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from cones_registry.errors import NotFoundError
from cones_registry.store.base import MAX_OBJECT_BYTES, PARALLEL, Entry, Store
from cones_registry.store.keys import check_key
from cones_registry.store.trouble import ObjectTooLargeError

_MOST_DELETED: Final = 1000
_MAKE_BUCKET: Final = {
    "s3": "aws s3 mb s3://{}",
    "gs": "gcloud storage buckets create gs://{}",
    "az": "az storage container create --name {}",
}


class RemoteStore(Store):
    """Objects below `root` of an fsspec file system with a conditional create in one PUT (S3, GCS,
    Azure).

    Args:
        url: as the user wrote it.
        filesystem: made with `use_listings_cache=False`.
        root: path of the URL inside the file system, without trailing `/`.
        create_options: what `pipe_file(mode="create")` needs so that it is one PUT.
    """

    def __init__(
        self,
        url: str,
        filesystem: Any,
        root: str,
        create_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(url)
        self.filesystem = filesystem
        self.root = root
        self.create_options = create_options or {}

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _get(self, key: str) -> bytes:
        data: bytes = self.filesystem.cat_file(self._path(key))
        if len(data) > MAX_OBJECT_BYTES:
            raise ObjectTooLargeError
        return data

    def _get_range(self, key: str, start: int, end: int) -> bytes:
        data: bytes = self.filesystem.cat_file(self._path(key), start=start, end=end)
        return data

    @property
    def place(self) -> str:
        """The URL and the server or account it is on."""
        return " ".join([self.url, *_server(self.filesystem)])

    def _create(self, key: str, data: bytes) -> None:
        self.filesystem.pipe_file(self._path(key), data, mode="create", **self.create_options)

    def get_many(
        self, keys: Iterable[str], *, parallel: int = 8 * PARALLEL
    ) -> Iterator[tuple[str, bytes | None]]:
        """As `Store.get_many`; an asynchronous client reads many at once without threads."""
        if not self.filesystem.async_impl:
            yield from super().get_many(keys)
            return
        listed = list(keys)
        for start in range(0, len(listed), parallel):
            chunk = listed[start : start + parallel]
            paths = [self._path(key) for key in chunk]
            found = self.filesystem.cat(paths, on_error="return") if len(chunk) > 1 else {}
            for key, path in zip(chunk, paths, strict=True):
                data = found.get(path)
                if isinstance(data, bytes):
                    yield key, data
                else:  # one at a time: with retries, and errors in our words
                    yield from super().get_many([key])

    def require_place(self) -> None:
        """`NotFoundError` unless the bucket is there."""
        bucket = self.root.split("/")[0]
        if not self._attempt(lambda: self.filesystem.exists(bucket), "look up", ""):
            scheme = self.url.partition("://")[0]
            command = _MAKE_BUCKET.get(scheme, "your store's own tool").format(bucket)
            raise NotFoundError(
                f"there is no bucket {bucket!r}, or these credentials may not see it, so nothing "
                f"can be kept at {self.url}. To make it: {command}"
            )

    def keeps_deleted(self) -> str:
        """As `Store.keeps_deleted`; buckets and accounts are set to keep old versions elsewhere."""
        try:
            return ", ".join(_kept(self.filesystem, self.root.split("/")[0]))
        except Exception as error:
            # Whoever may delete objects need not be allowed to read a bucket's settings.
            return f"perhaps old versions (its settings cannot be read: {type(error).__name__})"

    def _delete(self, key: str) -> None:
        self.filesystem.rm_file(self._path(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """As `Store.delete_many`; S3 removes a thousand with one request."""
        listed = list(keys)
        if not hasattr(self.filesystem, "_bulk_delete"):
            super().delete_many(listed)
            return
        for start in range(0, len(listed), _MOST_DELETED):
            chunk = listed[start : start + _MOST_DELETED]
            for key in chunk:
                check_key(key)
                self.fault("delete", key)
            try:
                self.filesystem.rm([self._path(key) for key in chunk])
            except Exception:  # one at a time: with retries, and errors in our words
                super().delete_many(chunk)
            for key in chunk:
                self.fault("delete-done", key)

    def _head(self, key: str) -> Entry:
        info = self.filesystem.info(self._path(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return Entry(key, int(info["size"]), _modified(info))

    def _list(self, prefix: str) -> list[Entry]:
        # With `prefix` an empty folder is one request: without it, clients look for a file too.
        found = self.filesystem.find(self.root, prefix=prefix, detail=True)
        start = len(self.root) + 1
        return [
            Entry(name[start:], int(info["size"]), _modified(info))
            for name, info in found.items()
            if info["type"] == "file" and name.startswith(self._path(prefix))
        ]


class MemoryStore(RemoteStore):
    """fsspec's memory file system: one process, gone with it. For tests and trials."""

    # fsspec looks, then writes; the lock makes the two one step.
    _lock: Final = threading.Lock()

    def require_place(self) -> None:
        """Nothing must be there first."""

    def keeps_deleted(self) -> str:
        """Nothing."""
        return ""

    def now(self) -> float | None:
        """This process's own clock."""
        return time.time()

    def _create(self, key: str, data: bytes) -> None:
        with self._lock:
            if self.filesystem.exists(self._path(key)):
                raise FileExistsError(key)
            self.filesystem.pipe_file(self._path(key), data)

    def _list(self, prefix: str) -> list[Entry]:
        with self._lock:
            return super()._list(prefix)

    def _delete(self, key: str) -> None:
        with self._lock:
            super()._delete(key)


def _server(filesystem: Any) -> Iterator[str]:
    """What says, beside the URL, where an fsspec file system looks: an S3 endpoint, an account."""
    protocols = filesystem.protocol
    if "s3" in ((protocols,) if isinstance(protocols, str) else protocols):
        # botocore reads the environment on its own; what the file system was given goes before.
        given = getattr(filesystem, "endpoint_url", None)
        given = given or (getattr(filesystem, "client_kwargs", None) or {}).get("endpoint_url")
        named = given or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if named:
            yield str(named)
    service = getattr(filesystem, "service_client", None)  # Azure
    if service is not None:
        yield str(service.url).partition("?")[0]  # without a signature that may follow
    if getattr(filesystem, "_endpoint", None):  # Google
        yield str(filesystem._endpoint)


def _kept(filesystem: Any, bucket: str) -> Iterator[str]:
    """What the settings of a bucket keep of deleted objects."""
    from fsspec.asyn import sync

    protocols = filesystem.protocol
    if "s3" in ((protocols,) if isinstance(protocols, str) else protocols):
        status = filesystem.call_s3("get_bucket_versioning", Bucket=bucket).get("Status")
        if status:  # "Suspended" keeps those of before
            yield f"old versions of objects (versioning is {str(status).lower()})"
    elif hasattr(filesystem, "service_client"):  # Azure
        client = filesystem.service_client
        settings = sync(filesystem.loop, client.get_service_properties)
        retention = settings["delete_retention_policy"]
        if retention.enabled:
            yield f"deleted objects for {retention.days} days (soft delete)"
    elif hasattr(filesystem, "_call"):  # Google
        settings = sync(filesystem.loop, filesystem._call, "GET", "b/{}", bucket, json_out=True)
        if settings.get("versioning", {}).get("enabled"):
            yield "old versions of objects (versioning is enabled)"
        seconds = int(settings.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0))
        if seconds:
            yield f"deleted objects for {seconds / 86400:g} days (soft delete)"


def _modified(info: dict[str, Any]) -> float:
    """Seconds since 1970 of a listing entry, under whichever name its file system gives it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "timeCreated", "created"):
        value = info.get(name)
        if isinstance(value, datetime.datetime):
            if value.tzinfo is None:
                value = value.replace(tzinfo=datetime.UTC)
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str) and value:
            return datetime.datetime.fromisoformat(value).timestamp()
    return 0.0
