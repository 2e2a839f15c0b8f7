"""`cones show`: everything about one concept."""

from __future__ import annotations

import click

from .concepts import show_record
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("ref")
def command(session: Session, ref: str) -> None:
    """Show everything kept about the concept REF."""
    show_record(session.output, session.open(read_only=True).get(ref))
