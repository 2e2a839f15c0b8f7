"""Digests: `sha256:` and 64 lower-case hexadecimal digits, everywhere."""

import hashlib
import re
from typing import Final

from cones_registry.errors import CorruptDataError, UsageError

Digest = str
"""`"sha256:"` followed by 64 lower-case hexadecimal digits."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LONGEST_QUOTE: Final = 80


def sha256_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """SHA-256 of `data` as `"sha256:<64 hex>"`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def require_digest(data: bytes | bytearray | memoryview, expected: Digest, what: str) -> None:
    """`CorruptDataError` that names `what` unless `data` has the digest it is kept under."""
    actual = sha256_bytes(data)
    if actual != expected:
        raise CorruptDataError(
            f"{what} is damaged: its bytes have digest {actual}, expected {quote(expected)}"
        )


def parse_digest(text: str) -> Digest:
    """Return `text` if it is a full digest, else raise `UsageError`."""
    if not isinstance(text, str) or _DIGEST.fullmatch(text) is None:
        raise UsageError(
            f"{quote(text)} is not a digest. Expected 'sha256:' "
            "and 64 lower-case hexadecimal digits"
        )
    return text


def quote(value: object) -> str:
    """`value` as a short, printable ASCII literal, safe to put into a message or a terminal."""
    # Cut before escaping: a hostile value may be megabytes long.
    shown = ascii(value[: _LONGEST_QUOTE + 1] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= _LONGEST_QUOTE else shown[: _LONGEST_QUOTE - 3] + "..."
