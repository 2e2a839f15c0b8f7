"""Claims: what must be unique is claimed with a create-exclusive object for it alone.

The record of a version claims its number, the move of an alias claims its next generation, and a
push with a key claims the key for its version. A record without its event in the log is a gap:
nothing was acknowledged. A claimed move of an alias is decided: whoever finds it without its event
publishes that event, so that the next one to move the alias knows where it stands. So is a claimed
key, unless its mask is gone: then the next generation of it is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ulid import ULID

from cones_registry.catalog import keys
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.events import Aliased, Key
from cones_registry.catalog.fold import name_digest
from cones_registry.errors import CorruptDataError
from cones_registry.record import Number, Record, Short, parse
from cones_registry.store import Store


def encode_record(record: Record) -> bytes:
    """The stored object of a version; no two makers write the same bytes."""
    return seal("version", {"record": record.dump(), "maker": str(ULID())})


def decode_record(key: str, data: bytes) -> Record:
    """A version's record, loss history included, checked.

    Raises:
        NewerFormatError: a newer version wrote it.
        CorruptDataError: damaged, or of another version than its key says.
    """
    record = Record.from_json(unseal("version", data, key).get("record"))
    if keys.version_of(key) != record.place:
        raise CorruptDataError(f"{key} holds the record of {record.ref}")
    return record


def read_record(store: Store, owner: str, name: str, number: int) -> Record:
    """The record of a version; ``NotFoundError`` if the number is not claimed."""
    key = keys.version_key(owner, name, number)
    return decode_record(key, store.get(key))


def claimed_numbers(store: Store, owner: str, name: str) -> list[int]:
    """Numbers of one concept that were ever claimed, ascending."""
    places = (keys.version_of(entry.key) for entry in store.list(f"{keys.VERSIONS}{owner}/{name}/"))
    return sorted(place[2] for place in places if place is not None)


def claimed_records(store: Store, wanted: Iterable[Key]) -> Iterable[Record]:
    """Records of the versions that are claimed, in order; those that are not are left out."""
    by_key = [keys.version_key(*place) for place in wanted]
    for key, data in store.get_many(by_key):
        if data is not None:
            yield decode_record(key, data)


# -- moves of an alias ----------------------------------------------------------------------------


def encode_alias(event: Aliased) -> bytes:
    """The stored object of a move; no two makers write the same bytes."""
    body = {name: getattr(event, name) for name in event.__struct_fields__}
    return seal("alias", {**body, "maker": str(ULID())})


def decode_alias(key: str, data: bytes) -> Aliased:
    """The move that an alias's generation stands for, checked."""
    body = unseal("alias", data, key)
    body.pop("maker", None)
    event = parse(body | {"type": "alias"}, Aliased, f"a move of an alias ({key})")
    if keys.alias_of(key) != (event.owner, event.name, event.alias, event.generation):
        raise CorruptDataError(f"{key} holds a move of {event.owner}/{event.name}:{event.alias}")
    return event


# -- keys of pushes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyClaim:
    """The version that a key stands for."""

    owner: str
    name: str
    key: Short
    version: Number


def encode_key_claim(record: Record) -> bytes:
    """The stored object of a key; no two makers write the same bytes."""
    body: dict[str, Any] = {
        "owner": record.owner,
        "name": record.name,
        "key": record.key,
        "version": record.version,
    }
    return seal("push", {**body, "maker": str(ULID())})


def decode_key_claim(key: str, data: bytes) -> KeyClaim:
    """What a key stands for, checked."""
    claim = parse(unseal("push", data, key), KeyClaim, f"the key of a push ({key})")
    place = keys.push_of(key)
    if place is None or keys.push_key(claim.owner, claim.name, claim.key, place[3]) != key:
        raise CorruptDataError(f"{key} holds the key of another push")
    return claim


def decided_versions(claims: Iterable[tuple[int, KeyClaim]]) -> dict[tuple[str, str, str], int]:
    """(owner, name, push key) -> the version it stands for, of (generation, claim)."""
    latest: dict[tuple[str, str, str], tuple[int, int]] = {}
    for generation, claim in claims:
        what = (claim.owner, claim.name, claim.key)
        latest[what] = max((generation, claim.version), latest.get(what, (0, 0)))
    return {what: version for what, (_, version) in latest.items()}


# -- numbers that were purged ---------------------------------------------------------------------


def highest_purged(store: Store, registry_id: str, owner: str, name: str) -> int:
    """The highest version of a purged name, 0 if it was never purged."""
    prefix = keys.purged_prefix(name_digest(registry_id, owner, name))
    found = (keys.purged_of(entry.key) for entry in store.list(prefix))
    return max((each[1] for each in found if each), default=0)


def keep_purged(store: Store, registry_id: str, owner: str, name: str, highest: int) -> None:
    """Never give a version up to ``highest`` of a name again."""
    key = keys.purged_key(name_digest(registry_id, owner, name), highest)
    store.put_new(key, seal("purged", {"highest": highest}))
