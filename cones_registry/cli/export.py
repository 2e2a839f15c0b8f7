"""`cones export`: concepts as an archive, or the catalogue as a table."""

from __future__ import annotations

from pathlib import Path

import click

from cones_registry.errors import ConflictError, UsageError
from cones_registry.quantities import counted, size

from .session import Session
from .verb import verb

# Suffix of the target -> format.
SUFFIXES = {".tar.zst": "archive", ".parquet": "parquet", ".jsonl": "jsonl"}


@verb()
@click.argument("target")
@click.argument("refs", nargs=-1, metavar="[REF]...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["archive", "delta", "parquet", "jsonl"]),
    help="By the target's suffix (.tar.zst, .parquet, .jsonl) unless given.",
)
@click.option("--force", is_flag=True, help="Replace an archive that is there.")
def command(
    session: Session, target: str, refs: tuple[str, ...], form: str | None, force: bool
) -> None:
    """Write concepts to one self-contained archive, or the catalogue for other engines.

    An archive holds REFs (all in use, without any) with their masks and base models' layers;
    `cones import` reads it into another registry. The other formats hold the table of concepts,
    for Spark, Trino or Polars; each export to a Delta table adds one version to it.

    \b
    cones export concepts.tar.zst alice/dog alice/cat
    cones export --format delta s3://lake/concepts
    """
    form = form or next((f for suffix, f in SUFFIXES.items() if target.endswith(suffix)), None)
    if form is None:
        raise UsageError(f"which format is {target}? Say --format archive, delta, parquet or jsonl")
    registry = session.open(read_only=True)
    if form == "archive":
        if Path(target).exists() and not force:
            raise ConflictError(f"{target} is there already. Write elsewhere, or add --force")
        report = registry.export_archive(target, refs or None)
        session.output.message(
            f"{counted(report.concepts, 'concept')}, {counted(report.blobs, 'mask')},"
            f" {size(report.size)}: {target}"
        )
        return
    if refs:
        raise UsageError(f"the {form} export is of the whole catalogue; leave the refs away")
    # The same kind of store: reached in the same way.
    alike = target.partition("://")[0] == session.url().partition("://")[0]
    rows = registry.export_catalog(
        target, format=form, **(session.storage_options if alike else {})
    )
    session.output.message(f"{counted(rows, 'row')}: {target}")
