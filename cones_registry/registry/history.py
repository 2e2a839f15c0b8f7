"""History: who did what when, from the log and from what folds kept of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from cones_registry.catalog.chain import parse_pointer
from cones_registry.catalog.history import Happening, happening_of, happenings
from cones_registry.catalog.keys import LOG
from cones_registry.catalog.runs import GONE, scan
from cones_registry.catalog.segments import commit_keys, decode_segment
from cones_registry.catalog.tables import RUN_TABLES
from cones_registry.errors import UsageError
from cones_registry.refs import Ref, check_name
from cones_registry.registry.session import Session


def history(
    session: Session,
    *,
    ref: Ref | None,
    owner: str | None,
    actor: str | None,
    since: datetime.datetime | None,
    limit: int | None,
) -> list[Happening]:
    """What happened, the newest first; see ``Registry.history``."""
    if ref is not None and (ref.alias is not None or ref.digest is not None):
        raise UsageError(
            f"{str(ref)!r} names no one concept or version; write owner/name[:version]"
        )
    if owner is not None:
        check_name(owner, "owner")
    earliest = 0 if since is None else int(since.timestamp() * 1000)
    found = {
        (line.stamp, line.number): line
        for line in _lines(session, ref, owner)
        if (ref is None or _concerns(line, ref))
        and owner in (None, line.owner)
        and actor in (None, line.actor)
        and line.time >= earliest
    }
    return [found[key] for key in sorted(found, reverse=True)][:limit]


def _concerns(line: Happening, ref: Ref) -> bool:
    return (line.owner, line.name) == (ref.owner, ref.name) and ref.version in (None, line.version)


def _lines(session: Session, ref: Ref | None, owner: str | None) -> Iterator[Happening]:
    """Lines that folds have kept, read by ranges where it is said of whom, and those of the log."""
    store = session.store
    published = (parse_pointer(entry.key) for entry in store.list(LOG))
    newest = session.chain.newest(each.position for each in published if each)
    if newest is not None:
        prefix = (ref.owner, ref.name) if ref else (owner,) if owner else ()
        found = newest.tables.get("history", ())
        for lines in scan(store, RUN_TABLES["history"], found, prefix):
            yield from (happening_of(row) for row in lines.drop_columns([GONE]).to_pylist())
    yield from happenings(
        decode_segment(key, data)
        for key, data in store.get_many(commit_keys(store))
        if data is not None
    )
