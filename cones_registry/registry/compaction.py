"""Compaction: fold the log into a new manifest. Safe anywhere, at any time, by several at once.

A fold writes the lines that the new commits changed as a small run, merges runs in tiers, and
creates the next manifest exclusively: of several compactors one wins, the others' runs are removed,
and no manifest ever lacks what one before it had. What was folded is removed only when the
publication is older than the grace, so a reader has always one or the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cones_registry.catalog import chain, runs, segments
from cones_registry.catalog.chain import Manifest
from cones_registry.catalog.copy import SEQUENCE, State
from cones_registry.catalog.events import Purged as PurgedEvent
from cones_registry.catalog.fold import name_digest
from cones_registry.catalog.history import happenings, history_table
from cones_registry.catalog.keys import LOG
from cones_registry.catalog.runs import Part, Run, Table
from cones_registry.catalog.syncing import rest_of
from cones_registry.catalog.tables import RUN_TABLES, TABLES
from cones_registry.digest import Digest
from cones_registry.errors import NotFoundError, UsageError
from cones_registry.registry.session import Session
from cones_registry.store import Entry, Store

DEFAULT_GRACE: Final = 3600.0
"""Seconds: longer than clocks differ, and than a reader takes from listing to last object."""

_BATCH_ROWS: Final = 16_384

Purged = Sequence[tuple[str, str, int]]
"""(owner, name, highest version) of concepts that are gone for good."""


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        manifest: number of the manifest it made, None if there was nothing to fold, or another
            compactor was first.
        rows: versions in the catalogue then.
        written_bytes: of the runs it wrote, merged ones included.
        folded: segments it folded.
        removed: objects it removed: segments folded before the grace, older manifests and runs.
        freed_bytes: bytes of those.
    """

    manifest: int | None
    rows: int
    written_bytes: int
    folded: int
    removed: int
    freed_bytes: int


def compact(
    session: Session, *, grace: float, minimum: int, purged: Purged = (), force: bool = False
) -> CompactReport:
    """Fold what is in the log, then remove what was folded longer than `grace` seconds ago.

    Args:
        session: of the registry.
        grace: seconds.
        minimum: segments below which nothing is folded.
        purged: what a purge in the log took away, if the caller knows: else every run is read.
        force: make a manifest even if there is nothing new.
    """
    session.require_writable()
    check_grace(grace)
    made: tuple[int | None, int, int, int] = (None, 0, 0, 0)
    # Another compactor may merge these runs and remove them meanwhile.
    with contextlib.suppress(NotFoundError):
        made = _Folding(session, purged).fold(0 if force else max(1, minimum))
    removed, freed = clean(session, grace)
    return CompactReport(*made, removed, freed)


def check_grace(grace: float) -> None:
    """`UsageError` unless `grace` is a number of seconds."""
    if not isinstance(grace, int | float) or not 0 <= grace < 10**10:
        raise UsageError(f"grace is {grace!r}; expected seconds, 0 or more")


