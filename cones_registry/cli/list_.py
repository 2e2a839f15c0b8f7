"""`cones list`: the concepts of a registry."""

from __future__ import annotations

import click

from cones_registry.filters import order_by, where
from cones_registry.quantities import counted

from .concepts import COLUMNS, exact, record, show_table
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("name", required=False)
@click.option("--owner", help="Only this owner's.")
@click.option("--tag", "tags", multiple=True, help="Only those with this tag; repeatable.")
@click.option("--text", help="Only those with this in their name, note, words or tags.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="As size>1MB, density<1%, created>30d (ago), method=gates, note~red; repeatable.",
)
@click.option("--removed", is_flag=True, help="Those that were removed and can be restored.")
@click.option(
    "--sort", metavar="FIELD[:asc|:desc]", help="As size or created:asc; newest first otherwise."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
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
    tags: tuple[str, ...],
    text: str | None,
    filters: tuple[str, ...],
    removed: bool,
    sort: str | None,
    limit: int | None,
    quiet: bool,
    form: str,
) -> None:
    """List concepts, newest first; with [OWNER/]NAME only the versions of that one.

    \b
    cones list --tag animal --filter 'size>1MB'
    cones list -q --owner alice | xargs -n 1 cones pull
    """
    condition = where(filters)
    order = {} if sort is None else {"order_by": order_by(sort)}
    found = session.open(read_only=True).find(
        owner=owner,
        name=name,
        tag=tags or None,
        text=text,
        removed=removed,
        where=(condition.sql, condition.values),
        limit=limit,
        **order,
    )
    output = session.output
    if quiet:
        for concept in found:
            output.line(concept.ref)
    elif output.as_json or form == "json":
        output.document([record(concept) for concept in found])
    elif form == "csv":
        output.csv(COLUMNS, [exact(concept) for concept in found])
    else:
        show_table(output, found)
        output.message(counted(len(found), "concept"))
