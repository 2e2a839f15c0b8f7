"""`cones purge`: remove an owner or a concept for good, with proof."""

from __future__ import annotations

import click

from cones_registry.errors import UsageError
from cones_registry.quantities import counted, size

from .consent import consent_options, consents
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("ref", required=False)
@click.option("--owner", help="Everything of this owner.")
@consent_options
def command(session: Session, ref: str | None, owner: str | None, dry_run: bool, yes: bool) -> None:
    """Remove all versions of the concept REF, or all of an owner, for good.

    Masks that nobody else uses, log, snapshots, what killed writers left unfinished and this
    machine's copies are cleared; then everything is read again to prove it. The receipt on stdout
    says what was removed, not whose. This cannot be undone.
    """
    if (ref is None) == (owner is None):
        raise UsageError("name one concept (cones purge alice/dog) or --owner, not both")
    plan = session.open(read_only=dry_run).plan_purge(owner=owner, ref=ref)
    output = session.output
    whose = f"owner {plan.owner}" if plan.name is None else f"{plan.owner}/{plan.name}"
    output.message(
        f"to remove for good of {whose}: {counted(len(plan.names), 'concept')},"
        f" {counted(plan.versions, 'version')},"
        f" {counted(len(plan.blobs), 'mask')} ({size(plan.freed_bytes)})"
    )
    if plan.shared:
        output.message(f"used by others too, and kept: {counted(len(plan.shared), 'mask')}")
    if not consents(session, f"Remove {whose} for good?", dry_run=dry_run, yes=yes):
        return
    receipt = plan.execute()
    output.document(receipt.to_json())
    output.message(
        f"removed; read {receipt.scanned_objects:,} objects afterwards and found the names"
        f" {receipt.found} times. Receipt {receipt.id}"
    )
