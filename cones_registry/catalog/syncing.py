"""Sync: bring the local copy up to the log, with one listing and the objects that are new.

The listing shows the commits and the publications of manifests. A copy that has all commits goes on
by itself, whatever was folded. Where commits were folded and removed before it read them, it takes
the runs that have them; where the runs are most of the catalogue, or what it holds is not in the
chain any more (a backup was put back), it is made anew from the newest manifest.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from cones_registry.catalog import runs
from cones_registry.catalog.chain import (
    ANCESTORS,
    Chain,
    Manifest,
    Pointer,
    Position,
    parse_pointer,
)
from cones_registry.catalog.clock import Clock
from cones_registry.catalog.copy import Applied, LocalCopy, Meta, State
from cones_registry.catalog.keys import LOG
from cones_registry.catalog.rows import fold_lines, load_fold, purged_names
from cones_registry.catalog.runs import Run, Table
from cones_registry.catalog.segments import Segment, decode_segment, is_segment, parse_name
from cones_registry.catalog.tables import RUN_TABLES, TABLES
from cones_registry.digest import Digest
from cones_registry.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from cones_registry.store import Store

_ATTEMPTS: Final = 12
_LOOKS: Final = 3
"""Listings that must lack a commit before it counts as lost."""

READING: Final = "reading the catalogue"

_SHARE: Final = 4
"""Missed runs with more than this part of the catalogue's lines are no news: all is read anew."""


