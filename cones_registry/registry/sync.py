"""Sync: what one registry has, in another one. A backup, and the way back from it.

The two are registries of their own: each has an id, a log and keys that only it gives. A version
keeps its number, its record (loss history included) and its mask object byte for byte, so a second
run finds what the first one put, wherever that was broken off. A number, an alias or a quota that
says something else in the destination is reported and left as it is there.

Order, so that a reader of the destination never sees a ref that leads nowhere: base models, masks,
pictures, records, then the commit that shows these versions; after all versions the aliases, the
quotas, and last what is to be hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from cones_registry.catalog import keys
from cones_registry.catalog.copy import State
from cones_registry.catalog.events import (
    Aliased,
    Condemned,
    Event,
    Key,
    Pushed,
    Removed,
    Restored,
    Tagged,
)
from cones_registry.catalog.fold import Version, name_digest
from cones_registry.catalog.reader import any_of, versions_where
from cones_registry.catalog.segments import Segment, encode_segment
from cones_registry.digest import Digest, sha256_bytes
from cones_registry.errors import (
    BaseModelMismatchError,
    CorruptDataError,
    NotFoundError,
    UsageError,
)
from cones_registry.filters import Condition, where
from cones_registry.record import Record
from cones_registry.registry import claims
from cones_registry.registry.bases import Bases
from cones_registry.registry.deletions import Stopwatch
from cones_registry.registry.quotas import Quota, Quotas
from cones_registry.registry.session import Session, actor

VERB: Final = "sync"
_PER_COMMIT: Final = 500
_COMMIT_BYTES: Final = 256 * 2**20
"""Masks after which a commit is made, so that a run that is broken off has lost little."""

_ROWS_AT_ONCE: Final = 10_000
_COLUMNS: Final = (
    *("owner", "name", "version", "mask_digest", "base", "scope", "token", "class_noun"),
    *("tags", "removed", "pruned", "blob_digest", "blob_bytes"),
)

T = TypeVar("T")


@dataclass(frozen=True)
class Clash:
    """Something that both registries have and that says different things.

    Attributes:
        what: a ref, ``owner/name:alias``, or ``quota of OWNER``.
        why: what each of the two says.
    """

    what: str
    why: str


@dataclass(frozen=True)
class SyncResult:
    """What a sync did to its destination.

    Attributes:
        versions: how many became known there; removed ones keep their number and are hidden there.
        masks, copied_bytes: mask objects that were copied, and their bytes.
        restored: versions that were hidden there and are in use again.
        tagged: versions whose tags were changed.
        aliases, quotas: how many were set.
        hidden: versions that were taken out of sight there; `restore` shows them again.
        clashes: what says something else there, and was left as it is.
        purged: versions that were left out because they were purged there.
        purged_at_source: concepts that the source purged and the destination still has: it takes a
            purge of its own there.
        problems: what could not be copied, since it is damaged or gone.
    """

    versions: int
    masks: int
    copied_bytes: int
    restored: int
    tagged: int
    aliases: int
    quotas: int
    hidden: int
    clashes: tuple[Clash, ...]
    purged: tuple[str, ...]
    purged_at_source: tuple[str, ...]
    problems: tuple[Clash, ...]

    @property
    def ok(self) -> bool:
        """Whether the destination has everything that was asked for."""
        return not (self.clashes or self.problems)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        said: dict[str, Any] = dict(self.__dict__)
        for name in ("clashes", "problems"):
            said[name] = [dict(each.__dict__) for each in said[name]]
        return said | {"purged": list(self.purged), "purged_at_source": list(self.purged_at_source)}


class _Row(NamedTuple):
    """What is compared of a version."""

    owner: str
    name: str
    version: int
    mask_digest: Digest
    base: Digest
    scope: str
    token: str | None
    class_noun: str | None
    tags: list[str]
    removed: bool
    pruned: bool
    blob_digest: Digest
    blob_bytes: int
    wanted: bool | None

    @property
    def key(self) -> Key:
        return self.owner, self.name, self.version

    @property
    def ref(self) -> str:
        return f"{self.owner}/{self.name}:{self.version}"

    @property
    def content(self) -> tuple[object, ...]:
        """What a version is for its users: two with the same can stand for each other."""
        return self.mask_digest, self.base, self.scope, self.token, self.class_noun


@dataclass(frozen=True)
class SyncPlan:
    """What a sync would do; nothing changes until `execute`.

    Attributes:
        versions: (owner, name, version) that the destination lacks.
        restore: those that it hides and the source has in use.
        tags: version -> (tags to add, tags to take away).
        aliases: alias -> (generation, version).
        quotas: owner -> (generation, limits).
        hide: versions to be taken out of sight there: with ``delete`` only.
        clashes, purged, purged_at_source: as in `SyncResult`.
        masks: mask digest -> bytes, of the versions that it lacks; those that are there already
            (of another version) are not copied again.
        filters, delete: what was asked for.
    """

    versions: tuple[Key, ...]
    restore: tuple[Key, ...]
    tags: Mapping[Key, tuple[tuple[str, ...], tuple[str, ...]]]
    aliases: Mapping[tuple[str, str, str], tuple[int, int]]
    quotas: Mapping[str, tuple[int, Quota]]
    hide: tuple[Key, ...]
    clashes: tuple[Clash, ...]
    purged: tuple[str, ...]
    purged_at_source: tuple[str, ...]
    masks: Mapping[Digest, int]
    filters: tuple[str, ...]
    delete: bool
    _source: Session = field(repr=False, compare=False)
    _dest: Session = field(repr=False, compare=False)

    @property
    def steps(self) -> int:
        """How many changes `execute` would make; 0: the destination has everything."""
        return sum(
            map(
                len,
                (self.versions, self.restore, self.tags, self.aliases, self.quotas, self.hide),
            )
        )

    def execute(self) -> SyncResult:
        """Make the changes. Broken off at any point, it is planned and run again.

        Planned again first: what changed since in either registry is left alone.

        Raises:
            UsageError: the destination was opened read-only.
            StoreUnavailableError: one of the two stores does not answer; run it again.
        """
        self._dest.require_writable()
        now = plan_sync(self._source, self._dest, self.filters, delete=self.delete)
        return _Copying(self, now).run()


def plan_sync(source: Session, dest: Session, filters: Sequence[str], *, delete: bool) -> SyncPlan:
    """What a sync would do: see `SyncPlan`."""
    if source.store.place == dest.store.place:
        raise UsageError(f"{source.store.url} is both source and destination; give two places")
    condition = where(filters)
    here, there = source.fresh_now(), dest.fresh_now()
    aliases = _aliases(here)
    targets = {(owner, name, to) for (owner, name, _), (_, to) in aliases.items()}
    usable: set[Key] = set()
    versions, restore, hide = list[Key](), list[Key](), list[Key]()
    tags: dict[Key, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    clashes, purged, forgotten = list[Clash](), list[str](), dict[str, None]()
    masks: dict[Digest, int] = {}
    for mine, theirs in _side_by_side(_rows(here, condition), _rows(there, condition)):
        if mine is None:
            if theirs is None:
                continue
            if _is_purged(here, source, theirs.key):
                forgotten[f"{theirs.owner}/{theirs.name}"] = None
            if delete and theirs.wanted and not theirs.removed:
                hide.append(theirs.key)
            continue
        if not mine.wanted:
            continue
        if theirs is None:
            if _is_purged(there, dest, mine.key):
                purged.append(mine.ref)
                continue
            versions.append(mine.key)
            if not mine.pruned:
                masks[mine.blob_digest] = mine.blob_bytes
        elif mine.content != theirs.content:
            clashes.append(Clash(mine.ref, _difference(mine, theirs)))
            continue
        elif mine.removed:
            if delete and not theirs.removed:
                hide.append(mine.key)
        else:
            if theirs.removed:
                if mine.blob_digest != theirs.blob_digest and theirs.pruned:
                    clashes.append(Clash(mine.ref, "pruned there, as another object"))
                    continue
                restore.append(mine.key)
            added = sorted(set(mine.tags) - set(theirs.tags))
            dropped = sorted(set(theirs.tags) - set(mine.tags)) if delete else []
            if added or dropped:
                tags[mine.key] = tuple(added), tuple(dropped)
        if mine.key in targets:
            usable.add(mine.key)
    moves, alias_clashes = _moves(aliases, _aliases(there), usable, delete=delete)
    quotas, quota_clashes = (
        ({}, []) if filters else _limits(Quotas(source), Quotas(dest), delete=delete)
    )
    return SyncPlan(
        tuple(versions),
        tuple(restore),
        tags,
        moves,
        quotas,
        tuple(hide),
        (*clashes, *alias_clashes, *quota_clashes),
        tuple(purged),
        tuple(sorted(forgotten)),
        masks,
        tuple(filters),
        delete,
        _source=source,
        _dest=dest,
    )


# -- comparing ------------------------------------------------------------------------------------


def _rows(state: State, condition: Condition) -> Iterator[_Row]:
    """Every version, by owner, name and number, and whether the condition wants it."""
    if state.is_empty:
        return
    cursor = state.connection.cursor()
    try:
        cursor.execute(
            f"SELECT {', '.join(_COLUMNS)}, ({condition.sql}) AS wanted FROM concepts "
            "ORDER BY owner, name, version",
            list(condition.values),
        )
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            for row in rows:
                yield _Row(*row)
    finally:
        cursor.close()


def _side_by_side(
    mine: Iterator[_Row], theirs: Iterator[_Row]
) -> Iterator[tuple[_Row | None, _Row | None]]:
    """The versions of two registries in order, those of one key together."""
    left, right = next(mine, None), next(theirs, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.key < right.key):
            yield left, None
            left = next(mine, None)
        elif left is None or right.key < left.key:
            yield None, right
            right = next(theirs, None)
        else:
            yield left, right
            left, right = next(mine, None), next(theirs, None)


def _difference(mine: _Row, theirs: _Row) -> str:
    names = ("mask", "base", "scope", "token", "class noun")
    for name, one, other in zip(names, mine.content, theirs.content, strict=True):
        if one != other:
            return f"{name} {_short(one)} in the source, {_short(other)} in the destination"
    raise AssertionError("they are the same")


def _short(value: object) -> str:
    return "none" if value is None else str(value)[:19]


def _is_purged(state: State, session: Session, key: Key) -> bool:
    if not state.meta.purged:
        return False
    owner, name, version = key
    return version <= state.meta.purged.get(name_digest(session.registry_id, owner, name), 0)


def _aliases(state: State) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(owner, name, alias) -> (generation, version)."""
    if state.is_empty:
        return {}
    cursor = state.connection.cursor()
    try:
        rows = cursor.execute(
            "SELECT owner, name, alias, generation, version FROM aliases"
        ).fetchall()
    finally:
        cursor.close()
    return {(owner, name, alias): (made, to) for owner, name, alias, made, to in rows}


