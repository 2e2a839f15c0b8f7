"""`cones compact`: fold the log into a snapshot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cones_registry.filters import parse_age
from cones_registry.quantities import counted, size

from .session import Session
from .verb import verb


@verb(reads=True)
@click.option("--grace", metavar="AGE", help="Keep what was folded for so long, as 1h.")
@click.option(
    "--minimum",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Do nothing below so many log segments.",
)
def command(session: Session, grace: str | None, minimum: int) -> None:
    """Fold the log into sorted runs, so that new readers are ready sooner.

    Safe at any time, anywhere, also by several at once.
    """
    options: dict[str, Any] = {} if grace is None else {"grace": parse_age(grace)}
    report = session.open().compact(minimum=minimum, **options)
    output = session.output
    if output.as_json:
        output.document(asdict(report))
    if report.manifest is None:
        output.message("no new manifest: there was nothing to fold")
    else:
        output.message(
            f"manifest {report.manifest}: {counted(report.folded, 'log segment')} folded into"
            f" {counted(report.rows, 'version')}, {size(report.written_bytes)} written"
        )
    output.message(
        f"{counted(report.removed, 'old object')} removed, {size(report.freed_bytes)} freed"
    )