class _MovedError(Exception):
    """What the listing or a manifest showed was removed before it could be read."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class SyncReport:
    """What a sync did.

    Attributes:
        segments: commits that were applied one by one.
        snapshot: number of the manifest whose runs were read, None if none were.
        waiting: commits kept for the next sync, since what they speak of is not listed yet.
    """

    segments: int = 0
    snapshot: int | None = None
    waiting: int = 0
    purged_blobs: tuple[Digest, ...] = ()


@dataclass(frozen=True)
class _Listing:
    """What one listing of the log shows: stamp -> key of the commits, and the publications."""

    segments: dict[str, str]
    pointers: list[Pointer]


class Syncer:
    """Brings a `LocalCopy` up to the log of a `Store`."""

    def __init__(
        self,
        store: Store,
        copy: LocalCopy,
        registry_id: str,
        clock: Clock,
        tell: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.store = store
        self.copy = copy
        self.registry_id = registry_id
        self.clock = clock
        self.chain = Chain(store, registry_id, RUN_TABLES)
        self._tell = tell
        self._own: dict[str, Segment] = {}

    def remember(self, segment: Segment) -> None:
        """Keep a commit of this process, so that the next sync need not read it back."""
        if len(self._own) < 1000:
            self._own[segment.stamp] = segment

    def sync(self) -> tuple[SyncReport, State]:
        """Apply everything that is in the log now; what was done, and the state that has it.

        Raises:
            CorruptDataError: a segment, manifest or run is damaged.
            StoreUnavailableError: the store does not answer, or listings and objects do not agree.
        """
        moved = ""
        for attempt in range(_ATTEMPTS):
            try:
                listed = self._listed()
                state = self.copy.state()
                if state is not None and self._is_current(state, listed):
                    return SyncReport(), state
                with self.copy.exclusive():
                    return self._apply(listed, self.copy.state())
            except _MovedError as error:
                moved = error.key
                time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
        if moved.startswith(runs.PREFIX):
            raise CorruptDataError(
                f"{moved} is lost: the newest manifest in {self.store.url} names it, and it is not "
                "there. To make the catalogue again: cones check --rebuild"
            )
        raise StoreUnavailableError(
            f"the log in {self.store.url} lists objects that cannot be read, {_ATTEMPTS} times "
            "over. If this lasts, objects were removed by hand: run `cones check`"
        )

    def _listed(self) -> _Listing:
        segments, pointers = {}, []
        for entry in self.store.list(LOG):
            pointer = parse_pointer(entry.key)
            if pointer is not None:
                pointers.append(pointer)
            elif is_segment(entry.key):
                segments[parse_name(entry.key)[0]] = entry.key
        return _Listing(segments, pointers)

    def _is_current(self, state: State, listed: _Listing) -> bool:
        """Whether the listing shows nothing that the state has not, and lacks nothing it has."""
        position = state.meta.position
        newest = max((pointer.position for pointer in listed.pointers), default=None)
        return (
            (newest == position if newest else not position.number)
            and listed.segments.keys() <= state.applied.keys()
            and not self._missing(state, listed)
        )

    @staticmethod
    def _missing(state: State, listed: _Listing) -> set[str]:
        """Commits that the state has, that nobody folded as far as it knows, and that are gone."""
        return {
            stamp
            for stamp, (_, folded) in state.applied.items()
            if not folded and stamp not in listed.segments
        }

    # -- where the copy stands --------------------------------------------------------------------

    def _apply(self, listed: _Listing, state: State | None) -> tuple[SyncReport, State]:
        known = set(state.meta.purged_blobs) if state else set()
        before = state
        # What the state was made of need not be read again.
        positions = {pointer.position for pointer in listed.pointers}
        newest = None
        if state is None or max(positions, default=Position()) != state.meta.position:
            newest = self.chain.newest(positions)
        if state is not None:
            state = self._moved_up(state, newest, listed)
        read, folded = None, dict[str, int]()
        if state is None:
            newest = newest or self._unpublished()
            if newest is not None:
                state, read = self._from_runs(newest), newest.position.number
        elif newest is not None and newest.position > state.meta.position:
            state, was_read, folded = self._caught_up(state, newest, listed)
            read = newest.position.number if was_read else None
        applied = state.applied if state else {}
        new = [key for stamp, key in listed.segments.items() if stamp not in applied]
        if state is not None and state is before and not new:
            return SyncReport(), state
        segments = list(self._read(new))
        latest = max(
            [*listed.segments, *(pointer.stamp for pointer in listed.pointers)], default=""
        )
        if latest:
            self.clock.observe(latest)
        report, state = self._fold(state, segments, listed, latest, folded)
        for stamp in listed.segments:
            self._own.pop(stamp, None)
        purged = tuple(sorted(set(state.meta.purged_blobs) - known))
        return dataclasses.replace(report, snapshot=read, purged_blobs=purged), state

    def _unpublished(self) -> Manifest | None:
        """The newest manifest that is there, if the log lost its publications or has none yet."""
        for number in reversed(self.chain.numbers()):
            found = self.chain.read(number)
            if found and self.chain.is_sound(found) and self.chain.has_parts(found.parts()):
                return found
        return None

    def _moved_up(self, state: State, newest: Manifest | None, listed: _Listing) -> State | None:
        """The state, None if what it holds is not in the chain.

        A listing may lag, so what it lacks is looked for several times.
        """
        position = state.meta.position
        if newest is not None and newest.position > position:
            if position.number and not newest.descends_from(position):
                return None
            if not position.number and len(newest.ancestors) == ANCESTORS:
                return None  # what it lacks of older ones nobody can tell
        elif (
            position.number
            and position not in {pointer.position for pointer in listed.pointers}
            and self.chain.read_position(position) is None
        ):
            return None
        missing = self._missing(state, listed)
        folded = self._folded_after(state, newest) if missing and newest else {}
        for _ in range(_LOOKS):
            missing -= folded.keys()
            if not missing:
                return state
            missing -= self._listed().segments.keys()
        return None

    def _folded_after(self, state: State, newest: Manifest) -> dict[str, int]:
        """Stamp -> number of the manifest that folded it, of those after the state's."""
        return {
            stamp: manifest.position.number
            for manifest in self.chain.between(state.meta.position.number, newest)
            for stamp in manifest.folded
        }

    def _caught_up(
        self, state: State, newest: Manifest, listed: _Listing
    ) -> tuple[State, bool, dict[str, int]]:
        """The state moved up to a manifest; whether runs were read for that; and of the commits
        that are still to be read, which manifest folded them."""
        number = state.meta.position.number
        between = self.chain.between(number, newest)
        folded = {
            stamp: manifest.position.number for manifest in between for stamp in manifest.folded
        }
        expected = [each for each, _ in newest.ancestors if each > number]
        is_whole = len(between) == len(expected) + 1
        lacks = [
            stamp for stamp in folded if stamp not in state.applied and stamp not in listed.segments
        ]
        meta = dataclasses.replace(state.meta, position=newest.position)
        applied: Applied = {
            stamp: (sync, by or folded.get(stamp, 0))
            for stamp, (sync, by) in state.applied.items()
            if stamp in listed.segments or not (by or stamp in folded)
        }
        if is_whole and not lacks:
            return dataclasses.replace(state, meta=meta, applied=applied), False, folded
        missed = {
            name: [run for run in newest.tables.get(name, ()) if run.last > number]
            for name in TABLES
        }
        rows = sum(run.rows for found in missed.values() for run in found)
        if rows * _SHARE > _row_count(newest):
            return self._from_runs(newest), True, {}
        # What was applied and is not folded yet is applied again, upon lines that lack it.
        applied = {stamp: each for stamp, each in applied.items() if each[1]}
        applied |= {stamp: (0, by) for stamp, by in folded.items() if stamp in listed.segments}
        meta = self._meta_of(newest, state.meta.sequence + 1)
        news = {
            name: pa.concat_tables(
                [
                    *runs.merge(
                        TABLES[name],
                        [self._lines(TABLES[name], run) for run in found],
                        keep_gone=True,
                    ),
                    TABLES[name].lines.empty_table(),
                ]
            )
            for name, found in missed.items()
        }
        without = [
            each
            for each in purged_names(state, load_fold(state, self.registry_id, meta, []))
            if meta.purged != state.meta.purged
        ]
        return self.copy.build(state, news, meta, applied, without=without), True, {}

    def _from_runs(self, manifest: Manifest) -> State:
        """The state of a manifest, made of its runs alone."""
        folded: Applied = {
            stamp: (0, each.position.number)
            for each in self.chain.between(manifest.since - 1, manifest)
            for stamp in each.folded
        }
        found: dict[str, tuple[Run, ...]] = {name: () for name in TABLES} | dict(manifest.tables)
        total = sum(len(run.parts) for name in TABLES for run in found[name])
        read = itertools.count(1)

        def tell() -> None:
            self._tell(READING, next(read), total)

        sources = {
            name: runs.merge(
                table, [self._lines(table, run, tell) for run in found[name]], keep_gone=False
            )
            for name, table in TABLES.items()
        }
        return self.copy.build_from(
            sources, self._meta_of(manifest, 0), folded, _row_count(manifest)
        )

    def _lines(
        self, table: Table, run: Run, tell: Callable[[], None] = lambda: None
    ) -> Iterator[pa.Table]:
        def fetch(part: runs.Part) -> bytes:
            try:
                data = self.store.get(part.key)
            except NotFoundError:
                raise _MovedError(part.key) from None
            tell()
            return data

        return runs.read_run(table, run, fetch)

    @staticmethod
    def _meta_of(manifest: Manifest, sequence: int) -> Meta:
        return meta_from(manifest.rest, manifest, sequence)

    # -- commits ----------------------------------------------------------------------------------

    def _read(self, keys: Iterable[str]) -> Iterable[Segment]:
        wanted = []
        for key in sorted(keys):
            own = self._own.get(parse_name(key)[0])
            if own is not None:
                yield own
            else:
                wanted.append(key)
        for done, (key, data) in enumerate(self.store.get_many(wanted), 1):
            if data is None:
                raise _MovedError(key)
            self._tell(READING, done, len(wanted))
            try:
                yield decode_segment(key, data)
            except CorruptDataError:
                # Once more: a bit may have flipped on the way, not in the store.
                yield decode_segment(key, self.store.get(key))

    def _fold(
        self,
        state: State | None,
        segments: list[Segment],
        listed: _Listing,
        latest: str,
        folded: Mapping[str, int],
    ) -> tuple[SyncReport, State]:
        meta = dataclasses.replace(state.meta) if state else Meta()
        meta.sequence += 1
        fold = load_fold(state, self.registry_id, meta, segments)
        waiting = fold.apply_all(segments)
        late = {segment.stamp for segment in waiting}
        applied: Applied = {
            stamp: each
            for stamp, each in (state.applied if state else {}).items()
            if stamp in listed.segments or not each[1]
        }
        applied |= {
            segment.stamp: (meta.sequence, folded.get(segment.stamp, 0))
            for segment in segments
            if segment.stamp not in late
        }
        meta.latest = max(meta.latest, latest)
        meta.condemned, meta.purged = fold.condemned, fold.purged
        meta.purged_blobs = sorted({*meta.purged_blobs, *fold.purged_blobs})
        without = purged_names(state, fold) if state and fold.purges else ()
        made = self.copy.build(state, fold_lines(fold), meta, applied, without=without)
        return SyncReport(len(segments) - len(waiting), None, len(waiting)), made


def meta_from(rest: Mapping[str, Any], manifest: Manifest, sequence: int) -> Meta:
    """What syncing knows, of a manifest."""
    return Meta.from_json(
        {
            **rest,
            "position": dataclasses.asdict(manifest.position),
            "sequence": sequence,
            "latest": manifest.latest,
        }
    )


def rest_of(meta: Meta) -> dict[str, Any]:
    """What a manifest says of syncing besides its tables."""
    left_out = ("position", "sequence", "latest")
    return {name: value for name, value in meta.to_json().items() if name not in left_out}


def _row_count(manifest: Manifest) -> int:
    """Lines of the tables that the local copy holds."""
    return sum(run.rows for name in TABLES for run in manifest.tables.get(name, ()))
