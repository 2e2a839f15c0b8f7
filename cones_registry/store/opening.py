"""From a URL to a Store."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from cones_registry.digest import quote
from cones_registry.errors import MissingExtraError, StoreUnavailableError, UsageError
from cones_registry.store.base import Store
from cones_registry.store.local import LocalStore
from cones_registry.store.remote import MemoryStore, RemoteStore

# scheme -> (extra that brings its file system, options that make a create one PUT)
_REMOTE: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    # s3fs splits larger bodies into parts, and completing them is not conditional everywhere.
    "s3": ("s3", {"chunksize": 5 * 2**30}),
    "s3a": ("s3", {"chunksize": 5 * 2**30}),
    "gs": ("gcs", {"chunksize": 5 * 2**30}),
    "gcs": ("gcs", {"chunksize": 5 * 2**30}),
    "az": ("azure", {}),
    "abfs": ("azure", {}),
    "abfss": ("azure", {}),
}


_CONNECT_SECONDS: Final = 5
# What a client is told about how long to wait; the user's own options go before.
_PATIENCE: Final[dict[str, dict[str, Any]]] = {
    "s3": {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": 1}}},
    "azure": {"connection_timeout": _CONNECT_SECONDS},
}


def open_store(url: str | os.PathLike[str] | Store, **storage_options: Any) -> Store:
    """The store at `url`: a path, `file://`, `memory://`, `s3://`, `gs://`, `az://`.

    Args:
        url: where; nothing is read or written yet. A Store is taken as it is.
        storage_options: handed to the fsspec file system (credentials, endpoint_url, …).

    Raises:
        UsageError: a URL of another scheme, or one that names no place.
        MissingExtraError: the scheme's file system is not installed.
        StoreUnavailableError: the file system cannot be made with these options.
    """
    if isinstance(url, Store):
        return url
    text = os.fspath(url)
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(f"{quote(text)} is not a registry URL; expected a folder or a URL")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(Path(text).expanduser())
    scheme = scheme.lower()
    named, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in named or scheme not in ("abfs", "abfss")):
        # The URL stands in messages, in logs and in the shell's history.
        raise UsageError(
            f"the {scheme}:// URL holds credentials, so it is not used. Give them in the "
            f"environment or a profile, and write {scheme}://bucket/folder"
        )
    if scheme in ("file", "local"):
        return _local(text)
    if scheme == "memory":
        return _memory(text)
    if scheme not in _REMOTE:
        raise UsageError(
            f"cannot keep a registry at {quote(text)}: expected a folder or one of file://, "
            "memory://, s3://, gs://, az://"
        )
    extra, create_options = _REMOTE[scheme]
    filesystem = _filesystem(scheme, extra, storage_options)
    root = str(filesystem._strip_protocol(text)).strip("/")
    if not root:
        raise UsageError(f"{quote(text)} names no bucket; expected {scheme}://bucket/folder")
    return RemoteStore(text.rstrip("/"), filesystem, root, create_options)


def _local(text: str) -> Store:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            f"{quote(text)} names the host {parts.netloc!r}; a folder is written file:///folder"
        )
    if not parts.path.startswith("/"):
        raise UsageError(f"{quote(text)} names no folder; expected file:///folder")
    return LocalStore(Path(unquote(parts.path)))


def _memory(text: str) -> Store:
    import fsspec

    root = "/" + text.partition("://")[2].strip("/")
    if root == "/":
        raise UsageError("memory:// names no place; expected memory://name")
    return MemoryStore(text.rstrip("/"), fsspec.filesystem("memory"), root)


def _without_retries(filesystem: Any) -> None:
    """Let a client say at once what went wrong: `Store` tries again itself.

    Where both do, the times multiply, and a server that is not there is waited for ten minutes.
    """
    if "retries" in vars(type(filesystem)) and hasattr(filesystem, "s3"):
        filesystem.retries = 1
    pipeline = getattr(getattr(filesystem, "service_client", None), "_pipeline", None)
    for policy in getattr(pipeline, "_impl_policies", ()):  # of the Azure client
        if hasattr(policy, "total_retries"):
            policy.total_retries = 0
    settings = getattr(getattr(pipeline, "_transport", None), "connection_config", None)
    if settings is not None:
        settings.timeout = _CONNECT_SECONDS


def _google(options: dict[str, Any]) -> Any:
    """gcsfs's file system of plain buckets, which asks once.

    The class that fsspec knows asks another service by gRPC, for every operation, what kind a
    bucket is, and each request is tried six times, for half a minute, by a decorator that has no
    setting.
    """
    import aiohttp
    from gcsfs.core import GCSFileSystem

    patience = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=60)
    filesystem = GCSFileSystem(**{"requests_timeout": patience, **options})
    once = getattr(GCSFileSystem._request, "__wrapped__", None)
    if once is not None:
        filesystem._request = functools.partial(once, filesystem)
    return filesystem


def _filesystem(scheme: str, extra: str, storage_options: dict[str, Any]) -> Any:
    import fsspec

    options = {"use_listings_cache": False, **_PATIENCE.get(extra, {}), **storage_options}
    try:
        filesystem = _google(options) if extra == "gcs" else fsspec.filesystem(scheme, **options)
        _without_retries(filesystem)
        return filesystem
    except ImportError as error:
        raise MissingExtraError(
            f"{scheme}:// needs the extra {extra!r}: pip install 'cones-registry[{extra}]'"
        ) from error
    except (TypeError, ValueError, OSError) as error:
        raise StoreUnavailableError(
            f"cannot open {scheme}:// with the storage options {sorted(storage_options)}: {error}"
        ) from error
