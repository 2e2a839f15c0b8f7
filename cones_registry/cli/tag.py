"""`cones tag`: keywords for search."""

from __future__ import annotations

import click

from cones_registry.errors import UsageError

from .session import Session
from .verb import verb


@verb()
@click.argument("ref")
@click.argument("tags", nargs=-1, metavar="[TAG]...")
@click.option("--remove", "gone", multiple=True, metavar="TAG", help="Take a tag away; repeatable.")
def command(session: Session, ref: str, tags: tuple[str, ...], gone: tuple[str, ...]) -> None:
    """Add TAGs to the concept REF, or take some away."""
    if not tags and not gone:
        raise UsageError(f"nothing to do: name tags to add, as in: cones tag {ref} animal pet")
    concept = session.open().tag(ref, add=tags, remove=gone)
    session.output.message(f"{concept.ref}: {', '.join(concept.tags) or 'no tags'}")
