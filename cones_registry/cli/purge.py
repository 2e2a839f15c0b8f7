"""`cones purge`: remove an owner or a concept for good, with proof."""

from __future__ import annotations

from pathlib import Path

import click

from cones_registry.errors import UsageError
from cones_registry.quantities import counted, size

from .consent import consent_options, consents, is_looking, is_saved, loaded
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("ref", required=False)
@click.option("--owner", help="Everything of this owner.")
@consent_options
def command(
    session: Session,
    ref: str | None,
    owner: str | None,
    dry_run: bool,
    plan_file: Path | None,
    apply_file: Path | None,
    yes: bool,
) -> None:
    """Remove all versions of the concept REF, or all of an owner, for good.

    Masks that nobody else uses, log, snapshots, what killed writers left unfinished and this
    machine's copies are cleared; then everything is read again to prove it. The receipt on stdout
    says what was removed, not whose. This cannot be undone.
    """
    from cones_registry.registry.purge import PurgePlan

    if (ref is not None) + (owner is not None) + (apply_file is not None) != 1:
        raise UsageError(
            "name one concept (cones purge alice/dog), or --owner, or --apply FILE; one of them"
        )
    registry = session.open(read_only=is_looking(dry_run, plan_file))
    if apply_file is None:
        plan = registry.plan_purge(owner=owner, ref=ref)
    else:
        plan = loaded(registry, apply_file, PurgePlan)
    output = session.output
    whose = f"owner {plan.owner}" if plan.name is None else f"{plan.owner}/{plan.name}"
    output.message(
        f"to remove for good of {whose}: {counted(len(plan.names), 'concept')},"
        f" {counted(plan.versions, 'version')},"
        f" {counted(len(plan.blobs), 'mask')} ({size(plan.freed_bytes)})"
    )
    if plan.shared:
        output.message(f"used by others too, and kept: {counted(len(plan.shared), 'mask')}")
    if plan.kept_by_store:
        output.message(
            f"warning: the store keeps {plan.kept_by_store}; a purge cannot remove those. Remove "
            "them with the store's own tools afterwards"
        )
    if is_saved(session, registry, plan, plan_file):
        return
    if not consents(session, f"Remove {whose} for good?", dry_run=dry_run, yes=yes):
        return
    receipt = plan.execute()
    output.document(receipt.to_json())
    output.message(
        f"removed; read {counted(receipt.scanned_objects, 'object')} afterwards and found the"
        f" names {counted(receipt.found, 'time')}. Receipt {receipt.id}"
    )
    if apply_file is not None:
        output.message(f"{apply_file} still names what was purged: delete it")
