"""Where a verb's picture goes: refused before anything is drawn, written at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cones_registry.errors import StoreUnavailableError, UsageError


def make_room(path: Path, suffixes: Sequence[str]) -> None:
    """Make the folder of a picture file.

    Raises UsageError for a name with another suffix, StoreUnavailableError if the folder cannot be.
    """
    if path.suffix.lower() not in suffixes:
        expected = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]])
        raise UsageError(f"cannot draw to {path}: expected a name that ends in {expected}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot make the folder {path.parent}: {error.strerror}. Draw to another place (--out)"
        ) from error


def write(path: Path, data: bytes) -> None:
    """Write a picture file; StoreUnavailableError if the disk refuses."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot write {path}: {error.strerror}. Draw to another place (--out)"
        ) from error
