"""`cones import`: concepts from an archive."""

from __future__ import annotations

from pathlib import Path

import click

from .session import Session
from .verb import verb


@verb()
@click.argument("archive", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--owner", help="Whose they become; else whose they were.")
def command(session: Session, archive: Path, owner: str | None) -> None:
    """Push every concept of an archive that `cones export` wrote, in one commit.

    Every digest in it is checked. What is here already is not pushed again.
    """
    for concept in session.open().import_archive(archive, owner=owner):
        session.output.line(concept.ref)
