"""Members: the plain files of an archive, read one by one with bounds, never written to disk."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zstandard

from cones_registry.catalog.documents import MAX_DOCUMENT_BYTES
from cones_registry.errors import CorruptDataError, NotFoundError, StoreUnavailableError

INDEX: Final = "cones-archive.json"
MAX_MEMBERS: Final = 1_000_000
MAX_MEMBER_BYTES: Final = 1 << 30
MAX_EXPANSION: Final = 256
"""No member is larger than this times the archive: masks are compressed already, and the longest
index of records does not shrink by more."""
_LEADING: Final = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE),
)
MAX_WINDOW: Final = 1 << 27
"""Bytes of history a zstd frame may demand."""


class _PlainHeader(tarfile.TarInfo):
    """A member's header. Those that say how the next is to be read are refused before they are.

    `tarfile` reads them whole into memory, whatever size they announce: 100 KB of zstd hold 3 GB.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LEADING:
            raise CorruptDataError(
                f"an archive has a header of kind {self.type.decode('latin-1')!a}; archives of "
                "concepts hold plain files with short names only"
            )
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the plain files of an archive, bounds first; nothing is written."""
    try:
        with (
            path.open("rb") as file,
            zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(file) as plain,
            tarfile.open(fileobj=plain, mode="r|", tarinfo=_PlainHeader) as archive,
        ):
            size = os.fstat(file.fileno()).st_size
            for number, member in enumerate(archive):
                limit = MAX_DOCUMENT_BYTES if member.name == INDEX else MAX_MEMBER_BYTES
                limit = min(limit, MAX_EXPANSION * size)
                if number >= MAX_MEMBERS or member.size > limit:
                    raise CorruptDataError(f"{path}: {member.name[:100]!a} is too large")
                if not member.isreg():
                    raise CorruptDataError(
                        f"{path}: {member.name[:100]!a} is no plain file; archives of concepts "
                        "have no links, folders or devices"
                    )
                content = archive.extractfile(member)
                yield member.name, content.read() if content else b""
    except FileNotFoundError as error:
        raise NotFoundError(f"no archive {path}") from error
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise CorruptDataError(f"{path} is not a whole archive of concepts: {error}") from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot read {path}: {error}") from error
