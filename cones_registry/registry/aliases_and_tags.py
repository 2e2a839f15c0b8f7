"""Changes to versions that exist: aliases, tags, removal, restoring."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Final

from cones_registry.catalog import keys
from cones_registry.catalog.copy import State
from cones_registry.catalog.events import Aliased, Removed, Restored, Tagged
from cones_registry.catalog.fold import Version
from cones_registry.catalog.reader import concepts_of, run_query, versions_where
from cones_registry.digest import quote
from cones_registry.errors import (
    ConflictError,
    NotFoundError,
    UsageError,
)
from cones_registry.record import MAX_TAGS, Concept, check_tag
from cones_registry.refs import Ref, check_alias
from cones_registry.registry import claims
from cones_registry.registry.deletions import Stopwatch, gone
from cones_registry.registry.find import as_ref, find_version
from cones_registry.registry.session import Session
from cones_registry.store import KeyExistsError

_ALIAS_ATTEMPTS: Final = 100


class Changes:
    """Commits events about versions."""

    def __init__(self, session: Session, default_owner: str) -> None:
        self._session = session
        self._default_owner = default_owner

    def alias(
        self, ref: str | Ref | Concept, alias: str, expect: int | str | Concept | None
    ) -> Concept:
        """Let an alias name a version; compare-and-set where `expect` is given."""
        self._session.require_writable()
        check_alias(alias)
        wanted = as_ref(ref, self._default_owner)
        for attempt in range(_ALIAS_ATTEMPTS):
            state = self._session.fresh_now()
            target = find_version(state, wanted)
            owner, name, version = target.record.place
            generation, current = _alias(state, owner, name, alias)
            self._require_expected(expect, current, owner, name, alias)
            if current == version:
                return _concept(state, target)
            key = keys.alias_key(owner, name, alias, generation + 1)
            event = Aliased(owner, name, version, alias, generation + 1)
            try:
                self._session.store.put_new(key, claims.encode_alias(event))
            except KeyExistsError:
                # Somebody else's move is decided. Say it for them, in case they no longer can.
                self._publish_claimed(key)
                time.sleep(random.uniform(0, min(0.2, 0.002 * 2 ** min(attempt, 7))))
                continue
            self._session.commit([event])
            return self._again(target)
        raise ConflictError(
            f"{owner}/{name}:{alias} was moved {_ALIAS_ATTEMPTS} times while this move was tried. "
            "Try again when fewer move it"
        )

    def _publish_claimed(self, key: str) -> None:
        event = claims.decode_alias(key, self._session.store.get(key))
        state = self._session.fresh_now()
        generation, _ = _alias(state, event.owner, event.name, event.alias)
        if generation < event.generation:
            self._session.commit([event])

    def _require_expected(
        self,
        expect: int | str | Concept | None,
        current: int,
        owner: str,
        name: str,
        alias: str,
    ) -> None:
        if expect is None:
            return
        expected = self._expected_version(expect, owner, name)
        if expected != current:
            stands = f"names version {current}" if current else "names nothing"
            raise ConflictError(
                f"{owner}/{name}:{alias} {stands}, expected version {expected}. Look again "
                f"(cones show {owner}/{name}:{alias}) and decide anew"
            )

    def _expected_version(self, expect: int | str | Concept, owner: str, name: str) -> int:
        if isinstance(expect, int) and not isinstance(expect, bool):
            return expect
        if isinstance(expect, str | Concept):
            if (
                isinstance(expect, str)
                and expect.isascii()
                and expect.isdigit()
                and len(expect) < 10
            ):
                return int(expect)
            ref = as_ref(expect, owner)
            if ref.version is not None and (ref.owner, ref.name) == (owner, name):
                return ref.version
        raise UsageError(
            f"expect is {quote(expect)}; expected a version number of {owner}/{name}, "
            "or 0 for an alias that names nothing yet"
        )

    def tag(self, ref: str | Ref | Concept, add: Iterable[str], remove: Iterable[str]) -> Concept:
        """Add and remove keywords of a version."""
        self._session.require_writable()
        if isinstance(add, str) or isinstance(remove, str):
            raise UsageError("add and remove take several tags; write add=['animal']")
        added, dropped = sorted(set(add)), sorted(set(remove))
        for tag in [*added, *dropped]:
            check_tag(tag)
        if set(added) & set(dropped):
            raise UsageError(f"cannot both add and remove {sorted(set(added) & set(dropped))}")
        target = find_version(self._session.fresh_now(), as_ref(ref, self._default_owner))
        present = set(target.tags)
        added = [tag for tag in added if tag not in present]
        dropped = [tag for tag in dropped if tag in present]
        count = len(present) + len(added) - len(dropped)
        if added and count > MAX_TAGS:
            raise UsageError(
                f"{target.record.ref} would have {count} tags; at most {MAX_TAGS} are allowed. "
                "Remove some first"
            )
        if added or dropped:
            self._session.commit([Tagged(*target.record.place, tuple(added), tuple(dropped))])
        return self._again(target)

    def remove(self, ref: str | Ref | Concept) -> Concept:
        """Hide a version."""
        self._session.require_writable()
        target = find_version(self._session.fresh_now(), as_ref(ref, self._default_owner))
        self._session.commit([Removed(*target.record.place)])
        return self._again(target)

    def restore(self, ref: str | Ref | Concept) -> Concept:
        """Show a removed version again."""
        self._session.require_writable()
        wanted, since = as_ref(ref, self._default_owner), Stopwatch()
        target = find_version(self._session.fresh_now(), wanted, removed=True)
        place, mask = target.record.place, target.record.blob_digest
        pruned = NotFoundError(
            f"{target.record.ref} was removed and its bytes are pruned. Push the mask again"
        )
        if self._session.store.head(keys.mask_key(mask)) is None:
            raise pruned
        self._session.commit([Restored(*place)])
        try:
            self._session.notices.settle([mask], gone, since)
        except NotFoundError:
            self._session.commit([Removed(*place)])
            raise pruned from None
        return self._again(target)

    def _version(self, state: State, target: Version) -> Version:
        found = versions_where(
            state, "owner = ? AND name = ? AND version = ?", list(target.record.place)
        )
        if not found:
            raise NotFoundError(f"{target.record.ref} was purged while it was changed")
        return found[0]

    def _again(self, target: Version) -> Concept:
        """The record after the change."""
        state = self._session.fresh_now()
        return _concept(state, self._version(state, target))


def _concept(state: State, version: Version) -> Concept:
    return concepts_of(state, [version])[0]


def _alias(state: State, owner: str, name: str, alias: str) -> tuple[int, int]:
    """(generation, version) of an alias, (0, 0) if it names nothing."""
    rows = run_query(
        state,
        "SELECT generation, version FROM aliases WHERE owner = ? AND name = ? AND alias = ?",
        [owner, name, alias],
    ).to_pylist()
    return (rows[0]["generation"], rows[0]["version"]) if rows else (0, 0)
