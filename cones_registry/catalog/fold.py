"""Fold: what the events of the log come to.

The result does not depend on the order in which segments arrive: a push says a version once and for
all; of two statements on one tag or on removal the later stamp holds; of two on one alias the
higher generation; condemned and purged are final. So readers who saw the log in different orders
agree, and a segment folded late changes nothing that it should not.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cones_registry.catalog.events import Event
from cones_registry.catalog.segments import Segment
from cones_registry.digest import Digest

Key = tuple[str, str, int]
"""(owner, name, version)."""

AliasKey = tuple[str, str, str]
"""(owner, name, alias)."""


@dataclass
class Version:
    """One version while the log is folded.

    Attributes:
        record: what its push said (see `events.RECORD_KEYS`).
        push: the idempotency key its pusher gave, or "".
        history: whether its blob's footer holds a loss history that `record` leaves out.
        removed, removed_stamp: whether it is hidden, and the stamp that said so ("" before any).
        pruned: its bytes may be gone; it cannot be restored.
        tag_stamps: tag -> (stamp, present), for tags that were changed after the push.
        sketch: what tells of masks like this one; empty where its pusher knew of none.
    """

    record: dict[str, Any]
    push: str = ""
    history: bool = False
    removed: bool = False
    removed_stamp: str = ""
    pruned: bool = False
    tag_stamps: dict[str, tuple[str, bool]] = field(default_factory=dict)
    sketch: bytes = b""

    @property
    def tags(self) -> list[str]:
        """Tags it has now, sorted."""
        present = set(self.record["tags"])
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
        condemned: blob digest -> (stamp, bytes), marked by the first phase of pruning.
        purged: name digest -> highest version that is gone for good.
        purged_blobs: blobs that purges of the folded segments took away.
        purges: whether one of the folded segments purged something.
        rewritten: old blob digest -> (new blob digest, bytes), from the folded segments.
    """

    registry_id: str
    versions: dict[Key, Version] = field(default_factory=dict)
    aliases: dict[AliasKey, tuple[int, int]] = field(default_factory=dict)
    condemned: dict[Digest, tuple[str, int]] = field(default_factory=dict)
    purged: dict[Digest, int] = field(default_factory=dict)
    purged_blobs: set[Digest] = field(default_factory=set)
    purges: bool = False
    rewritten: dict[Digest, tuple[Digest, int]] = field(default_factory=dict)

    def apply_all(self, segments: Iterable[Segment]) -> list[Segment]:
        """Apply segments; those that speak of versions not yet known are returned, not applied.

        A listing of an object store is not one instant: it can show a tag and miss the push before
        it. Such a segment is kept whole for the next sync, so no reader sees half a commit.
        """
        waiting = sorted(segments, key=lambda segment: segment.stamp)
        # A purge makes segments that speak of what it took away harmless, so purges come first.
        for segment in waiting:
            for event in segment.events:
                if event["type"] == "purge":
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
        pushed: set[Key] = set()
        for event in segment.events:
            if event["type"] == "push":
                pushed.add(_key(event["concept"]))
            elif event["type"] in _ABOUT_ONE:
                key = _key(event)
                if key not in pushed and key not in self.versions and not self.is_purged(*key):
                    return False
            elif event["type"] == "condemn":
                for owner, name, version in event["versions"]:
                    key = (owner, name, version)
                    if key not in self.versions and not self.is_purged(*key):
                        return False
        for event in segment.events:
            if event["type"] in _ABOUT_ONE and self.is_purged(*_key(event)):
                continue
            _APPLY[event["type"]](self, segment.stamp, event)
        return True

    def _push(self, stamp: str, event: Event) -> None:
        key = _key(event["concept"])
        if key in self.versions or self.is_purged(*key):
            return  # a retried push said it twice, or it is gone
        record = dict(event["concept"])
        if record["blob_digest"] in self.rewritten:
            record["blob_digest"], record["blob_bytes"] = self.rewritten[record["blob_digest"]]
        sketch = base64.b64decode(event.get("sketch", ""))
        self.versions[key] = Version(record, event["push"], event["history"], sketch=sketch)

    def _alias(self, stamp: str, event: Event) -> None:
        key = (event["owner"], event["name"], event["alias"])
        statement = (event["generation"], event["version"])
        self.aliases[key] = max(statement, self.aliases.get(key, (0, 0)))

    def _tag(self, stamp: str, event: Event) -> None:
        version = self.versions[_key(event)]
        for tags, present in ((event["add"], True), (event["remove"], False)):
            for tag in tags:
                if stamp >= version.tag_stamps.get(tag, ("", False))[0]:
                    version.tag_stamps[tag] = (stamp, present)

    def _remove(self, stamp: str, event: Event) -> None:
        version = self.versions[_key(event)]
        if stamp >= version.removed_stamp:
            version.removed, version.removed_stamp = event["type"] == "remove", stamp

    def _condemn(self, stamp: str, event: Event) -> None:
        for digest, size in event["blobs"]:
            first, _ = self.condemned.get(digest, (stamp, size))
            self.condemned[digest] = (min(first, stamp), size)
        for owner, name, number in event["versions"]:
            version = self.versions.get((owner, name, number))
            if version is not None:
                version.pruned = True

    def _swept(self, stamp: str, event: Event) -> None:
        for digest in event["blobs"]:
            if digest in self.condemned and self.condemned[digest][0] < stamp:
                del self.condemned[digest]

    def _rewrite(self, stamp: str, event: Event) -> None:
        new = (event["new"], event["bytes"])
        self.rewritten[event["old"]] = new
        for version in self.versions.values():
            if version.record["blob_digest"] == event["old"]:
                version.record["blob_digest"], version.record["blob_bytes"] = new

    def _purge(self, event: Event) -> None:
        self.purges = True
        for digest, highest in event["names"].items():
            self.purged[digest] = max(highest, self.purged.get(digest, 0))
        self.purged_blobs.update(event["blobs"])
        for key in [key for key in self.versions if self.is_purged(*key)]:
            del self.versions[key]
        for alias, (_, version) in list(self.aliases.items()):
            if self.is_purged(alias[0], alias[1], version):
                del self.aliases[alias]


