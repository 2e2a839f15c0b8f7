"""Events: what a commit can say. Parsed strictly: the log is shared, so it may hold anything.

push     a version of a concept, with its whole record
alias    generation `generation` of an alias names `version`
tag      keywords added to and removed from a version
remove   hides a version         restore  shows it again
condemn  phase one of pruning: these versions are beyond restoring, these blobs may go
swept    these condemned blobs are gone
rewrite  blob `old` is now blob `new` (purge made it again without the purged owner's record)
purge    everything of the concepts with these name digests, up to a version, is gone for good
pointer  a snapshot exists and has folded these segments
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from cones_registry.digest import parse_digest, quote
from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.manifest import Concept, check_alias, check_name
from cones_registry.refs import MAX_VERSION

Event = dict[str, Any]

MAX_TAGS: Final = 1000
MAX_TAG_LENGTH: Final = 200
MAX_NOTE_LENGTH: Final = 100_000
MAX_WORD_LENGTH: Final = 200
MAX_SKETCH_BYTES: Final = 4096


def check_event(value: Any) -> Event:
    """Return a well-formed event, else raise `CorruptDataError`."""
    if not isinstance(value, dict):
        raise CorruptDataError(f"an event must be an object, got {quote(value)}")
    kind = value.get("type")
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    if check is None:
        raise CorruptDataError(
            f"unknown event {quote(kind)}; this version knows {', '.join(_CHECKS)}"
        )
    try:
        check(value)
    except UsageError as error:
        raise CorruptDataError(f"bad {kind} event: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"bad {kind} event: {type(error).__name__} {error}") from error
    return value


def check_words(tags: tuple[str, ...], note: str, token: str | None, noun: str | None) -> None:
    """`UsageError` if the free texts of a concept are too long, or not text."""
    if len(tags) > MAX_TAGS:
        raise UsageError(f"{len(tags)} tags; at most {MAX_TAGS} are allowed")
    for tag in tags:
        check_tag(tag)
    if not isinstance(note, str) or len(note) > MAX_NOTE_LENGTH or not _encodable(note):
        raise UsageError(f"a note is text of at most {MAX_NOTE_LENGTH} characters")
    for what, word in (("token", token), ("class_noun", noun)):
        if word is not None and (
            not isinstance(word, str)
            or not 0 < len(word) <= MAX_WORD_LENGTH
            or not word.isprintable()
        ):
            raise UsageError(
                f"{what} is {quote(word)}; expected 1 to {MAX_WORD_LENGTH} printable characters"
            )


def check_tag(tag: str) -> str:
    """Return `tag` if it can be one, else raise `UsageError`."""
    if (
        not isinstance(tag, str)
        or not 0 < len(tag) <= MAX_TAG_LENGTH
        or not tag.isprintable()
        or tag.strip() != tag
    ):
        raise UsageError(
            f"{quote(tag)} is not a tag; expected 1 to {MAX_TAG_LENGTH} printable characters "
            "without space around them"
        )
    return tag


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise CorruptDataError(f"{what} is {quote(value)}; expected a number {low} to {high}")
    return value


def _version_key(value: Mapping[str, Any]) -> None:
    check_name(value["owner"], "owner")
    check_name(value["name"], "name")
    _integer(value["version"], 1, MAX_VERSION, "version")


def _push(value: Event) -> None:
    record = value["concept"]
    concept = Concept.from_json(record)
    check_words(concept.tags, concept.note, concept.token, concept.class_noun)
    _integer(concept.blob_bytes, 0, 2**40, "blob_bytes")
    _integer(concept.table_neuron_count, 1, 2**40, "table_neuron_count")
    _integer(concept.neuron_count, 0, concept.table_neuron_count, "neuron_count")
    if abs(concept.density - concept.neuron_count / concept.table_neuron_count) > 1e-9:
        raise CorruptDataError("density is not neuron_count / table_neuron_count")
    if len(concept.layout) > 50 or not concept.layout.isprintable():
        raise CorruptDataError(f"layout is {quote(concept.layout)}")
    if not _is_time(concept.created):
        raise CorruptDataError(f"created is {quote(concept.created)}; expected UTC in ISO 8601")
    if not isinstance(value["push"], str) or len(value["push"]) > MAX_TAG_LENGTH:
        raise CorruptDataError("push must be a short text")
    if type(value["history"]) is not bool:
        raise CorruptDataError("history must be true or false")
    try:
        sketch = base64.b64decode(value.get("sketch", ""), validate=True)
    except ValueError as error:
        raise CorruptDataError(f"sketch is not base64: {error}") from error
    if len(sketch) > MAX_SKETCH_BYTES:
        raise CorruptDataError(f"sketch has {len(sketch)} bytes; at most {MAX_SKETCH_BYTES}")
    # Keys of later versions go, keys that may be left out come: from here on every record is whole.
    whole = concept.to_json()
    value["concept"] = {key: whole[key] for key in RECORD_KEYS}


def _is_time(text: str) -> bool:
    import datetime

    try:
        return text.endswith("Z") and bool(datetime.datetime.fromisoformat(text))
    except ValueError:
        return False


def _alias(value: Event) -> None:
    _version_key(value)
    check_alias(value["alias"])
    _integer(value["generation"], 1, MAX_VERSION, "generation")


def _tag(value: Event) -> None:
    _version_key(value)
    for tag in [*_list(value["add"]), *_list(value["remove"])]:
        check_tag(tag)


def _condemn(value: Event) -> None:
    for owner, name, version in _list(value["versions"]):
        _version_key({"owner": owner, "name": name, "version": version})
    for digest, size in _list(value["blobs"]):
        parse_digest(digest)
        _integer(size, 0, 2**40, "size")


def _rewrite(value: Event) -> None:
    parse_digest(value["old"])
    parse_digest(value["new"])
    _integer(value["bytes"], 0, 2**40, "bytes")


def _purge(value: Event) -> None:
    for digest, highest in value["names"].items():
        parse_digest(digest)
        _integer(highest, 0, MAX_VERSION, "highest version")
    for digest in _list(value["blobs"]):
        parse_digest(digest)


def _swept(value: Event) -> None:
    for digest in _list(value["blobs"]):
        parse_digest(digest)


def _pointer(value: Event) -> None:
    _integer(value["number"], 1, MAX_VERSION, "number")
    parse_digest(value["manifest"])
    if not all(isinstance(name, str) for name in _list(value["folded"])):
        raise CorruptDataError("folded must list segment names")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CorruptDataError(f"expected a list, got {quote(value)}")
    return value


_CHECKS: Final[dict[str, Callable[[Event], None]]] = {
    "push": _push,
    "alias": _alias,
    "tag": _tag,
    "remove": _version_key,
    "restore": _version_key,
    "condemn": _condemn,
    "swept": _swept,
    "rewrite": _rewrite,
    "purge": _purge,
    "pointer": _pointer,
}
# What a push says of a concept; aliases and removal are said by events of their own.
RECORD_KEYS: Final = frozenset(
    each.name for each in fields(Concept) if each.name not in ("aliases", "removed")
)
