"""`cones list`: the concepts of a registry."""

from __future__ import annotations

import click

from .concepts import COLUMNS, row, show_table
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("name", required=False)
@click.option("--owner", help="Only this owner's.")
@click.option("--tag", help="Only those with this tag.")
@click.option("--base", metavar="FINGERPRINT", help="Only those made for this base model.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, newest first.")
@click.option("-q", "--quiet", is_flag=True, help="Refs alone, one a line, for piping.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
)
def command(
    session: Session,
    name: str | None,
    owner: str | None,
    tag: str | None,
    base: str | None,
    limit: int | None,
    quiet: bool,
    form: str,
) -> None:
    """List concepts, newest first; with NAME only the versions of that one.

    \b
    cones list --tag animal
    cones list -q --owner alice | xargs -n 1 cones pull
    """
    registry = session.open(read_only=True)
    found = registry.find(owner=owner, name=name, tag=tag, base=base, limit=limit)
    output = session.output
    if quiet:
        for concept in found:
            output.line(concept.ref)
    elif output.as_json or form == "json":
        output.document([concept.to_json() for concept in found])
    elif form == "csv":
        output.csv(COLUMNS, [row(concept) for concept in found])
    else:
        show_table(output, found)
        output.message(f"{len(found):,} concept{'' if len(found) == 1 else 's'}")