def _moves(
    mine: Mapping[tuple[str, str, str], tuple[int, int]],
    theirs: Mapping[tuple[str, str, str], tuple[int, int]],
    usable: set[Key],
    *,
    delete: bool,
) -> tuple[dict[tuple[str, str, str], tuple[int, int]], list[Clash]]:
    """The moves of aliases that the destination lacks; and those it has made itself.

    A move has a number. As long as the destination only takes over the source's moves it is never
    ahead of them, so whoever is ahead, or level with another target, has moved it there.
    """
    moves, clashes = {}, []
    for (owner, name, alias), (made, to) in sorted(mine.items()):
        if (owner, name, to) not in usable:
            continue
        has, stands = theirs.get((owner, name, alias), (0, 0))
        if stands == to:
            continue
        if made > has or delete:
            moves[owner, name, alias] = (max(made, has + 1), to)
        else:
            why = f"version {to} in the source, moved to version {stands} in the destination"
            clashes.append(Clash(f"{owner}/{name}:{alias}", why))
    return moves, clashes


def _limits(
    mine: Quotas, theirs: Quotas, *, delete: bool
) -> tuple[dict[str, tuple[int, Quota]], list[Clash]]:
    """As `_moves`, for quotas."""
    limits, clashes = {}, []
    there = theirs.generations()
    for owner, (made, quota) in mine.generations().items():
        has, stands = there.get(owner, (0, None))
        if stands == quota:
            continue
        if made > has or delete:
            limits[owner] = (max(made, has + 1), quota)
        else:
            clashes.append(Clash(f"quota of {owner}", "it was set in the destination too"))
    return limits, clashes


