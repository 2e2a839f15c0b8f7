"""`cones show`: everything about one concept, or the recipe of one picture."""

from __future__ import annotations

from pathlib import Path

import click

from .concepts import show_record
from .session import Session
from .verb import verb

PICTURES = (".png", ".webp")


@verb(reads=True)
@click.argument("ref", metavar="REF|PICTURE")
def command(session: Session, ref: str) -> None:
    """Show everything kept about the concept REF, or how PICTURE was made.

    PICTURE is a PNG or WebP file of `cones generate` or `cones batch`: its recipe is inside it.
    """
    if Path(ref).suffix.lower() in PICTURES:
        from cones_registry.generation.recipe import read_recipe

        session.output.document(read_recipe(ref))
        return
    show_record(session.output, session.open(read_only=True).get(ref))