class _Folding:
    """One attempt to make the next manifest."""

    def __init__(self, session: Session, purged: Purged) -> None:
        self._session = session
        self._store = session.store
        self._chain = session.chain
        self._purged = purged
        self._written: list[Part] = []

    def fold(self, minimum: int) -> tuple[int | None, int, int, int]:
        """(number, rows, bytes written, segments folded) of a new manifest."""
        numbers = self._chain.numbers()
        state = self._published(numbers)
        position = state.meta.position
        before = self._chain.read_position(position) if position.number else None
        if position.number and before is None:
            return None, 0, 0, 0  # a backup was put back since it was read
        if before is not None:
            before.require_known_columns(RUN_TABLES)
        new = sorted(stamp for stamp, (_, by) in state.applied.items() if not by)
        if len(new) < minimum:
            return None, 0, 0, 0
        number = max([position.number, *numbers]) + 1
        # A number above ours that is not in the chain is an orphan: our past is another one.
        is_own = before is not None and number == position.number + 1
        epoch = position.epoch if is_own else self._session.clock.next()
        tables = dict(before.tables) if before else {}
        # The state lets go of folded commits when they are listed no more.
        kept = [by for _, by in state.applied.values() if by]
        try:
            tables = {
                name: self._next_runs(
                    table,
                    number,
                    tables.get(name, ()),
                    state,
                    before,
                    _news(table, state) if name in TABLES else self._happened(new, state),
                )
                for name, table in RUN_TABLES.items()
            }
            data = chain.encode_manifest(
                number,
                epoch,
                self._session.registry_id,
                before,
                since=min([number, *kept]),
                folded=new,
                latest=state.meta.latest,
                tables=tables,
                rest=rest_of(state.meta),
            )
            made = self._chain.create(number, data)
        except BaseException:
            self._undo()
            raise
        if made is None:
            self._undo()
            return None, 0, 0, 0
        if not self._chain.has_parts(self._written):
            # A backup was put back while this was written: the manifest names what went with it.
            # It stays an orphan, since it is not published.
            return None, 0, 0, 0
        self._chain.publish(self._session.clock.next(), made)
        self._session.expire()
        return number, _count(state), sum(part.size for part in self._written), len(new)

    def _published(self, numbers: list[int]) -> State:
        """The state of now, of which every manifest is published: a maker may have been killed
        before he could say so."""
        state = self._session.fresh_now()
        position = state.meta.position if state.meta.position.number else None
        found = self._chain.read(numbers[-1]) if numbers else None
        if found is None or (found.predecessor != position and found.position != position):
            return state
        entries = self._store.list(LOG)
        if any(
            pointer.position == found.position
            for entry in entries
            if (pointer := chain.parse_pointer(entry.key))
        ):
            return state
        if not self._chain.has_parts(found.parts()):
            return state
        self._chain.publish(self._session.clock.next(), found)
        return self._session.fresh_now()

    def _fetch(self, part: Part) -> bytes:
        return self._store.get(part.key)

    def _undo(self) -> None:
        """Remove the runs of this attempt; their digests are nobody else's."""
        with contextlib.suppress(Exception):
            self._store.delete_many(part.key for part in self._written)

    def _next_runs(
        self,
        table: Table,
        number: int,
        found: tuple[Run, ...],
        state: State,
        before: Manifest | None,
        lines_made: Iterable[pa.Table],
    ) -> tuple[Run, ...]:
        """The runs of a table with the news, merged in tiers."""
        found = self._without_purged(table, found, state, before)
        news = self._write(table, lines_made, number, number)
        found = (news, *found) if news else found
        count = 0
        for merged in runs.tiers([run.rows for run in found]):
            count = max(0, count - 1) + merged
        if count > 1:
            some = found[:count]
            lines = runs.merge(
                table,
                [runs.read_run(table, run, self._fetch, to_rewrite=True) for run in some],
                keep_gone=count < len(found),
            )
            one = self._write(table, lines, some[-1].first, some[0].last)
            found = (one, *found[count:]) if one else found[count:]
        return found

    def _happened(self, stamps: Sequence[str], state: State) -> Iterator[pa.Table]:
        """What new commits say of the history, without what they say of who was purged since."""
        wanted = set(stamps)
        listed = segments.commit_keys(self._store)
        found = [
            segments.decode_segment(key, data)
            for key, data in self._store.get_many(key for key in listed if _stamp_of(key) in wanted)
            if data is not None
        ]
        purges = {
            digest: segment.stamp
            for segment in sorted(found, key=lambda each: each.stamp)
            for event in segment.events
            if isinstance(event, PurgedEvent)
            for digest in event.names
        }
        lines = []
        for line in happenings(found):
            digest = name_digest(self._session.registry_id, line.owner, line.name)
            is_old = line.version is not None and line.version <= state.meta.purged.get(digest, 0)
            if line.owner and (is_old or line.stamp < purges.get(digest, "")):
                continue
            lines.append(line)
        if lines:
            yield RUN_TABLES["history"].as_lines(history_table(lines))

    def _write(self, table: Table, lines: Iterable[pa.Table], first: int, last: int) -> Run | None:
        parts = runs.write_parts(self._store, table, lines)
        self._written += parts
        return Run(first, last, parts) if parts else None

    def _without_purged(
        self, table: Table, found: tuple[Run, ...], state: State, before: Manifest | None
    ) -> tuple[Run, ...]:
        """The runs, made again where they hold what the new commits purge."""
        had: Mapping[Digest, int] = before.rest.get("purged", {}) if before else {}
        purged = {
            digest: highest
            for digest, highest in state.meta.purged.items()
            if had.get(digest, -1) < highest
        }
        if not purged:
            return found
        known = {
            name_digest(self._session.registry_id, owner, name): (owner, name)
            for owner, name, _ in self._purged
        }
        names = [known[digest] for digest in purged] if purged.keys() <= known.keys() else None
        kept = []
        for run in found:
            parts: list[Part] = []
            for part in run.parts:
                if names is None or any(part.first[:2] <= each <= part.last[:2] for each in names):
                    parts += self._part_without(table, part, purged)
                else:
                    parts.append(part)
            if parts:
                kept.append(Run(run.first, run.last, tuple(parts)))
        return tuple(kept)

    def _part_without(
        self, table: Table, part: Part, purged: Mapping[Digest, int]
    ) -> Sequence[Part]:
        groups = list(runs.read_part(table, part, self._fetch(part), to_rewrite=True))
        left = [_not_purged(lines, self._session.registry_id, purged) for lines in groups]
        if sum(map(len, left)) == part.rows:
            return [part]
        made = runs.write_parts(self._store, table, left)
        self._written += made
        return made


