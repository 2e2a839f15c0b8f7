"""`cones sync`: bring another registry up to this one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import ConflictError, CorruptDataError, NotFoundError, UsageError
from cones_registry.quantities import counted, size

from .consent import consent_options, consents, is_looking, is_saved, loaded
from .session import Session, storage_option
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.registry import Registry
    from cones_registry.registry.sync import Clash, SyncPlan, SyncResult

_SHOWN = 20


@verb(registry=False, reads=True)
@click.argument("source")
@click.argument("dest")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="Only versions as owner=alice, tag=animal; repeatable. See `cones list --help`.",
)
@click.option(
    "--delete",
    is_flag=True,
    help="Hide in DEST what SOURCE does not have in use (`restore` shows it again), and take back "
    "tags, aliases and quotas that were changed in DEST.",
)
@click.option(
    "--source-option",
    "source_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For SOURCE's store, as endpoint_url=http://127.0.0.1:9000; repeatable.",
)
@click.option(
    "--dest-option",
    "dest_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For DEST's store; repeatable.",
)
@consent_options
def command(
    session: Session,
    source: str,
    dest: str,
    filters: tuple[str, ...],
    delete: bool,
    source_options: tuple[str, ...],
    dest_options: tuple[str, ...],
    dry_run: bool,
    plan_file: Path | None,
    apply_file: Path | None,
    yes: bool,
) -> None:
    """Copy what registry SOURCE has and registry DEST lacks; each is a folder or a URL.

    Versions keep their numbers, tags, aliases and provenance. DEST is made if nothing is there, and
    can be read at any moment; a run that was broken off is started again and goes on. What only
    DEST has stays. A number, alias or quota that says something else in DEST is reported and left
    as it is: then the exit code is 11.

    \b
    cones sync s3://models/concepts /backup/concepts        # a backup
    cones sync /backup/concepts s3://models/concepts-new    # and the way back
    """
    from cones_registry.registry import Registry
    from cones_registry.registry.sync import SyncPlan

    registry = Registry.open(source, read_only=True, **_options(source_options))
    registry.on_progress = session.output.told
    looking = is_looking(dry_run, plan_file)
    target = _dest(dest, _options(dest_options), looking=looking, session=session)
    target.on_progress = session.output.told
    if apply_file is None:
        plan = registry.plan_sync(target, filters=filters, delete=delete)
    elif filters or delete:
        raise UsageError("the plan says what to copy; leave --filter and --delete away")
    else:
        plan = loaded(registry, apply_file, SyncPlan, dest=target)
    _tell_plan(session, plan)
    output = session.output
    if output.as_json and dry_run:
        output.document(_plan_document(plan))
    if is_saved(session, registry, plan, plan_file):
        return
    if not consents(session, "Go on?", dry_run=dry_run, yes=yes or not plan.hide):
        _tell_clashes(session, plan.clashes, "says something else in DEST, and stays")
        return
    result = plan.execute()
    if output.as_json:
        output.document(result.to_json())
    _tell_result(session, result, source, dest)


def _dest(dest: str, options: dict[str, Any], *, looking: bool, session: Session) -> Registry:
    """The registry at `dest`; made if there is none, unless nothing is to be changed."""
    from cones_registry.registry import Registry

    try:
        return Registry.open(dest, read_only=looking, **options)
    except NotFoundError:
        if looking:
            session.output.message(f"there is no registry at {dest} yet; one would be made")
            return Registry.create(f"memory://nothing-yet-{id(session)}")
    made = Registry.create(dest, **options)
    session.output.message(f"made an empty registry at {made.url}")
    return made


def _options(texts: Iterable[str]) -> dict[str, Any]:
    return {name: value for text in texts for name, value in storage_option(text).items()}


def _tell_plan(session: Session, plan: SyncPlan) -> None:
    rest = [
        f"{count:,} {one if count == 1 else many} to {what}"
        for one, many, what, count in (
            ("version", "versions", "restore", len(plan.restore)),
            ("version", "versions", "tag", len(plan.tags)),
            ("alias", "aliases", "set", len(plan.aliases)),
            ("quota", "quotas", "set", len(plan.quotas)),
            ("version", "versions", "hide", len(plan.hide)),
        )
        if count
    ]
    session.output.message(
        f"to copy: {counted(len(plan.versions), 'version')}"
        f" ({counted(len(plan.masks), 'mask')}, at most {size(sum(plan.masks.values()))})"
        + "".join(f"; {each}" for each in rest)
    )


def _tell_result(session: Session, result: SyncResult, source: str, dest: str) -> None:
    output = session.output
    changes = [
        f"{count:,} {one if count == 1 else many} {what}"
        for one, many, what, count in (
            ("version", "versions", "shown again", result.restored),
            ("version", "versions", "tagged", result.tagged),
            ("alias", "aliases", "set", result.aliases),
            ("quota", "quotas", "set", result.quotas),
            ("version", "versions", "hidden", result.hidden),
        )
        if count
    ]
    output.message(
        f"copied {counted(result.versions, 'version')} and {counted(result.masks, 'mask')},"
        f" {size(result.copied_bytes)}" + "".join(f"; {each}" for each in changes)
    )
    if result.purged:
        output.message(f"left out, since DEST has purged them: {', '.join(result.purged[:_SHOWN])}")
    if result.purged_at_source:
        names = result.purged_at_source
        output.message(
            f"purged in SOURCE, but still in DEST: {', '.join(names[:_SHOWN])}. A copy does not "
            f"purge: cones -r {dest} purge {names[0]}"
        )
    _tell_clashes(session, result.problems, "could not be copied")
    _tell_clashes(session, result.clashes, "says something else in DEST, and stays")
    if result.problems:
        raise CorruptDataError(
            f"{counted(len(result.problems), 'object')} could not be copied; everything else was. "
            f"See: cones -r {source} check --read-data"
        )
    if result.clashes:
        raise ConflictError(
            f"{len(result.clashes)} things say something else in {dest}, and were left as they "
            "are; everything else was copied. Push them there under another name, or sync to "
            "another place"
        )


def _tell_clashes(session: Session, clashes: tuple[Clash, ...], what: str) -> None:
    for clash in clashes[:_SHOWN]:
        session.output.message(f"{clash.what} {what}: {clash.why}")
    if len(clashes) > _SHOWN:
        session.output.message(f"… and {len(clashes) - _SHOWN:,} more; --json names them all")


def _plan_document(plan: SyncPlan) -> dict[str, Any]:
    return {
        "versions": ["{}/{}:{}".format(*key) for key in plan.versions],
        "restore": ["{}/{}:{}".format(*key) for key in plan.restore],
        "tags": {"{}/{}:{}".format(*key): list(map(list, each)) for key, each in plan.tags.items()},
        "aliases": {"{}/{}:{}".format(*key): to for key, (_, to) in plan.aliases.items()},
        "quotas": sorted(plan.quotas),
        "hide": ["{}/{}:{}".format(*key) for key in plan.hide],
        "mask_bytes": sum(plan.masks.values()),
        "clashes": [dict(each.__dict__) for each in plan.clashes],
        "purged": list(plan.purged),
        "purged_at_source": list(plan.purged_at_source),
    }
