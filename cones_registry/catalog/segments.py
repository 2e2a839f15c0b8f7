"""Log segments: one commit each.

`log/<ulid>.<sha256>.json.zst`: the name is unique, and the digest in it is of the object's bytes,
so a reader checks what it got before it looks inside. The content is zstd over
`{"format": "cones-log/1", "events": [...]}`. Pointers to snapshots end in `.pointer.json.zst`, so
that one
listing tells a reader what to read first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import zstandard

from cones_registry.catalog.clock import parse_stamp
from cones_registry.catalog.documents import MAX_DOCUMENT_BYTES, canonical, parse_json
from cones_registry.catalog.events import Event, check_event
from cones_registry.digest import require_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, LimitExceededError
from cones_registry.store import Store

PREFIX: Final = "log/"
SUFFIX: Final = ".json.zst"
POINTER_SUFFIX: Final = ".pointer.json.zst"
MAX_EVENTS: Final = 100_000
"""Events in one commit."""

FORMAT: Final = "cones-log/1"
_LEVEL: Final = 1


@dataclass(frozen=True)
class Segment:
    """One commit.

    Attributes:
        stamp: ULID that names it and orders it.
        events: what it says, in order.
    """

    stamp: str
    events: tuple[Event, ...]


def commit_keys(store: Store) -> list[str]:
    """Keys of all commits in the log; publications of manifests lie there too."""
    return [entry.key for entry in store.list(PREFIX) if not entry.key.endswith(".pointer")]


def encode_segment(stamp: str, events: Sequence[Event]) -> tuple[str, bytes]:
    """(key, bytes) of a segment; `LimitExceededError` above `MAX_EVENTS` or the size limit."""
    if len(events) > MAX_EVENTS:
        raise LimitExceededError(
            f"{len(events)} changes in one commit; at most {MAX_EVENTS} fit. Use several"
        )
    content = canonical({"format": FORMAT, "events": list(events)})
    if len(content) > MAX_DOCUMENT_BYTES:
        raise LimitExceededError(
            f"one commit would have {len(content)} bytes; at most {MAX_DOCUMENT_BYTES} fit. "
            "Use several"
        )
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    digest = sha256_bytes(data).removeprefix("sha256:")
    suffix = POINTER_SUFFIX if events[0]["type"] == "pointer" else SUFFIX
    return f"{PREFIX}{stamp}.{digest}{suffix}", data


def is_pointer(key: str) -> bool:
    """Whether a key names a pointer to a snapshot."""
    return key.endswith(POINTER_SUFFIX)


def parse_name(key: str) -> tuple[str, str]:
    """(stamp, digest) of a segment's key; `CorruptDataError` if it is not one."""
    stamp, dot, rest = key.removeprefix(PREFIX).partition(".")
    suffix = POINTER_SUFFIX if is_pointer(key) else SUFFIX
    digest = rest.removesuffix(suffix)
    if not dot or not rest.endswith(suffix) or len(digest) != 64:
        raise CorruptDataError(
            f"{key[:200]!a} is not a log segment; expected {PREFIX}<ulid>.<sha256>{SUFFIX}. "
            "Nothing else may be kept there"
        )
    return parse_stamp(stamp), "sha256:" + digest


def decode_segment(key: str, data: bytes) -> Segment:
    """The commit in a segment's bytes, checked against the digest in its name, bounds first.

    Raises:
        CorruptDataError: damaged, of an unknown format, or with an event that cannot be.
    """
    stamp, expected = parse_name(key)
    require_digest(data, expected, key)
    content = _decompress(key, data)
    document: Any = parse_json(content, key)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CorruptDataError(f"{key} is not of format {FORMAT!r}, the one this version reads")
    events = document.get("events")
    if not isinstance(events, list) or not 0 < len(events) <= MAX_EVENTS:
        raise CorruptDataError(f"{key} must hold 1 to {MAX_EVENTS} events")
    try:
        checked = tuple(check_event(event) for event in events)
    except CorruptDataError as error:
        raise CorruptDataError(f"{key}: {error}") from error
    pointers = sum(event["type"] == "pointer" for event in checked)
    if pointers != (1 if is_pointer(key) else 0) or (pointers and len(checked) > 1):
        raise CorruptDataError(f"{key}: a pointer stands alone, in a segment named so")
    return Segment(stamp, checked)


def _decompress(key: str, data: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        # Never trust the frame with the allocation: a few bytes can announce terabytes.
        if not 0 <= size <= MAX_DOCUMENT_BYTES:
            raise CorruptDataError(
                f"{key} announces {size} bytes; a segment has at most {MAX_DOCUMENT_BYTES}"
            )
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_DOCUMENT_BYTES)
    except zstandard.ZstdError as error:
        raise CorruptDataError(f"{key} is not zstd data: {error}") from error
