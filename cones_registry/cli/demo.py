"""`cones demo`: the whole way, from photos to composed pictures."""

from __future__ import annotations

from pathlib import Path

import click

from .session import Session
from .verb import verb


@verb(registry=False)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="A folder for the registry, the pictures and the report.",
)
def command(session: Session, out: Path) -> None:
    """Learn four subjects from PNG files, keep them in a registry, combine them, draw them.

    Writes contact-sheet.png and report.json to the folder. Takes minutes; needs the extra `model`.
    """
    from cones_registry.demo import run

    run(out)
