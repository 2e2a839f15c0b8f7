"""`cones restore`: bring a removed concept back."""

from __future__ import annotations

import click

from .session import Session
from .verb import verb


@verb()
@click.argument("ref")
def command(session: Session, ref: str) -> None:
    """Bring the removed version REF back."""
    concept = session.open().restore(ref)
    session.output.message(f"restored {concept.ref}")
