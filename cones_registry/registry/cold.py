"""Cold: one concept on a machine that has no local copy of the catalogue yet.

What a ref names is read from the store by ranges: the few lines of the runs that are of the
concept, and the commits that no manifest has folded. The same rules fold them as in a sync.
"""

from __future__ import annotations

from typing import Final

from cones_registry.catalog.chain import parse_pointer
from cones_registry.catalog.events import Condemned, Event, Purged, QuotaSet, Swept
from cones_registry.catalog.fold import Fold, Version
from cones_registry.catalog.keys import LOG
from cones_registry.catalog.reader import concept_of
from cones_registry.catalog.runs import scan
from cones_registry.catalog.segments import Segment, decode_segment, is_segment, parse_name
from cones_registry.catalog.syncing import meta_from
from cones_registry.catalog.tables import TABLES, version_of
from cones_registry.errors import NotFoundError
from cones_registry.record import Concept
from cones_registry.refs import Ref
from cones_registry.registry.session import Session

MOST_COMMITS: Final = 64
"""Commits that no manifest has folded, beyond which all of the catalogue is fetched instead."""
MOST_CONCEPTS: Final = 8


def look_up(session: Session, ref: Ref) -> Concept | None:
    """The version in use that a ref with an owner names.

    None where it is not found, or where looking would read too much: then the catalogue tells.
    """
    store, owner, name = session.store, ref.owner or "", ref.name
    listed = [entry.key for entry in store.list(LOG)]
    published = (parse_pointer(key) for key in listed)
    newest = session.chain.newest(each.position for each in published if each)
    folded: set[str] = set()
    fold = Fold(session.registry_id)
    try:
        if newest is not None:
            meta = meta_from(newest.rest, newest, 0)
            fold.purged = dict(meta.purged)
            for each in session.chain.between(newest.since - 1, newest):
                folded.update(each.folded)
            found = newest.tables
            for lines in scan(store, TABLES["concepts"], found.get("concepts", ()), (owner, name)):
                for row in lines.to_pylist():
                    version = version_of(row)
                    fold.versions[version.record.place] = version
            for lines in scan(store, TABLES["aliases"], found.get("aliases", ()), (owner, name)):
                for row in lines.to_pylist():
                    fold.aliases[owner, name, row["alias"]] = (row["generation"], row["version"])
        wanted = [key for key in listed if is_segment(key) and parse_name(key)[0] not in folded]
        if len(wanted) > MOST_COMMITS:
            return None
        segments = [
            _about(decode_segment(key, data), owner, name)
            for key, data in store.get_many(wanted)
            if data is not None
        ]
    except NotFoundError:
        return None  # a compactor removed a run meanwhile
    if fold.apply_all(segments):
        return None  # a commit speaks of a version that is not listed yet
    named = _named(fold, ref)
    if named is None:
        return None
    aliases = [
        alias
        for (_, _, alias), (_, number) in fold.aliases.items()
        if number == named.record.version
    ]
    return concept_of(named, aliases)


def _about(segment: Segment, owner: str, name: str) -> Segment:
    """What a commit says of one concept, and what was purged."""

    def concerns(event: Event) -> bool:
        if isinstance(event, Purged):
            return True
        if isinstance(event, Swept | QuotaSet | Condemned):
            return False
        return event.key[:2] == (owner, name)

    return Segment(segment.stamp, tuple(event for event in segment.events if concerns(event)))


def _named(fold: Fold, ref: Ref) -> Version | None:
    """The newest version in use that a ref names; removal alone hides, whatever was condemned."""
    number = ref.version
    if ref.alias is not None:
        number = fold.aliases.get((ref.owner or "", ref.name, ref.alias), (0, 0))[1]
    fitting = [
        version
        for version in fold.versions.values()
        if not version.removed
        and number in (None, version.record.version)
        and ref.digest in (None, version.record.mask_digest, version.record.blob_digest)
    ]
    return max(fitting, key=lambda version: version.record.version, default=None)
