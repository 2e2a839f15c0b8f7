"""History: who did what when, one line per change, made from the log's commits.

A fold keeps the lines of the commits that it folds in runs of their own (table ``history``), so
they stay when the log is cleaned. A purge leaves lines of itself alone, which name nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from cones_registry.catalog.clock import stamp_milliseconds
from cones_registry.catalog.events import (
    Aliased,
    Condemned,
    Event,
    Purged,
    Pushed,
    QuotaSet,
    Removed,
    Restored,
    Swept,
    Tagged,
    kind_of,
)
from cones_registry.catalog.segments import Segment

HISTORY: Final = pa.schema(
    [
        pa.field("owner", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("number", pa.int32(), nullable=False),
        ("time", pa.timestamp("ms")),
        ("actor", pa.string()),
        ("kind", pa.string()),
        ("version", pa.int32()),
        ("detail", pa.string()),
    ]
)
"""Columns of ``history``. ``detail`` is JSON; ``time`` is UTC; owner and name are "" for changes
that concern no one concept."""

HISTORY_KEY: Final = ("owner", "name", "stamp", "number")


@dataclass(frozen=True)
class Happening:
    """One change.

    Attributes:
        owner, name, version: what was changed; "" and None where that is no one version.
        stamp: of the commit.
        number: which of the commit's changes.
        time: milliseconds since 1970, by its maker's clock.
        actor: who made it.
        kind: "push", "alias", "tag", "remove", "restore", "prune", "purge", "import" or "quota".
        detail: what is particular to the kind.
    """

    owner: str
    name: str
    stamp: str
    number: int
    time: int
    actor: str
    kind: str
    version: int | None
    detail: Mapping[str, Any]

    @property
    def ref(self) -> str:
        """What was changed, as a ref; "" where that is no concept."""
        version = "" if self.version is None else f":{self.version}"
        return f"{self.owner}/{self.name}{version}" if self.name else self.owner

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"ref": self.ref, "detail": dict(self.detail)}

    def row(self) -> dict[str, Any]:
        """One row of ``history``."""
        return asdict(self) | {"detail": json.dumps(dict(self.detail), ensure_ascii=False)}


def happenings(segments: Iterable[Segment]) -> list[Happening]:
    """The changes that commits made, one per version, alias, quota or purged name."""
    found = []
    for segment in segments:
        time = stamp_milliseconds(segment.stamp)
        changes = [change for event in segment.events for change in _changes(event)]
        for number, (kind, owner, name, version, detail) in enumerate(changes):
            said = segment.verb if kind == "push" and segment.verb else kind
            found.append(
                Happening(
                    owner, name, segment.stamp, number, time, segment.actor, said, version, detail
                )
            )
    return found


def happening_of(row: Mapping[str, Any]) -> Happening:
    """Inverse of ``Happening.row``."""
    time = row["time"]
    milliseconds = time if isinstance(time, int) else stamp_milliseconds(row["stamp"])
    detail = json.loads(row["detail"]) if row["detail"] else {}
    return Happening(**{**row, "time": milliseconds, "detail": detail})


def history_table(lines: Iterable[Happening]) -> pa.Table:
    """Rows of ``history``, sorted by their key."""
    ordered = sorted(lines, key=lambda line: (line.owner, line.name, line.stamp, line.number))
    return pa.Table.from_pylist([line.row() for line in ordered], HISTORY)


_Change = tuple[str, str, str, int | None, dict[str, Any]]


def _changes(event: Event) -> list[_Change]:
    """(kind, owner, name, version, detail) of each change that an event says."""
    match event:
        case Pushed(record):
            said = {"mask": record.mask_digest, "scope": record.scope}
            return [("push", record.owner, record.name, record.version, said)]
        case Aliased():
            detail = {"alias": event.alias, "generation": event.generation}
            return [("alias", *event.key, detail)]
        case Tagged():
            return [("tag", *event.key, {"add": list(event.add), "remove": list(event.remove)})]
        case Removed() | Restored():
            return [(kind_of(event), *event.key, {})]
        case Condemned():
            return [("prune", *each[:3], {}) for each in event.versions]
        case Swept():
            return [("prune", "", "", None, {"masks": len(event.masks)})]
        case Purged():
            return [
                ("purge", "", "", None, {"names": sorted(event.names), "versions": event.versions})
            ]
        case QuotaSet():
            limits = {"concepts": event.concepts, "bytes": event.bytes}
            return [("quota", event.owner, "", None, limits)]
    raise AssertionError(f"no line for {event!r}")
