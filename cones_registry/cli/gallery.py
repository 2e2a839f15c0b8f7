"""`cones gallery`: pages with a card for every concept."""

from __future__ import annotations

import click

from cones_registry.filters import where
from cones_registry.quantities import counted

from .session import Session
from .verb import verb


@verb(reads=True)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FOLDER|URL",
    help="Empty, new, or a gallery already: then only what changed is written.",
)
@click.option("--title", default="Concepts", show_default=True, help="Heading of the first page.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="As owner=alice, tag=animal, created<30d; repeatable. See `cones list --help`.",
)
@click.option(
    "--similar/--no-similar",
    default=True,
    show_default=True,
    help="Whether a concept's page shows those most like it.",
)
def command(
    session: Session, out: str, title: str, filters: tuple[str, ...], similar: bool
) -> None:
    """Write pages to look at: a card for every concept, and a page each with all that is known.

    The pages need no server and no script: open index.html, or serve the folder or bucket as it is.

    \b
    cones gallery --out gallery --filter owner=alice
    """
    from cones_registry.pages import write_gallery

    condition = where(filters)
    registry = session.open(read_only=True)
    output = session.output
    with output.progress("writing the gallery") as update:
        report = write_gallery(
            registry,
            out,
            title=title,
            where=(condition.sql, condition.values),
            similar=similar,
            on_progress=lambda done, total: update(done, total),
        )
    if output.as_json:
        output.document(vars(report))
        return
    output.line(f"{out.rstrip('/')}/index.html")
    output.message(
        f"{counted(report.concepts, 'concept')}: {counted(report.written, 'file')} written, "
        f"{report.kept:,} as before, {report.deleted:,} deleted"
    )
