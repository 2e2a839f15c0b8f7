"""`cones pull`: a concept's mask as a file."""

from __future__ import annotations

from pathlib import Path

import click

from cones_registry.errors import ConflictError

from .output import size
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
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(session: Session, ref: str, out: Path | None, layout: str, force: bool) -> None:
    """Write the mask of REF to a Parquet file, checked against its digest."""
    from cones_registry.codec import save_file

    registry = session.open(read_only=True)
    concept = registry.get(ref)
    path = out or Path(f"{concept.name}-{concept.version}.parquet")
    if path.exists() and not force:
        raise ConflictError(f"{path} is there already. Write elsewhere with -o, or add --force")
    save_file(registry.pull(concept.ref), path, layout=layout, footer=concept.to_json())
    session.output.line(str(path))
    session.output.message(
        f"{concept.ref}: {concept.neuron_count:,} neurons, {size(path.stat().st_size)}"
    )
