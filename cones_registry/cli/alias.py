"""`cones alias`: a movable name for one version of a concept."""

from __future__ import annotations

import click

from .session import Session
from .verb import verb


@verb()
@click.argument("ref")
@click.argument("alias")
@click.option(
    "--expect",
    metavar="VERSION",
    type=int,
    help="Move the alias only if it stands at this version now (0: at none); else exit code 11.",
)
def command(session: Session, ref: str, alias: str, expect: int | None) -> None:
    """Let ALIAS (as `prod`) of REF's concept name the version that REF names."""
    concept = session.open().alias(ref, alias, expect=expect)
    session.output.message(f"{concept.owner}/{concept.name}:{alias} is now {concept.ref}")
