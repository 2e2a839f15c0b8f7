"""`cones remove`: take a concept out of sight, until it is restored or pruned."""

from __future__ import annotations

import click

from .session import Session
from .verb import verb


@verb()
@click.argument("ref")
def command(session: Session, ref: str) -> None:
    """Take the version REF out of lists and resolution.

    No bytes are deleted: `cones restore` brings it back.
    """
    concept = session.open().remove(ref)
    session.output.message(f"removed {concept.ref}. To bring it back: cones restore {concept.ref}")
