"""Small JSON objects that carry their own digest: cones.json, bases, records, claims, receipts.

A document is a JSON object with the keys `format` ("cones-<kind>/<version>") and `digest`, the
sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of everything but `digest`.
"""

import json
import re
from typing import Any, Final

from cones_registry.digest import quote, sha256_bytes
from cones_registry.errors import CorruptDataError, NewerFormatError

MAX_DOCUMENT_BYTES: Final = 256 * 2**20
MAX_VALUES: Final = 16_000_000
"""JSON values in one document. Python takes 70 bytes for each, however short it is written."""

_TEXTS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, UTF-8; NaN and infinities are refused."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


VERSIONS: Final = {"registry": 2, "snapshot": 2, "archive": 2}
"""Kind of document -> version of its format, where that is not 1."""


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """Bytes of a document of `kind`."""
    document = {"format": f"cones-{kind}/{VERSIONS.get(kind, 1)}", **body}
    digest = sha256_bytes(canonical(document))
    # A line end lets people `cat` the file.
    return canonical({**document, "digest": digest}) + b"\n"


def unseal(kind: str, data: bytes, source: str, version: int | None = None) -> dict[str, Any]:
    """The body of a document, its digest checked.

    Args:
        kind: what it must be.
        data: the bytes.
        source: where they came from, for messages.
        version: of its format; None: the one that this version writes.

    Raises:
        NewerFormatError: a later version of the kind.
        CorruptDataError: not a document, of another kind or version, or its digest does not fit.
    """
    document = parse_json(data, source)
    if not isinstance(document, dict):
        raise CorruptDataError(f"{source} is not a JSON object")
    digest = document.pop("digest", None)
    try:
        actual = sha256_bytes(canonical(document))
    except (ValueError, UnicodeEncodeError) as error:
        raise CorruptDataError(f"{source} cannot be read: {error}") from error
    if digest != actual:
        raise CorruptDataError(
            f"{source} is damaged: its content has digest {actual}, expected {quote(digest)}"
        )
    found = document.pop("format", None)
    wanted = VERSIONS.get(kind, 1) if version is None else version
    if found != f"cones-{kind}/{wanted}":
        number = str(found).removeprefix(f"cones-{kind}/")
        if number.isascii() and number.isdigit() and len(number) < 6 and int(number) > wanted:
            raise NewerFormatError.of(f"an object of format {found} ({source})")
        raise CorruptDataError(f"{source} is {quote(found)}, expected 'cones-{kind}/{wanted}'")
    return document


def count_values(data: bytes, enough: int) -> int:
    """How many values JSON holds, about; it is not counted exactly where it is below `enough`."""
    count = sum(data.count(each) for each in (b",", b"[", b"{"))
    if count <= enough:
        return count
    plain = _TEXTS.sub(b"", data)  # a note may be nothing but commas
    return sum(plain.count(each) for each in (b",", b"[", b"{"))


def parse_json(data: bytes, source: str, most: int = MAX_VALUES) -> Any:
    """A JSON value of at most `MAX_DOCUMENT_BYTES` and `most` values within; `CorruptDataError` for
    anything else."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise CorruptDataError(
            f"{source} has {len(data)} bytes; a document has at most {MAX_DOCUMENT_BYTES}"
        )
    if (count := count_values(data, most)) > most:
        raise CorruptDataError(f"{source} holds {count} values; a document has at most {most}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{source} is not JSON: {str(error)[:200]}") from error
