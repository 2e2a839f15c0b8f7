"""`cones batch`: many pictures from a file of job lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from .runs import (
    EngineChoice,
    opened_compositions,
    read_lines,
    run_options,
    show_report,
    shown_progress,
)
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("jobs", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--out", required=True, metavar="URL", help="A folder, or s3://, gs://, az://.")
@click.option("--base", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Pictures drawn together; 8 otherwise."
)
@click.option("--format", "form", type=click.Choice(["png", "webp"]), help="png otherwise.")
@run_options
def command(
    session: Session,
    jobs: Path,
    out: str,
    base: str,
    batch_size: int | None,
    form: str | None,
    keep_going: bool,
    **engine: Any,
) -> None:
    """Draw every line of JOBS into --out; started again, only what is missing.

    JOBS is JSON Lines (- reads stdin), one job a line: prompt, concepts, seed, steps, guidance,
    size, scheduler, negative_prompt, mask_unconditional, count. Lines are checked before anything
    runs. Each picture carries its recipe (`cones show PICTURE`); index.parquet and report.json say
    what was made. Ends with exit code 1 when pictures are missing.

    \b
    {"prompt": "a photo of sks dog", "concepts": ["alice/dog:prod"], "seed": 1, "count": 8}
    """
    lines, choice = read_lines(jobs), EngineChoice(**engine)
    # Refs are resolved once, at the start; nothing that is pushed later matters to this run.
    registry = (
        session.open(read_only=True, max_staleness=math.inf) if session.registry_url else None
    )
    from cones_registry.batch import run_batch

    compositions = opened_compositions(registry)
    with shown_progress(session, "drawing", "picture") as on_progress:
        report = run_batch(
            lines,
            out,
            engine=choice.make(compositions, session),
            base=base,
            device=choice.device,
            dtype=choice.dtype,
            compositions=compositions,
            registry=registry.url if registry else None,
            batch_size=batch_size,
            format=form,
            keep_going=keep_going,
            on_progress=on_progress,
        )
    show_report(session, report, noun="picture", out=out)
