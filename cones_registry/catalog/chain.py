"""The chain of manifests: which runs are the catalogue, and which commits are folded into them.

`catalog/<number>.json` is created exclusively and names its predecessor's digest, so of several
compactors one wins and the others plan again. `log/<stamp>.<digest>.<epoch>.<number>.pointer` is
the publication: its name says all there is, so that one listing of the log tells a reader what is
new. A manifest counts only while its predecessor lies there with the digest it names: one that a
stopped machine made of a past that a backup has replaced is an orphan. Who finds one starts a new
epoch, and of two manifests the one of the later epoch, then of the higher number, is the newer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ulid import ULID

from cones_registry.catalog.clock import parse_stamp
from cones_registry.catalog.documents import seal, unseal
from cones_registry.catalog.runs import Part, Run, Table
from cones_registry.catalog.tables import RUN_TABLES
from cones_registry.digest import Digest, parse_digest, sha256_bytes
from cones_registry.errors import CorruptDataError, NewerFormatError, NotFoundError, UsageError
from cones_registry.store import KeyExistsError, Store

PREFIX: Final = "catalog/"
POINTERS: Final = "log/"
ANCESTORS: Final = 256
"""Predecessors that a manifest names: a local copy further behind is made anew."""

MAX_RUNS: Final = 10_000
MAX_FOLDED: Final = 10_000_000
_MANIFEST: Final = re.compile(r"catalog/([0-9]{9})\.json", re.ASCII)
_POINTER: Final = re.compile(
    r"log/([0-9A-Z]{26})\.([0-9a-f]{64})\.([0-9A-Z]{26})\.([0-9]{9})\.pointer", re.ASCII
)
_SHORT: Final = 16
_REST: Final = frozenset(("condemned", "purged", "purged_blobs"))
_FIELDS: Final = frozenset(
    {
        *("number", "epoch", "registry", "predecessor", "ancestors", "since", "folded", "latest"),
        *("tables", "columns", "rest", "maker"),
    }
)


@dataclass(frozen=True, order=True)
class Position:
    """One manifest; later ones are greater.

    Attributes:
        epoch: ULID; a new one is started when a backup was put back.
        number: 1, 2, 3, …
        digest: of the manifest's bytes.
    """

    epoch: str = ""
    number: int = 0
    digest: Digest = ""


@dataclass(frozen=True)
class Manifest:
    """What the catalogue is, up to some commits.

    Attributes:
        position: which one it is.
        predecessor: position of the one before, None for the first of a registry.
        ancestors: (number, first hex digits of the digest) of those before, the newest first.
        since: lowest number whose folded commits may still be in the log.
        folded: stamps of the commits that this manifest folded and those before had not.
        latest: the latest stamp folded.
        tables: name of a table -> its runs, the newest first.
        rest: what else the fold knows, as JSON values.
        columns: name of a table -> columns that its runs may have.
    """

    position: Position
    predecessor: Position | None
    ancestors: tuple[tuple[int, str], ...]
    since: int
    folded: tuple[str, ...]
    latest: str
    tables: Mapping[str, tuple[Run, ...]]
    rest: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def require_known_columns(self, tables: Mapping[str, Table]) -> None:
        """``NewerFormatError`` if lines may have columns that this version does not know.

        A line replaces an older one whole, so a fold that does not know a column would lose it.
        """
        for name, table in tables.items():
            unknown = sorted({*self.columns.get(name, ())} - {*table.lines.names})
            if unknown:
                raise NewerFormatError.of(f"a column {unknown[0][:100]!a} of {name}")

    def descends_from(self, position: Position) -> bool:
        """Whether it is that manifest or came after it."""
        return self.position == position or (position.number, _short(position)) in self.ancestors

    def parts(self) -> list[Part]:
        """Every part of every run that it names."""
        return [part for runs in self.tables.values() for run in runs for part in run.parts]

    def ancestry(self) -> tuple[tuple[int, str], ...]:
        """`ancestors` of the manifest after this one."""
        return ((self.position.number, _short(self.position)), *self.ancestors)[:ANCESTORS]


def _short(position: Position) -> str:
    return position.digest.removeprefix("sha256:")[:_SHORT]


def manifest_key(number: int) -> str:
    """Key of a manifest."""
    return f"{PREFIX}{number:09d}.json"


def encode_manifest(
    number: int,
    epoch: str,
    registry_id: str,
    before: Manifest | None,
    *,
    since: int,
    folded: Iterable[str],
    latest: str,
    tables: Mapping[str, Iterable[Run]],
    rest: Mapping[str, Any],
) -> bytes:
    """Bytes of a manifest; no two are equal, whoever makes them."""
    predecessor = before and {
        "epoch": before.position.epoch,
        "number": before.position.number,
        "digest": before.position.digest,
    }
    return seal(
        "catalog",
        {
            "number": number,
            "epoch": epoch,
            "registry": registry_id,
            "predecessor": predecessor,
            "ancestors": [list(each) for each in before.ancestry()] if before else [],
            "since": since,
            "folded": sorted(folded),
            "latest": latest,
            "tables": {name: [run.to_json() for run in runs] for name, runs in tables.items()},
            "columns": {name: table.lines.names for name, table in RUN_TABLES.items()},
            "rest": dict(rest),
            "maker": str(ULID()),
        },
    )


def decode_manifest(
    number: int, data: bytes, registry_id: str, tables: Mapping[str, Table]
) -> Manifest:
    """A manifest, checked.

    Raises:
        NewerFormatError: it says something that this version does not know.
        CorruptDataError: it cannot be one, or it is another registry's.
    """
    source = manifest_key(number)
    body = unseal("catalog", data, source)
    unknown = sorted(body.keys() - _FIELDS)
    if unknown:
        raise NewerFormatError.of(f"a manifest with the field {unknown[0][:50]!a} ({source})")
    try:
        if body["number"] != number or body["registry"] != registry_id:
            raise CorruptDataError(
                f"{source} is manifest {body['number']!r} of registry {body['registry']!r}"
            )
        more = sorted(body["rest"].keys() - _REST)
        if more:
            raise NewerFormatError.of(f"a manifest with {more[0][:50]!a} in its rest ({source})")
        before = body["predecessor"]
        folded, ancestors = body["folded"], body["ancestors"]
        if len(folded) > MAX_FOLDED or len(ancestors) > ANCESTORS:
            raise CorruptDataError(f"{source} lists too much")
        return Manifest(
            Position(parse_stamp(body["epoch"]), number, sha256_bytes(data)),
            before
            and Position(
                parse_stamp(before["epoch"]), int(before["number"]), parse_digest(before["digest"])
            ),
            tuple((int(number), str(short)) for number, short in ancestors),
            int(body["since"]),
            tuple(parse_stamp(stamp) for stamp in folded),
            body["latest"] and parse_stamp(body["latest"]),
            {name: _runs(runs, name, tables) for name, runs in body["tables"].items()},
            dict(body["rest"]),
            {str(name): tuple(map(str, each)) for name, each in body.get("columns", {}).items()},
        )
    except CorruptDataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CorruptDataError(f"{source} is not a manifest: {error}") from error


def _runs(value: Any, name: str, tables: Mapping[str, Table]) -> tuple[Run, ...]:
    if name not in tables:
        raise NewerFormatError.of(f"a table {name[:100]!a}")
    if not isinstance(value, list) or len(value) > MAX_RUNS:
        raise CorruptDataError(f"table {name} has no list of runs, or too many")
    return tuple(Run.from_json(each, tables[name]) for each in value)


# -- in the store ---------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Pointer:
    """The publication of a manifest: the key in the log, and what it says."""

    position: Position
    key: str

    @property
    def stamp(self) -> str:
        """When it was published."""
        return self.key.removeprefix(POINTERS).partition(".")[0]


def pointer_key(stamp: str, position: Position) -> str:
    """Key of the publication of a manifest."""
    digest = position.digest.removeprefix("sha256:")
    return f"{POINTERS}{stamp}.{digest}.{position.epoch}.{position.number:09d}.pointer"


def parse_pointer(key: str) -> Pointer | None:
    """What a key of the log publishes, None if it is another one."""
    match = _POINTER.fullmatch(key)
    if match is None:
        return None
    return Pointer(Position(match[3], int(match[4]), f"sha256:{match[2]}"), key)


class Chain:
    """The manifests of one registry."""

    def __init__(self, store: Store, registry_id: str, tables: Mapping[str, Table]) -> None:
        self.store = store
        self.registry_id = registry_id
        self.tables = tables

    def read(self, number: int) -> Manifest | None:
        """Manifest `number`, None if it is not there."""
        try:
            data = self.store.get(manifest_key(number))
        except NotFoundError:
            return None
        return decode_manifest(number, data, self.registry_id, self.tables)

    def read_position(self, position: Position) -> Manifest | None:
        """One manifest, None if it is not there, or another one is in its place."""
        found = self.read(position.number)
        return found if found is not None and found.position == position else None

    def is_sound(self, manifest: Manifest) -> bool:
        """Whether the one before it lies there as it says; else it is an orphan."""
        before = manifest.predecessor
        return before is None or self.read_position(before) is not None

    def has_parts(self, parts: Iterable[Part]) -> bool:
        """Whether all of these parts are in the store."""
        return all(self.store.each(lambda key: bool(self.store.head(key)), [p.key for p in parts]))

    def newest(self, positions: Iterable[Position]) -> Manifest | None:
        """The newest sound manifest of those published, None if there is none."""
        for position in sorted(set(positions), reverse=True):
            manifest = self.read_position(position)
            if manifest is not None and self.is_sound(manifest):
                return manifest
        return None

    def numbers(self) -> list[int]:
        """Numbers of all manifests that are there, ascending."""
        found = (_MANIFEST.fullmatch(entry.key) for entry in self.store.list(PREFIX))
        return sorted(int(match[1]) for match in found if match)

    def between(self, after: int, newest: Manifest) -> list[Manifest]:
        """Those of the manifests from `after` + 1 up to `newest` that are still there, ascending.

        The ones that were removed folded nothing that is in the log still.
        """
        numbers = [number for number, _ in newest.ancestors if number > after]
        known = {(number, short) for number, short in newest.ancestors}
        keys = {manifest_key(number): number for number in sorted(numbers)}
        found = []
        for key, data in self.store.get_many(keys):
            if data is not None:
                each = decode_manifest(keys[key], data, self.registry_id, self.tables)
                if (each.position.number, _short(each.position)) in known:
                    found.append(each)
        return [*found, newest] if newest.position.number > after else found

    def create(self, number: int, data: bytes) -> Manifest | None:
        """Make manifest `number`, None if another one is there."""
        try:
            self.store.put_new(manifest_key(number), data)
        except KeyExistsError:
            return None
        return decode_manifest(number, data, self.registry_id, self.tables)

    def publish(self, stamp: str, manifest: Manifest) -> None:
        """Say in the log that a manifest is there."""
        # The name says all; what is in it is for people who look.
        self.store.put_new(pointer_key(stamp, manifest.position), b"see catalog/\n")
