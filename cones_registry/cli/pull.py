"""`cones pull`: a concept's mask as a file."""

from __future__ import annotations

from pathlib import Path

import click

from cones_registry.errors import ConflictError
from cones_registry.quantities import size

from .session import Session
from .verb import verb


@verb()
@click.argument("ref")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write; NAME-VERSION.parquet here otherwise.",
)
@click.option(
    "--layout",
    default="smallest",
    show_default=True,
    help="How the file is laid out; `plain` can be read with SQL.",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Only the neurons that rank highest, up to this share; for concepts that keep scores.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(
    session: Session, ref: str, out: Path | None, layout: str, density: float | None, force: bool
) -> None:
    """Write the mask of REF to a Parquet file, checked against its digest."""
    from cones_registry.codec import save_file

    registry = session.open(read_only=True)
    concept = registry.get(ref)
    path = out or Path(f"{concept.name}-{concept.version}.parquet")
    if path.exists() and not force:
        raise ConflictError(f"{path} is there already. Write elsewhere with -o, or add --force")
    mask = registry.pull(concept.ref, density=density)
    # Levels are shares of the whole mask: those of a part of it would say something else.
    ranks = registry.pull_ranks(concept.ref) if density is None else None
    save_file(mask, path, layout=layout, footer=concept.to_json(), ranks=ranks)
    session.output.line(str(path))
    session.output.message(f"{concept.ref}: {len(mask):,} neurons, {size(path.stat().st_size)}")
