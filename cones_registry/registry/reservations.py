"""Reservations: what must be unique is claimed with a create-exclusive key for it alone.

    names/<owner>/<name>/<number>                      a version; holds its whole record
    names/<owner>/<name>/alias/<alias>/<generation>    a move of an alias; holds its event
    names/<owner>/<name>/key/<key digest>/<generation> a push's key; holds the push it stands for
    purged/<name digest>/<number>                      numbers that are never given again

A reserved version without its event in the log is a gap: nothing was acknowledged. A reserved move
of an alias is decided: whoever finds it without its event publishes that event, so the next one to
move the alias knows where it stands. So is a reserved key of a push, unless its blob is gone: then
the next generation of it is free.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from ulid import ULID

from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.events import Event, check_event
from cones_registry.catalog.fold import name_digest
from cones_registry.errors import CorruptDataError
from cones_registry.store import Store

PREFIX: Final = "names/"
_VERSION: Final = re.compile(r"names/([^/]+)/([^/]+)/([1-9][0-9]*)", re.ASCII)
_ALIAS: Final = re.compile(r"names/([^/]+)/([^/]+)/alias/([^/]+)/([1-9][0-9]*)", re.ASCII)
_KEY: Final = re.compile(r"names/([^/]+)/([^/]+)/key/([0-9a-f]{64})/([1-9][0-9]*)", re.ASCII)


@dataclass(frozen=True)
class ReservedName:
    """What a reservation's key says: a version, a move of an alias, or the key of a push.

    Attributes:
        owner, name: the concept.
        number: the version, or the generation of the alias or push key.
        alias: which alias is moved, if it is that.
        push_key: hex digest of the push's key, if it is that.
    """

    owner: str
    name: str
    number: int
    alias: str | None = None
    push_key: str | None = None

    @property
    def is_version(self) -> bool:
        """Whether a version number is reserved."""
        return self.alias is None and self.push_key is None


def version_key(owner: str, name: str, version: int) -> str:
    """Key of the reservation of a version."""
    return f"{PREFIX}{owner}/{name}/{version}"


def alias_key(owner: str, name: str, alias: str, generation: int) -> str:
    """Key of the reservation of a move of an alias."""
    return f"{PREFIX}{owner}/{name}/alias/{alias}/{generation}"


def push_key(owner: str, name: str, key: str, generation: int) -> str:
    """Key of the reservation of a push's key; the text of it stands there as a digest only."""
    digest = hashlib.sha256(f"cones push key 1\n{owner}/{name}\n{key}".encode()).hexdigest()
    return f"{PREFIX}{owner}/{name}/key/{digest}/{generation}"


def purged_prefix(registry_id: str, owner: str, name: str) -> str:
    """Folder of the records that numbers of a name were purged."""
    return f"purged/{name_digest(registry_id, owner, name).removeprefix('sha256:')}/"


def parse_key(key: str) -> ReservedName | None:
    """What a key below `names/` reserves, None if nothing this version knows."""
    match = _VERSION.fullmatch(key)
    if match:
        return ReservedName(match[1], match[2], int(match[3]))
    match = _ALIAS.fullmatch(key)
    if match:
        return ReservedName(match[1], match[2], int(match[4]), match[3])
    match = _KEY.fullmatch(key)
    if match:
        return ReservedName(match[1], match[2], int(match[4]), push_key=match[3])
    return None


def encode_reservation(event: Event) -> bytes:
    """Bytes of a reservation of this writer; no two writers make the same."""
    return seal("reservation", {"event": event, "maker": str(ULID())})


def decode_reservation(key: str, data: bytes) -> Event:
    """The event a reservation is for, checked."""
    event = check_event(unseal("reservation", data, key).get("event"))
    reserved = parse_key(key)
    expected = ""
    if event["type"] == "push":
        concept = event["concept"]
        owner, name = concept["owner"], concept["name"]
        if reserved and reserved.push_key:
            expected = push_key(owner, name, event["push"], reserved.number)
        else:
            expected = version_key(owner, name, concept["version"])
    elif event["type"] == "alias":
        expected = alias_key(event["owner"], event["name"], event["alias"], event["generation"])
    if key != expected:
        raise CorruptDataError(f"{key} holds a reservation of {expected or event['type']!r}")
    return event


def reserved_versions(store: Store, owner: str, name: str) -> list[int]:
    """Numbers of one concept that were ever reserved, ascending."""
    found = (parse_key(entry.key) for entry in store.list(f"{PREFIX}{owner}/{name}/"))
    return sorted(each.number for each in found if each and each.is_version)


def highest_purged(store: Store, registry_id: str, owner: str, name: str) -> int:
    """The highest version of a purged name, 0 if it was never purged."""
    prefix = purged_prefix(registry_id, owner, name)
    numbers = (entry.key.removeprefix(prefix) for entry in store.list(prefix))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def reserve_purged(store: Store, registry_id: str, owner: str, name: str, highest: int) -> None:
    """Never give a version up to `highest` of a name again."""
    key = f"{purged_prefix(registry_id, owner, name)}{highest}"
    store.put_new(key, seal("purged", {"highest": highest}))