# -- copying --------------------------------------------------------------------------------------


class _Copying:
    """One run: what is in the plan and still to be done."""

    def __init__(self, plan: SyncPlan, now: SyncPlan) -> None:
        self._source, self._dest = now._source, now._dest
        self._now = now
        self._versions = _both(plan.versions, now.versions)
        self._restore = _both(plan.restore, now.restore)
        self._tags = [key for key in plan.tags if plan.tags[key] == now.tags.get(key)]
        self._aliases = [
            each for each in plan.aliases if plan.aliases[each] == now.aliases.get(each)
        ]
        self._quotas = [each for each in plan.quotas if plan.quotas[each] == now.quotas.get(each)]
        self._hide = _both(plan.hide, now.hide)
        self._bases = Bases(self._source.store), Bases(self._dest.store)
        self._clashes = list(now.clashes)
        self._problems: list[Clash] = []
        self._purged = list(now.purged)
        self._masks = self._bytes = 0
        self._done = 0
        self._total = len(self._versions) + len(self._restore) + len(self._tags)
        self._total += len(self._aliases) + len(self._quotas) + len(self._hide)

    def run(self) -> SyncResult:
        """Do it all, in the order that the first lines of this file give."""
        copied = sum(map(self._copy, self._batches(self._versions)))
        restored = sum(map(self._show, self._batches(self._restore)))
        for start in range(0, len(self._tags), _PER_COMMIT):
            some = self._tags[start : start + _PER_COMMIT]
            self._commit([Tagged(*key, *self._now.tags[key]) for key in some])
            self._step(len(some))
        moved = self._move()
        limits = Quotas(self._dest)
        for owner in self._quotas:
            generation, quota = self._now.quotas[owner]
            limits.put(owner, quota.concepts, quota.bytes, above=generation - 1, verb=VERB)
            self._step(1)
        for start in range(0, len(self._hide), _PER_COMMIT):
            hidden = self._hide[start : start + _PER_COMMIT]
            self._commit([Removed(*key) for key in hidden])
            self._step(len(hidden))
        return SyncResult(
            versions=copied,
            masks=self._masks,
            copied_bytes=self._bytes,
            restored=restored,
            tagged=len(self._tags),
            aliases=moved,
            quotas=len(self._quotas),
            hidden=len(self._hide),
            clashes=tuple(self._clashes),
            purged=tuple(self._purged),
            purged_at_source=self._now.purged_at_source,
            problems=tuple(self._problems),
        )

    def _step(self, count: int) -> None:
        self._done += count
        self._dest.tell("copying", self._done, self._total)

    def _commit(self, events: Sequence[Event]) -> None:
        self._dest.commit(events, verb=VERB)

    def _batches(self, wanted: Sequence[Key]) -> Iterator[list[Version]]:
        """The source's versions of some keys, few enough at once for one commit."""
        batch: list[Version] = []
        size = 0
        for start in range(0, len(wanted), _PER_COMMIT):
            some = wanted[start : start + _PER_COMMIT]
            condition, params = any_of(("owner", "name", "version"), some)
            for version in versions_where(
                self._source.state(), condition, params, rest="ORDER BY owner, name, version"
            ):
                if batch and (
                    len(batch) == _PER_COMMIT or size + version.record.blob_bytes > _COMMIT_BYTES
                ):
                    yield batch
                    batch, size = [], 0
                batch.append(version)
                size += version.record.blob_bytes
        if batch:
            yield batch

    # -- versions ---------------------------------------------------------------------------------

    def _copy(self, batch: list[Version]) -> int:
        """Copy some versions, and show them in one commit; how many."""
        since = Stopwatch()
        records = self._read_records([each for each in batch if self._has_base(each.record)])
        by_place = {each.record.place: each for each in batch}
        # What was pruned has no mask, but keeps its number.
        masked = [key for key in records if not by_place[key].pruned]
        lost = self._put_masks({records[key][0].blob_digest for key in masked})
        self._put_previews(record for record, _ in records.values())
        for key in masked:
            digest = records[key][0].blob_digest
            if digest in lost:
                self._problems.append(Clash(records.pop(key)[0].ref, f"its mask {lost[digest]}"))
        there = self._claim(records)
        left = self._without_purged(there)
        if left:
            segment = self._segment([by_place[key] for key in left], there)
            commit, data = encode_segment(segment)
            self._dest.publish(segment, commit, data)
            used = {there[place].blob_digest for place in left if not by_place[place].pruned}
            if self._dest.notices.settle(used, self._put_again, since):
                left = self._take_back_purged(left, there, by_place, commit)
        self._step(len(batch))
        return len(left)

    def _has_base(self, record: Record) -> bool:
        """Make sure that the destination knows a version's base model."""
        mine, theirs = self._bases
        try:
            theirs.ensure(mine.get(record.base))
        except (BaseModelMismatchError, CorruptDataError, NotFoundError) as error:
            self._problems.append(Clash(record.ref, f"its base model: {error}"))
            return False
        return True

    def _read_records(self, batch: Sequence[Version]) -> dict[Key, tuple[Record, bytes]]:
        """Version -> its record, and the object as the source holds it."""
        found: dict[Key, tuple[Record, bytes]] = {}
        by_key = {keys.version_key(*each.record.place): each.record for each in batch}
        for key, data in self._source.store.get_many(by_key):
            said = by_key[key]
            if data is None:  # lost, so the catalogue is what is known of it
                data = claims.encode_record(said)
            try:
                found[said.place] = claims.decode_record(key, data), data
            except CorruptDataError as error:
                self._problems.append(Clash(said.ref, str(error)))
        return found

    def _put_masks(self, digests: Iterable[Digest]) -> dict[Digest, str]:
        """Copy the masks that the destination lacks; digest -> what is wrong, of the others."""
        wanted = {keys.mask_key(digest): digest for digest in sorted(digests)}
        wrong, count, size = self._put(wanted)
        self._masks += count
        self._bytes += size
        return wrong

    def _put_previews(self, records: Iterable[Record]) -> None:
        digests = {digest: record.ref for record in records for digest in record.previews}
        wrong, _, _ = self._put({keys.preview_key(digest): digest for digest in digests})
        for digest, why in wrong.items():
            self._problems.append(Clash(digests[digest], f"a picture of it {why}"))

    def _put(self, wanted: Mapping[str, Digest]) -> tuple[dict[Digest, str], int, int]:
        """Copy objects that are named by their digests.

        Returns:
            (digest -> what is wrong with it, objects copied, their bytes).
        """
        source, dest = self._source.store, self._dest.store
        missing = [
            key
            for key, entry in zip(wanted, dest.each(dest.head, wanted), strict=True)
            if entry is None
        ]
        wrong: dict[Digest, str] = {}
        count = size = 0

        def objects() -> Iterator[tuple[str, bytes]]:
            nonlocal count, size
            for key, data in source.get_many(missing):
                digest = wanted[key]
                if data is not None and sha256_bytes(data) != digest:
                    with contextlib.suppress(NotFoundError):
                        data = source.get(key)  # a bit may have flipped on the way
                if data is None:
                    wrong[digest] = "is not in the source"
                elif sha256_bytes(data) != digest:
                    wrong[digest] = "is damaged in the source"
                else:
                    count, size = count + 1, size + len(data)
                    yield key, data

        for key in dest.put_many(objects()):
            wrong[wanted[key]] = "is damaged in the destination"
        return wrong, count, size

    def _put_again(self, gone: list[Digest]) -> None:
        """Copy masks that a prune or purge took away in the destination meanwhile."""
        wrong = self._put_masks(gone)
        for digest, why in wrong.items():
            raise NotFoundError(f"mask {digest} was deleted meanwhile, and {why}. Sync again")

    def _claim(self, records: Mapping[Key, tuple[Record, bytes]]) -> dict[Key, Record]:
        """Claim the numbers in the destination; the records of those that are this version's."""
        store = self._dest.store
        by_key = {keys.version_key(*place): place for place in records}
        claimed = {place: record for place, (record, _) in records.items()}
        taken = store.put_many((key, records[place][1]) for key, place in by_key.items())
        for key in taken:
            place = by_key[key]
            try:
                other: Record | None = claims.decode_record(key, store.get(key))
            except (CorruptDataError, NotFoundError):
                other = None
            if other != claimed[place]:
                ref = claimed.pop(place).ref
                self._clashes.append(Clash(ref, "its number was claimed in the destination"))
        return claimed

    def _without_purged(self, records: Mapping[Key, Record]) -> list[Key]:
        """The versions whose numbers the destination has not purged.

        Looked for after the claim, as a push does: a purge says so before it takes records away.
        """
        store, registry_id = self._dest.store, self._dest.registry_id
        names = sorted({f"{owner}/{name}" for owner, name, _ in records})

        def highest(path: str) -> int:
            return claims.highest_purged(store, registry_id, *path.split("/"))

        purged = dict(zip(names, store.each(highest, names), strict=True))
        gone = [key for key in records if key[2] <= purged[f"{key[0]}/{key[1]}"]]
        store.delete_many(keys.version_key(*key) for key in gone)  # they name who was purged
        self._purged += [records[key].ref for key in gone]
        return sorted(records.keys() - set(gone))

    def _segment(self, versions: Sequence[Version], records: Mapping[Key, Record]) -> Segment:
        """The commit that shows some versions, as they are in the source now."""
        stamp = self._dest.clock.next()
        events: list[Event] = []
        pruned = []
        for version in versions:
            key = version.record.place
            record = records[key]
            events.append(Pushed(record.without_history()))
            added = sorted(set(version.tags) - set(record.tags))
            dropped = sorted(set(record.tags) - set(version.tags))
            if added or dropped:
                events.append(Tagged(*key, tuple(added), tuple(dropped)))
            if version.removed:
                events.append(Removed(*key))
            if version.pruned:
                pruned.append((*key, stamp))
        if pruned:
            events.append(Condemned(tuple(pruned)))
        return Segment(stamp, tuple(events), actor(), VERB)

    def _take_back_purged(
        self,
        left: list[Key],
        records: Mapping[Key, Record],
        by_place: Mapping[Key, Version],
        commit: str,
    ) -> list[Key]:
        """Commit again without what was purged at the same moment; what is left."""
        still = self._without_purged({place: records[place] for place in left})
        if len(still) < len(left):
            if still:
                segment = self._segment([by_place[place] for place in still], records)
                self._dest.publish(segment, *encode_segment(segment))
            self._dest.store.delete(commit)  # it names who was purged
        return still

    # -- changes ----------------------------------------------------------------------------------

    def _show(self, batch: list[Version]) -> int:
        """Show again what the destination hides and the source has in use; how many."""
        since = Stopwatch()
        digests = {each.record.blob_digest for each in batch}
        lost = self._put_masks(digests)
        good = []
        for each in batch:
            why = lost.get(each.record.blob_digest)
            if why is None:
                good.append(each.record)
            else:
                self._problems.append(Clash(each.record.ref, f"its mask {why}"))
        if good:
            self._commit([Restored(*record.place) for record in good])
            used = {record.blob_digest for record in good}
            self._dest.notices.settle(used, self._put_again, since)
        self._step(len(batch))
        return len(good)

    def _move(self) -> int:
        """Take over moves of aliases to versions that are there now; how many."""
        state = self._dest.fresh_now()
        moved = 0
        for start in range(0, len(self._aliases), _PER_COMMIT):
            some = self._aliases[start : start + _PER_COMMIT]
            events = {what: self._aliased(what) for what in some}
            condition, params = any_of(
                ("owner", "name", "version"), sorted({each.key for each in events.values()})
            )
            # Versions that could not be copied were reported.
            known = {each.record.place for each in versions_where(state, condition, params)}
            events = {what: each for what, each in events.items() if each.key in known}
            by_key = {keys.alias_key(*what, each.generation): what for what, each in events.items()}
            taken = self._dest.store.put_many(
                (key, claims.encode_alias(events[what])) for key, what in by_key.items()
            )
            for key in taken:
                # A run that was broken off here has claimed it already.
                what = by_key[key]
                if claims.decode_alias(key, self._dest.store.get(key)) != events[what]:
                    ref = "{}/{}:{}".format(*what)
                    self._clashes.append(Clash(ref, "it was moved in the destination meanwhile"))
                    del events[what]
            if events:
                self._commit(list(events.values()))
            moved += len(events)
            self._step(len(some))
        return moved

    def _aliased(self, what: tuple[str, str, str]) -> Aliased:
        owner, name, alias = what
        generation, version = self._now.aliases[what]
        return Aliased(owner, name, version, alias, generation)


def _both(planned: Iterable[T], now: Iterable[T]) -> list[T]:
    """What is in both, in the order of the first."""
    there = set(now)
    return [each for each in planned if each in there]
