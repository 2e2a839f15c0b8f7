"""Log segments: one commit each.

``log/<ulid>.<sha256>.json.zst``: the name is unique, and the digest in it is of the object's bytes,
so a reader checks what it got before it looks inside. The content is zstd over
``{"format": "cones-log/2", "actor": …, "verb": …, "events": [...]}``. Publications of
manifests lie beside them (``chain``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import zstandard

from cones_registry.catalog.clock import parse_stamp
from cones_registry.catalog.documents import MAX_DOCUMENT_BYTES, canonical, count_values, parse_json
from cones_registry.catalog.events import Event, parse_events, plain_events
from cones_registry.catalog.keys import LOG
from cones_registry.digest import quote, require_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, LimitExceededError, NewerFormatError
from cones_registry.store import Store

SUFFIX: Final = ".json.zst"
MAX_EVENTS: Final = 100_000
"""Events in one commit."""
MAX_VALUES: Final = 80 * MAX_EVENTS
"""JSON values in one commit; a push has about 50."""
MAX_ACTOR_LENGTH: Final = 200

FORMAT: Final = "cones-log/2"
_LEVEL: Final = 1
_NAME: Final = re.compile(r"log/([0-7][0-9A-HJKMNP-TV-Z]{25})\.([0-9a-f]{64})\.json\.zst", re.ASCII)


@dataclass(frozen=True)
class Segment:
    """One commit.

    Attributes:
        stamp: ULID that names it and orders it.
        events: what it says, in order.
        actor: who made it.
        verb: the user's verb, where that is not the kind of its events: "import".
    """

    stamp: str
    events: tuple[Event, ...]
    actor: str = ""
    verb: str = ""


def commit_keys(store: Store) -> list[str]:
    """Keys of all commits in the log; publications of manifests lie there too, and what does not
    belong there."""
    return [entry.key for entry in store.list(LOG) if is_segment(entry.key)]


def encode_segment(segment: Segment) -> tuple[str, bytes]:
    """(key, bytes) of a segment; ``LimitExceededError`` above ``MAX_EVENTS`` or the size limit."""
    events = segment.events
    if len(events) > MAX_EVENTS:
        raise LimitExceededError(
            f"{len(events)} changes in one commit; at most {MAX_EVENTS} fit. Use several"
        )
    content = canonical(
        {
            "format": FORMAT,
            "actor": segment.actor,
            "verb": segment.verb,
            "events": plain_events(events),
        }
    )
    if len(content) > MAX_DOCUMENT_BYTES or count_values(content, MAX_VALUES) > MAX_VALUES:
        raise LimitExceededError(
            f"one commit would have {len(content)} bytes; at most {MAX_DOCUMENT_BYTES}, and "
            f"{MAX_VALUES} JSON values, fit. Use several"
        )
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    digest = sha256_bytes(data).removeprefix("sha256:")
    return f"{LOG}{segment.stamp}.{digest}{SUFFIX}", data


def is_segment(key: str) -> bool:
    """Whether a key can be a segment's; others (folder markers, files of an editor) are none."""
    return _NAME.fullmatch(key) is not None


def parse_name(key: str) -> tuple[str, str]:
    """(stamp, digest) of a segment's key; ``CorruptDataError`` if it is not one."""
    match = _NAME.fullmatch(key)
    if match is None:
        raise CorruptDataError(
            f"{key[:200]!a} is not a log segment; expected {LOG}<ulid>.<sha256>{SUFFIX}"
        )
    return parse_stamp(match[1]), "sha256:" + match[2]


def decode_segment(key: str, data: bytes) -> Segment:
    """The commit in a segment's bytes, checked against the digest in its name, bounds first.

    Raises:
        NewerFormatError: a newer version wrote it.
        CorruptDataError: damaged, or with an event that cannot be.
    """
    stamp, expected = parse_name(key)
    require_digest(data, expected, key)
    document: Any = parse_json(_decompress(key, data), key, MAX_VALUES)
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        if isinstance(found, str) and found.startswith("cones-log/") and found != "cones-log/1":
            raise NewerFormatError.of(f"a commit of format {quote(found)}")
        raise CorruptDataError(f"{key} is not of format {FORMAT!r}, the one this version reads")
    events = document.get("events")
    if not isinstance(events, list) or not 0 < len(events) <= MAX_EVENTS:
        raise CorruptDataError(f"{key} must hold 1 to {MAX_EVENTS} events")
    try:
        checked = parse_events(events)
    except NewerFormatError:
        raise
    except CorruptDataError as error:
        raise CorruptDataError(f"{key}: {error}") from error
    who = [document.get("actor", ""), document.get("verb", "")]
    if not all(isinstance(each, str) and len(each) <= MAX_ACTOR_LENGTH for each in who):
        raise CorruptDataError(f"{key}: actor and verb are short texts")
    return Segment(stamp, checked, *who)


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
