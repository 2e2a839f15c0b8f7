"""History: who did what when, from the log and from what folds kept of it."""

from __future__ import annotations

import datetime

from cones_registry.catalog.history import Happening, happenings
from cones_registry.catalog.segments import commit_keys, decode_segment
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
        for line in _lines(session)
        if (ref is None or _concerns(line, ref))
        and owner in (None, line.owner)
        and actor in (None, line.actor)
        and line.time >= earliest
    }
    return [found[key] for key in sorted(found, reverse=True)][:limit]


def _concerns(line: Happening, ref: Ref) -> bool:
    return (line.owner, line.name) == (ref.owner, ref.name) and ref.version in (None, line.version)


def _lines(session: Session) -> list[Happening]:
    store = session.store
    return happenings(
        decode_segment(key, data)
        for key, data in store.get_many(commit_keys(store))
        if data is not None
    )
