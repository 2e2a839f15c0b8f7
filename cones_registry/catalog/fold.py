"""Fold: what the events of the log come to.

The result does not depend on the order in which segments arrive: a push says a version once and for
all; of two statements on one tag or on removal the later stamp holds; of two on one alias the
higher generation; condemned and purged are final. So readers who saw the log in different orders
agree, and a segment folded late changes nothing that it should not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cones_registry.catalog.events import (
    Aliased,
    Condemned,
    Event,
    Key,
    Purged,
    Pushed,
    Removed,
    Restored,
    Swept,
    Tagged,
)
from cones_registry.catalog.segments import Segment
from cones_registry.digest import Digest
from cones_registry.record import Record

AliasKey = tuple[str, str, str]
"""(owner, name, alias)."""


@dataclass
class Version:
    """One version while the log is folded.

    Attributes:
        record: what its push said, without the loss history.
        removed, removed_stamp: whether it is hidden, and the stamp that said so ("" before any).
        condemned: stamp of the removal that a prune made final ("" if none did).
        tag_stamps: tag -> (stamp, present), for tags that were changed after the push.
    """

    record: Record
    removed: bool = False
    removed_stamp: str = ""
    condemned: str = ""
    tag_stamps: dict[str, tuple[str, bool]] = field(default_factory=dict)

    @property
    def pruned(self) -> bool:
        """Whether its bytes may be gone. A restore that came at the same moment voids it."""
        return self.removed and self.condemned == self.removed_stamp

    @property
    def tags(self) -> list[str]:
        """Tags it has now, sorted."""
        present = set(self.record.tags)
        for tag, (_, is_present) in self.tag_stamps.items():
            if is_present:
                present.add(tag)
            else:
                present.discard(tag)
        return sorted(present)


def name_digest(registry_id: str, owner: str, name: str) -> Digest:
    """What stands for a purged name where the name itself must not."""
    text = f"cones name 1\n{registry_id}\n{owner}/{name}"
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Fold:
    """The state that events change; versions and aliases hold those that the events concern.

    Attributes:
        registry_id: id of the registry, part of the digests of purged names.
        condemned: mask digest -> (stamp, bytes), marked by the first phase of pruning.
        purged: name digest -> highest version that is gone for good.
        purged_blobs: masks that purges of the folded segments took away.
        purges: whether one of the folded segments purged something.
    """

    registry_id: str
    versions: dict[Key, Version] = field(default_factory=dict)
    aliases: dict[AliasKey, tuple[int, int]] = field(default_factory=dict)
    condemned: dict[Digest, tuple[str, int]] = field(default_factory=dict)
    purged: dict[Digest, int] = field(default_factory=dict)
    purged_blobs: set[Digest] = field(default_factory=set)
    purges: bool = False

    def apply_all(self, segments: Iterable[Segment]) -> list[Segment]:
        """Apply segments; those that speak of versions not yet known are returned, not applied.

        A listing of an object store is not one instant: it can show a tag and miss the push before
        it. Such a segment is kept whole for the next sync, so no reader sees half a commit.
        """
        waiting = sorted(segments, key=lambda segment: segment.stamp)
        # A purge makes segments that speak of what it took away harmless, so purges come first.
        for segment in waiting:
            for event in segment.events:
                if isinstance(event, Purged):
                    self._purge(event)
        while True:
            rest = [segment for segment in waiting if not self._apply(segment)]
            if len(rest) == len(waiting) or not rest:
                return rest
            waiting = rest

    def is_purged(self, owner: str, name: str, version: int) -> bool:
        """Whether a version is gone for good."""
        if not self.purged:
            return False
        return version <= self.purged.get(name_digest(self.registry_id, owner, name), 0)

    def _apply(self, segment: Segment) -> bool:
        pushed = {event.key for event in segment.events if isinstance(event, Pushed)}
        spoken_of = versions_of(event for event in segment.events if not isinstance(event, Pushed))
        for key in spoken_of:
            if key not in pushed and key not in self.versions and not self.is_purged(*key):
                return False
        for event in segment.events:
            self._apply_one(segment.stamp, event)
        return True

    def _apply_one(self, stamp: str, event: Event) -> None:
        match event:
            case Pushed():
                # A retried push says it twice.
                if event.key not in self.versions and not self.is_purged(*event.key):
                    self.versions[event.key] = Version(event.record)
            case Condemned():
                self._condemn(stamp, event)
            case Swept():
                for digest in event.masks:
                    if digest in self.condemned and self.condemned[digest][0] < stamp:
                        del self.condemned[digest]
            case Aliased() | Tagged() | Removed() | Restored():
                if not self.is_purged(*event.key):
                    self._change(stamp, event)

    def _change(self, stamp: str, event: Aliased | Tagged | Removed | Restored) -> None:
        version = self.versions[event.key]
        if isinstance(event, Aliased):
            key = (event.owner, event.name, event.alias)
            statement = (event.generation, event.version)
            self.aliases[key] = max(statement, self.aliases.get(key, (0, 0)))
        elif isinstance(event, Tagged):
            for tags, present in ((event.add, True), (event.remove, False)):
                for tag in tags:
                    if stamp >= version.tag_stamps.get(tag, ("", False))[0]:
                        version.tag_stamps[tag] = (stamp, present)
        elif stamp >= version.removed_stamp:
            version.removed, version.removed_stamp = isinstance(event, Removed), stamp

    def _condemn(self, stamp: str, event: Condemned) -> None:
        for digest, size in event.masks:
            first, _ = self.condemned.get(digest, (stamp, size))
            self.condemned[digest] = (min(first, stamp), size)
        for owner, name, number, removal in event.versions:
            version = self.versions.get((owner, name, number))
            if version is not None:
                version.condemned = max(removal, version.condemned)

    def _purge(self, event: Purged) -> None:
        self.purges = True
        for digest, highest in event.names.items():
            self.purged[digest] = max(highest, self.purged.get(digest, 0))
        self.purged_blobs.update(event.masks)
        for key in [key for key in self.versions if self.is_purged(*key)]:
            del self.versions[key]
        for alias, (_, version) in list(self.aliases.items()):
            if self.is_purged(alias[0], alias[1], version):
                del self.aliases[alias]


def versions_of(events: Iterable[Event]) -> set[Key]:
    """Versions that events speak of."""
    found: set[Key] = set()
    for event in events:
        if isinstance(event, Condemned):
            found.update((owner, name, number) for owner, name, number, _ in event.versions)
        elif isinstance(event, Pushed | Aliased | Tagged | Removed | Restored):
            found.add(event.key)
    return found


def touched(segments: Iterable[Segment]) -> tuple[set[Key], set[AliasKey]]:
    """(versions, aliases) that segments speak of: what a fold must hold to apply them."""
    versions: set[Key] = set()
    aliases: set[AliasKey] = set()
    for segment in segments:
        versions |= versions_of(segment.events)
        for event in segment.events:
            if isinstance(event, Aliased):
                aliases.add((event.owner, event.name, event.alias))
    return versions, aliases