def _key(event: Event) -> Key:
    return event["owner"], event["name"], event["version"]


def touched(segments: Iterable[Segment]) -> tuple[set[Key], set[AliasKey], set[Digest]]:
    """(versions, aliases, blobs) that segments speak of: what a fold must hold to apply them."""
    versions: set[Key] = set()
    aliases: set[AliasKey] = set()
    blobs: set[Digest] = set()
    for segment in segments:
        for event in segment.events:
            kind = event["type"]
            if kind == "push":
                versions.add(_key(event["concept"]))
            elif kind in _ABOUT_ONE:
                versions.add(_key(event))
                if kind == "alias":
                    aliases.add((event["owner"], event["name"], event["alias"]))
            elif kind == "condemn":
                versions.update((owner, name, number) for owner, name, number in event["versions"])
            elif kind == "rewrite":
                blobs.add(event["old"])
    return versions, aliases, blobs


def _already_done(fold: Fold, stamp: str, event: Event) -> None:
    """Purges are applied before everything else; pointers change nothing."""


_ABOUT_ONE = frozenset(("alias", "tag", "remove", "restore"))
_APPLY: dict[str, Callable[[Fold, str, Event], None]] = {
    "push": Fold._push,
    "alias": Fold._alias,
    "tag": Fold._tag,
    "remove": Fold._remove,
    "restore": Fold._remove,
    "condemn": Fold._condemn,
    "swept": Fold._swept,
    "rewrite": Fold._rewrite,
    "purge": _already_done,
    "pointer": _already_done,
}
