"""`cones list`: the concepts of a registry."""

from __future__ import annotations

import click

from cones_registry.filters import order_by, where
from cones_registry.quantities import counted

from .concepts import COLUMNS, exact, record, row
from .listing import Listing, format_option, show_listing
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
@click.option("-q", "--quiet", is_flag=True, help="As --format quiet: refs alone.")
@format_option
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
    listing = Listing(
        COLUMNS,
        map(row, found),
        map(exact, found),
        [record(concept) for concept in found] if form == "json" or session.output.as_json else (),
        (concept.ref for concept in found),
    )
    if show_listing(session.output, "quiet" if quiet else form, listing):
        session.output.message(counted(len(found), "concept"))