def _count(state: State) -> int:
    cursor = state.connection.cursor()
    try:
        (count,) = cursor.execute("SELECT count(*) FROM concepts").fetchone()
        return int(count)
    finally:
        cursor.close()


def _news(table: Table, state: State) -> Iterator[pa.Table]:
    """The lines that commits changed which no manifest has folded, in order."""
    new = [sync for sync, by in state.applied.values() if not by]
    if not new:
        return
    columns, order = ", ".join(table.schema.names), ", ".join(table.key)
    cursor = state.connection.cursor()
    try:
        reader = cursor.sql(
            f"SELECT {columns} FROM {table.name}_lines WHERE {SEQUENCE} >= {min(new)} "
            f"ORDER BY {order}"
        ).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            yield table.as_lines(pa.Table.from_batches([batch]))
    finally:
        cursor.close()


def _not_purged(lines: pa.Table, registry_id: str, purged: Mapping[Digest, int]) -> pa.Table:
    pairs = lines.select(["owner", "name"]).group_by(["owner", "name"]).aggregate([]).to_pylist()
    for pair in pairs:
        highest = purged.get(name_digest(registry_id, pair["owner"], pair["name"]))
        if highest is not None:
            its = pc.and_(
                pc.equal(lines["owner"], pair["owner"]), pc.equal(lines["name"], pair["name"])
            )
            # A line of the history may be of no one version: it goes with its owner.
            numbers = lines["version"].cast(pa.int64()).fill_null(0)
            old = pc.less_equal(numbers, pa.scalar(highest, pa.int64()))
            lines = lines.filter(pc.invert(pc.and_(its, old)))
    return lines


# -- removing what is superseded ------------------------------------------------------------------


def clean(session: Session, grace: float) -> tuple[int, int]:
    """Remove what a manifest published `grace` seconds ago makes superfluous; (objects, bytes)."""
    store, links = session.store, session.chain
    log = {entry.key: entry for entry in store.list(LOG)}
    pointers = {
        entry.key: each for entry in log.values() if (each := chain.parse_pointer(entry.key))
    }
    newest = links.newest(pointer.position for pointer in pointers.values())
    if newest is None:
        return 0, 0
    # With no grace at all nobody is waited for, whatever this clock says.
    before = time.time() - grace if grace else float("inf")
    old = max(
        (
            pointer.position
            for key, pointer in pointers.items()
            if log[key].modified <= before and newest.descends_from(pointer.position)
        ),
        default=None,
    )
    settled = links.read_position(old) if old else None
    if settled is None:
        return 0, 0
    folded = {stamp for each in links.between(settled.since - 1, settled) for stamp in each.folded}
    doomed = [
        entry for key, entry in log.items() if key not in pointers and _stamp_of(key) in folded
    ]
    old_pointers = [log[key] for key, each in pointers.items() if each.position < settled.position]
    # Stage by stage, since deletes of one stage run side by side: a kill between any two leaves
    # nothing that names what is gone.
    manifests, parts = _superseded(store, session, settled, newest, before)
    stages = (doomed, old_pointers, manifests, parts)
    for stage in stages:
        store.delete_many(entry.key for entry in stage)
    gone = [entry for stage in stages for entry in stage]
    return len(gone), sum(entry.size for entry in gone)


def _stamp_of(key: str) -> str:
    return key.removeprefix(LOG).partition(".")[0]


def _superseded(
    store: Store, session: Session, settled: Manifest, newest: Manifest, before: float
) -> tuple[list[Entry], list[Entry]]:
    """(manifests, parts) that no reader needs who began after `settled` was published."""
    listed = {entry.key: entry for entry in store.list(chain.PREFIX)}
    first = settled.predecessor.number if settled.predecessor else settled.position.number
    # Of the newest the one before it stays: without it a manifest does not count.
    numbers = [number for number in session.chain.numbers() if number < first]
    manifests = [listed[key] for key in map(chain.manifest_key, numbers) if key in listed]
    named: set[str] = set()
    for manifest in [*session.chain.between(settled.position.number, newest), settled]:
        named |= {part.key for part in manifest.parts()}
    superseded: set[str] = set()
    for number in [*numbers, first]:
        each = session.chain.read(number)
        superseded |= {part.key for part in each.parts()} if each else set()
    made = listed.get(chain.manifest_key(newest.position.number))
    parts = [
        entry
        for entry in runs.listed_parts(store)
        if entry.key not in named
        # What no manifest names may be a compactor's that is at work. Was it written before the
        # newest manifest, then its maker comes too late: that number is taken.
        and (entry.key in superseded or (made is not None and entry.modified < made.modified))
        and entry.modified <= before
    ]
    return manifests, parts
