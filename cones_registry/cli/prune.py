"""`cones prune`: free the bytes of what was removed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cones_registry.errors import UsageError
from cones_registry.filters import parse_age
from cones_registry.quantities import counted, size

from .consent import consent_options, consents, is_looking, is_saved, loaded
from .session import Session
from .verb import verb


@verb(reads=True)
@click.option("--grace", metavar="AGE", help="Between removing and deleting, as 7d.")
@consent_options
def command(
    session: Session,
    grace: str | None,
    dry_run: bool,
    plan_file: Path | None,
    apply_file: Path | None,
    yes: bool,
) -> None:
    """Delete masks that no version refers to any more, in two steps with a grace between them.

    A first run marks what was removed long enough ago: it can no longer be restored. A run after
    the grace deletes what was marked and is still unused.
    """
    from cones_registry.registry.prune import PrunePlan

    options: dict[str, Any] = {} if grace is None else {"grace": parse_age(grace)}
    registry = session.open(read_only=is_looking(dry_run, plan_file))
    if apply_file is None:
        plan = registry.plan_prune(**options)
    elif options:
        raise UsageError("the plan says the grace; leave --grace away with --apply")
    else:
        plan = loaded(registry, apply_file, PrunePlan)
    output = session.output
    # With no grace between them, what is marked goes at once.
    later = len(plan.condemn) if plan.grace else 0
    now = len(plan.delete) + len(plan.condemn) - later
    output.message(f"to delete now: {counted(now, 'mask')}, {size(plan.freed_bytes)}")
    output.message(
        f"to mark for later: {counted(later, 'mask')},"
        f" {size(plan.condemned_bytes if later else 0)};"
        f" {counted(len(plan.versions), 'removed version')} will be beyond restoring"
    )
    if output.as_json and dry_run:
        output.document(
            {
                "freed_bytes": plan.freed_bytes,
                "condemned_bytes": plan.condemned_bytes,
                "delete": sorted(plan.delete),
                "condemn": sorted(plan.condemn),
                "versions": ["{}/{}:{}".format(*each) for each in plan.versions],
            }
        )
    if is_saved(session, registry, plan, plan_file):
        return
    nothing = not (plan.delete or plan.condemn or plan.versions)
    if not consents(session, "Go on?", dry_run=dry_run, yes=yes or nothing):
        return
    report = plan.execute()
    if output.as_json:
        output.document(asdict(report))
    output.message(
        f"deleted {counted(len(report.deleted), 'mask')}, freed {size(report.freed_bytes)}"
    )
    changed = len(plan.versions) - len(report.condemned_versions)
    if apply_file is not None and changed:
        output.message(f"restored since it was planned, and kept: {counted(changed, 'version')}")
    if report.spared:
        output.message(f"in use again, and kept: {counted(len(report.spared), 'mask')}")
