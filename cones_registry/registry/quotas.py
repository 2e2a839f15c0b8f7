"""Quotas: how much one owner may keep. `quotas/<owner>/<generation>.json`, the highest holds.

Enforced at push against the catalogue as it is then. Best effort between writers: two that push at
the same moment can each find room and together pass the limit by what the two add.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from ulid import ULID

from cones_registry.catalog import keys
from cones_registry.catalog.copy import State
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.events import QuotaSet
from cones_registry.catalog.reader import run_query
from cones_registry.digest import Digest, quote
from cones_registry.errors import CorruptDataError, LimitExceededError, NotFoundError, UsageError
from cones_registry.refs import check_name
from cones_registry.registry.session import Session
from cones_registry.store import KeyExistsError

_REMEMBER_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Quota:
    """What an owner may keep.

    Attributes:
        owner: whose.
        concepts: concepts (names, whatever their number of versions) that are not removed; None:
            any number.
        bytes: bytes of distinct blobs, of removed versions too until they are pruned; None: any.
    """

    owner: str
    concepts: int | None
    bytes: int | None


@dataclass
class Added:
    """What a push would add to one owner: names, and blob digest -> bytes."""

    names: set[str] = field(default_factory=set)
    blobs: dict[Digest, int] = field(default_factory=dict)


class Quotas:
    """Reads, sets and enforces the quotas of a registry."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[str, Quota] = {}
        self._read = float("-inf")

    def all(self) -> list[Quota]:
        """Every quota, by owner."""
        latest = self._latest("")
        wanted = [keys.quota_key(owner, generation) for owner, generation in latest.items()]
        found = []
        for key, data in self._session.store.get_many(wanted):
            if data is not None:
                quota = _decode(key, data)
                if quota.concepts is not None or quota.bytes is not None:
                    found.append(quota)
        self._known = {quota.owner: quota for quota in found}
        self._read = time.monotonic()
        return sorted(found, key=lambda quota: quota.owner)

    def get(self, owner: str) -> Quota:
        """The quota of one owner; without limits if none was set."""
        check_name(owner, "owner")
        self.all()
        return self._known.get(owner, Quota(owner, None, None))

    def generations(self) -> dict[str, tuple[int, Quota]]:
        """Owner -> (how often the quota was set, the quota), of every owner who ever had one."""
        latest = self._latest("")
        wanted = {keys.quota_key(owner, number): owner for owner, number in latest.items()}
        return {
            wanted[key]: (latest[wanted[key]], _decode(key, data))
            for key, data in self._session.store.get_many(wanted)
            if data is not None
        }

    def put(
        self,
        owner: str,
        concepts: int | None,
        size: int | None,
        *,
        above: int = 0,
        verb: str = "",
    ) -> Quota:
        """Set both limits of an owner.

        Args:
            owner: whose.
            concepts, size: the limits; None: no limit.
            above: count as set at least so often before.
            verb: the user's, where it is not "quota".
        """
        self._session.require_writable()
        check_name(owner, "owner")
        for what, limit in (("concepts", concepts), ("bytes", size)):
            if limit is not None and (type(limit) is not int or limit < 0):
                raise UsageError(f"a quota of {quote(limit)} {what} cannot be; give 0 or more")
        body = {"owner": owner, "concepts": concepts, "bytes": size}
        while True:
            generation = max(above, self._latest(f"{owner}/").get(owner, 0)) + 1
            try:
                # The maker makes two equal settings two: the later one is a change of its own.
                data = seal("quota", body | {"maker": str(ULID())})
                self._session.store.put_new(keys.quota_key(owner, generation), data)
                break
            except KeyExistsError:
                continue
        self._read = float("-inf")
        self._session.fresh_now()
        self._session.commit([QuotaSet(owner, concepts, size)], verb=verb)
        return Quota(owner, concepts, size)

    def _latest(self, folder: str) -> dict[str, int]:
        """Owner -> highest generation of the quotas in a folder."""
        latest: dict[str, int] = {}
        for entry in self._session.store.list(f"{keys.QUOTAS}{folder}"):
            place = keys.quota_of(entry.key)
            if place is not None:
                latest[place[0]] = max(place[1], latest.get(place[0], 0))
        return latest

    def limits(self, owners: set[str]) -> list[Quota]:
        """The quotas that apply to any of `owners`, not older than two seconds."""
        if time.monotonic() - self._read > _REMEMBER_SECONDS:
            self.all()
        return [self._known[owner] for owner in sorted(owners) if owner in self._known]

    def require_room(self, added: dict[str, Added]) -> None:
        """`LimitExceededError` if a push would take an owner above the quota."""
        state = self._session.fresh_now()
        for quota in self.limits(set(added)):
            _require_room(state, quota, added[quota.owner])


def _require_room(state: State, quota: Quota, added: Added) -> None:
    rows = run_query(
        state,
        "SELECT name, blob_digest, blob_bytes, removed FROM concepts "
        "WHERE owner = ? AND NOT pruned",
        [quota.owner],
    ).to_pylist()
    names = {row["name"] for row in rows if not row["removed"]} | added.names
    blobs = {row["blob_digest"]: row["blob_bytes"] for row in rows} | added.blobs
    for what, used, limit in (
        ("concepts", len(names), quota.concepts),
        ("bytes", sum(blobs.values()), quota.bytes),
    ):
        if limit is not None and used > limit:
            raise LimitExceededError(
                f"{quota.owner} would keep {used} {what}; the quota is {limit}. Remove concepts "
                "(bytes are free again after `cones prune`), or ask for a larger quota"
            )


def usage(state: State, owner: str) -> tuple[int, int]:
    """(concepts, bytes) of an owner, counted as quotas count them."""
    (row,) = run_query(
        state,
        "SELECT (SELECT count(DISTINCT name) FROM concepts WHERE owner = ?1 AND NOT removed "
        "AND NOT pruned) AS concepts, (SELECT coalesce(sum(size), 0)::BIGINT FROM (SELECT DISTINCT "
        "blob_digest, blob_bytes AS size FROM concepts WHERE owner = ?1 AND NOT pruned)) AS bytes",
        [owner],
    ).to_pylist()
    return row["concepts"], row["bytes"]


def _decode(key: str, data: bytes) -> Quota:
    body = unseal("quota", data, key)
    try:
        owner = check_name(body["owner"], "owner")
        limits = [body["concepts"], body["bytes"]]
    except (KeyError, UsageError, NotFoundError) as error:
        raise CorruptDataError(f"{key} is not a quota: {error}") from error
    if any(limit is not None and (type(limit) is not int or limit < 0) for limit in limits):
        raise CorruptDataError(f"{key} is not a quota: {quote(limits)}")
    return Quota(owner, *limits)
