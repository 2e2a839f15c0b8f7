"""Events: what a commit can say. The log is shared, so everything in it is checked when read.

push      a version of a concept: its record, without the loss history
alias     generation ``generation`` of an alias names ``version``
tag       keywords added to and removed from a version
remove    hides a version          restore  shows it again
condemn   phase one of pruning: these removals are final, these masks may go
swept     these condemned masks are gone, or are in use again
purge     everything of the concepts with these name digests, up to a version, is gone for good
quota     what an owner may keep was changed (the quota itself is an object of its own)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta

from cones_registry.errors import CorruptDataError, NewerFormatError, UsageError
from cones_registry.record import Count, Number, Record, Sha256, check_tag
from cones_registry.refs import check_alias, check_name

Key = tuple[str, str, int]
"""(owner, name, version)."""


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """One thing that a commit says."""


class _OfOne(_Said, frozen=True):
    """About one version."""

    owner: str
    name: str
    version: Number

    def __post_init__(self) -> None:
        check_name(self.owner, "owner")
        check_name(self.name, "name")

    @property
    def key(self) -> Key:
        """(owner, name, version)."""
        return self.owner, self.name, self.version


class Pushed(_Said, frozen=True, tag="push"):
    """A version is there."""

    record: Record

    @property
    def key(self) -> Key:
        """(owner, name, version)."""
        return self.record.place


class Aliased(_OfOne, frozen=True, tag="alias"):
    """An alias names a version."""

    alias: str
    generation: Number

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alias(self.alias)


class Tagged(_OfOne, frozen=True, tag="tag"):
    """Tags of a version were changed."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for tag in (*self.add, *self.remove):
            check_tag(tag)


class Removed(_OfOne, frozen=True, tag="remove"):
    """A version is hidden."""


class Restored(_OfOne, frozen=True, tag="restore"):
    """A version is shown again."""


class Condemned(_Said, frozen=True, tag="condemn"):
    """Phase one of pruning.

    Attributes:
        versions: (owner, name, version, stamp of the removal that is final now). A version that
            was restored since is left alone.
        masks: (digest, bytes) of mask objects that may go.
    """

    versions: tuple[tuple[str, str, Number, str], ...] = ()
    masks: tuple[tuple[Sha256, Count], ...] = ()


class Swept(_Said, frozen=True, tag="swept"):
    """Condemned masks are gone, or spared."""

    masks: tuple[Sha256, ...] = ()


class Purged(_Said, frozen=True, tag="purge"):
    """Concepts are gone for good.

    Attributes:
        names: digest of the name (``fold.name_digest``) -> highest version that is gone.
        masks: digests of the mask objects that went with them.
        versions: how many versions went.
    """

    names: dict[Sha256, Annotated[int, Meta(ge=0)]]
    masks: tuple[Sha256, ...] = ()
    versions: Count = 0


class QuotaSet(_Said, frozen=True, tag="quota"):
    """An owner may keep so much; None: any number."""

    owner: str
    concepts: Count | None = None
    bytes: Count | None = None

    def __post_init__(self) -> None:
        check_name(self.owner, "owner")


Event = Pushed | Aliased | Tagged | Removed | Restored | Condemned | Swept | Purged | QuotaSet

KINDS: Final[dict[str, type[Any]]] = {
    str(each.__struct_config__.tag): each for each in get_args(Event)
}
"""Value of ``type`` -> class."""


def kind_of(event: Event) -> str:
    """The value of ``type``: "push", "alias", …"""
    return str(event.__struct_config__.tag)


def plain_events(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as JSON values."""
    found: list[dict[str, Any]] = msgspec.to_builtins(list(events), str_keys=True)
    return found


def parse_events(values: list[Any]) -> tuple[Event, ...]:
    """JSON values as events, checked.

    Raises:
        NewerFormatError: an event or a field of one that this version does not know.
        CorruptDataError: anything else that is not an event.
    """
    for value in values:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in KINDS:
            raise NewerFormatError.of(f"an event of kind {kind[:50]!a}")
        record = value.get("record") if isinstance(value, dict) else None
        if kind == "push" and isinstance(record, dict):
            require_known(record, Record, "a record")
    try:
        return msgspec.convert(values, tuple[Event, ...])
    except msgspec.ValidationError as error:
        if "unknown field" in str(error):
            raise NewerFormatError.of(f"an event with a field ({error})") from error
        raise CorruptDataError(f"bad event: {str(error)[:500]}") from error
    except (UsageError, RecursionError) as error:
        raise CorruptDataError(f"bad event: {str(error)[:500]}") from error


def require_known(value: dict[str, Any], kind: type[Any], what: str) -> None:
    """``NewerFormatError`` if a JSON object has keys that a dataclass has no fields for."""
    unknown = sorted(value.keys() - {str(name) for name in kind.__dataclass_fields__})
    if unknown:
        raise NewerFormatError.of(f"{what} with the field {str(unknown[0])[:50]!a}")
