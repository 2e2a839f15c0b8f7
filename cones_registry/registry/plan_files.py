"""Plan files: a plan of a prune, purge or sync as JSON, for a second pair of eyes.

One person plans, another reads the file, strikes out what is to stay, and applies it. A file gives
no rights: what it says is looked over again against the registry as it is then, and only what a new
plan would do too is done. For a purge, which takes a whole owner or concept, whatever came since
stands against it.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from cones_registry.errors import (
    ConflictError,
    CorruptDataError,
    NewerFormatError,
    NotFoundError,
    StoreUnavailableError,
    UsageError,
)
from cones_registry.record import Count, Number, Sha256
from cones_registry.refs import Ref
from cones_registry.registry.prune import PrunePlan
from cones_registry.registry.purge import PurgePlan, plan_purge
from cones_registry.registry.quotas import Quota
from cones_registry.registry.session import Session, actor
from cones_registry.registry.sync import SyncPlan, plan_sync

FORMAT: Final = "cones-plan/1"
MAX_BYTES: Final = 2**30

Plan = PrunePlan | PurgePlan | SyncPlan
Place = tuple[str, str, Number]


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="plan"):
    """What every plan file says.

    Attributes:
        registry, url: id of the registry, and where it was reached.
        made, actor: when (UTC) and by whom it was planned.
    """

    registry: str
    url: str
    made: str
    actor: str
    format: Literal["cones-plan/1"] = FORMAT


class PruneFile(_File, tag="prune", kw_only=True):
    """As `PrunePlan`."""

    grace: Annotated[float, Meta(ge=0)]
    versions: list[tuple[str, str, Number, str]]
    condemn: dict[Sha256, Count]
    delete: dict[Sha256, Count]


class PurgeFile(_File, tag="purge", kw_only=True):
    """As `PurgePlan`; `names` is concept name -> highest version."""

    owner: str
    name: str | None
    names: dict[str, Count]
    versions: Count
    masks: dict[Sha256, Count]
    kept_masks: dict[Sha256, Count]
    previews: list[Sha256]


class SyncFile(_File, tag="sync", kw_only=True):
    """As `SyncPlan`; `dest` is the id of the registry there, "" if there was none yet."""

    dest: str
    dest_url: str
    filters: list[str]
    delete_there: bool
    versions: list[Place]
    restore: list[Place]
    tags: list[tuple[Place, list[str], list[str]]]
    aliases: list[tuple[str, str, str, Number, Number]]
    quotas: list[tuple[str, Number, Count | None, Count | None]]
    hide: list[Place]


_ANY: Final = PruneFile | PurgeFile | SyncFile


def save_plan(session: Session, plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan; see `Registry.save_plan`."""
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    said: dict[str, Any] = {
        "registry": session.registry_id,
        "url": session.store.url,
        "made": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "actor": actor(),
    }
    document: _File
    match plan:
        case PrunePlan():
            document = PruneFile(
                **said,
                grace=plan.grace,
                versions=list(plan.versions),
                condemn=plan.condemn,
                delete=plan.delete,
            )
        case PurgePlan():
            document = PurgeFile(
                **said,
                owner=plan.owner,
                name=plan.name,
                names=plan.names,
                versions=plan.versions,
                masks=plan.blobs,
                kept_masks=plan.shared,
                previews=list(plan.previews),
            )
        case SyncPlan():
            document = _sync_file(plan, said)
    data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    try:
        with Path(path).open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise ConflictError(f"{path} is there already. Write elsewhere") from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {path}: {error}") from error


def _sync_file(plan: SyncPlan, said: dict[str, Any]) -> SyncFile:
    dest = plan._dest
    return SyncFile(
        **said,
        dest="" if dest.store.url.startswith("memory:") else dest.registry_id,
        dest_url=dest.store.url,
        filters=list(plan.filters),
        delete_there=plan.delete,
        versions=list(plan.versions),
        restore=list(plan.restore),
        tags=[(key, list(add), list(drop)) for key, (add, drop) in plan.tags.items()],
        aliases=[(*what, *move) for what, move in plan.aliases.items()],
        quotas=[
            (owner, generation, quota.concepts, quota.bytes)
            for owner, (generation, quota) in plan.quotas.items()
        ],
        hide=list(plan.hide),
    )


def load_plan(session: Session, path: str | os.PathLike[str], dest: Session | None) -> Plan:
    """The plan in a file, as far as it still holds; see `Registry.load_plan`."""
    said = _read(Path(path))
    if said.registry != session.registry_id:
        raise UsageError(
            f"{path} is a plan for the registry {said.registry} ({said.url}); {session.store.url} "
            f"is {session.registry_id}. Plan again here"
        )
    match said:
        case PruneFile():
            # Looked over again when it is executed.
            return PrunePlan(tuple(said.versions), said.condemn, said.delete, said.grace, session)
        case PurgeFile():
            return _purge_plan(session, said, path)
        case SyncFile():
            if dest is None:
                raise UsageError(f"{path} is a plan of a sync; say where to")
            return _sync_plan(session, dest, said, path)


def _read(path: Path) -> PruneFile | PurgeFile | SyncFile:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CorruptDataError(f"{path} is too large to be a plan")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error}") from error
    try:
        return msgspec.json.decode(data, type=_ANY)
    except (msgspec.DecodeError, RecursionError) as error:
        if b'"cones-plan/' in data and f'"{FORMAT}"'.encode() not in data:
            raise NewerFormatError(
                f"{path} is a plan of a newer version. Upgrade cones-registry"
            ) from error
        raise CorruptDataError(f"{path} is no plan of cones: {str(error)[:300]}") from error


def _purge_plan(session: Session, said: PurgeFile, path: str | os.PathLike[str]) -> PurgePlan:
    if said.name is None:
        now = plan_purge(session, said.owner, None)
    else:
        now = plan_purge(session, None, Ref(said.owner, said.name))
    news = [
        f"{said.owner}/{name}:{highest}"
        for name, highest in sorted(now.names.items())
        if highest > said.names.get(name, -1)
    ]
    if news or now.versions > said.versions:
        raise ConflictError(
            f"since {path} was planned ({said.made}), {', '.join(news[:5]) or 'versions'} came to "
            "what it purges. Nothing was done. Plan again, and have it looked at again"
        )
    return now


def _sync_plan(
    session: Session, dest: Session, said: SyncFile, path: str | os.PathLike[str]
) -> SyncPlan:
    now = plan_sync(session, dest, said.filters, delete=said.delete_there)
    if said.dest and said.dest != dest.registry_id:
        raise UsageError(
            f"{path} is a plan for the destination {said.dest} ({said.dest_url}); "
            f"{dest.store.url} is {dest.registry_id}. Plan again"
        )
    tags = {key: (tuple(add), tuple(drop)) for key, add, drop in said.tags}
    aliases = {(owner, name, alias): (made, to) for owner, name, alias, made, to in said.aliases}
    quotas = {
        owner: (made, Quota(owner, concepts, size)) for owner, made, concepts, size in said.quotas
    }
    return dataclasses.replace(
        now,
        versions=_both(said.versions, now.versions),
        restore=_both(said.restore, now.restore),
        tags={key: each for key, each in tags.items() if now.tags.get(key) == each},
        aliases={key: each for key, each in aliases.items() if now.aliases.get(key) == each},
        quotas={key: each for key, each in quotas.items() if now.quotas.get(key) == each},
        hide=_both(said.hide, now.hide),
    )


def _both(said: Iterable[Place], now: Iterable[Place]) -> tuple[Place, ...]:
    there = set(now)
    return tuple(each for each in said if each in there)
