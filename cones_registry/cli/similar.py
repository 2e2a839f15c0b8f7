"""`cones similar`: concepts that shut much the same neurons."""

from __future__ import annotations

import click

from cones_registry.quantities import counted

from .listing import Listing, format_option, show_listing
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("ref")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True)
@format_option
def command(session: Session, ref: str, limit: int, form: str) -> None:
    """List the concepts of the same base model that have most neurons in common with REF.

    Jaccard is the share of the neurons of both that both shut: 1 for equal masks.
    """
    registry = session.open(read_only=True)
    concept = registry.get(ref)
    found = registry.similar(concept, limit)
    output = session.output
    listing = Listing(
        ("concept", "Jaccard", "shared neurons"),
        [(each.ref, f"{each.jaccard:.4f}", f"{each.shared_count:,}") for each in found],
        [(each.ref, each.jaccard, each.shared_count) for each in found],
        [each.to_json() for each in found],
        [each.ref for each in found],
    )
    if not show_listing(output, form, listing):
        return
    output.message(f"{counted(len(found), 'concept')} like {concept.ref}")
    ((left_out,),) = (
        row.values()
        for row in registry.query(
            "SELECT count(*) AS left_out FROM concepts WHERE base = ? AND NOT removed "
            "AND sketch IS NULL AND neuron_count > 0",
            [concept.base],
        ).to_pylist()
    )
    if left_out:
        output.message(
            f"{counted(left_out, 'version')} pushed by an older library say nothing of what they "
            "are like, and were left out"
        )
