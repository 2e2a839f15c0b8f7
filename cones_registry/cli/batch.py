"""`cones batch`: many pictures from a file of job lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.errors import NotFoundError

from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.batch import BatchReport, Engine, Progress


@verb(reads=True)
@click.argument("jobs", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--out", required=True, metavar="URL", help="A folder, or s3://, gs://, az://.")
@click.option("--base", required=True, metavar="MODEL", help="Folder, hub id or `demo`.")
@click.option("--device", "devices", multiple=True, help="One worker for each; repeatable.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Pictures drawn together; 8 otherwise."
)
@click.option("--format", "form", type=click.Choice(["png", "webp"]), help="png otherwise.")
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This process, or actors on a Ray cluster (extra `ray`).",
)
@click.option(
    "--address", help="Of the Ray cluster; auto finds a running one, else one is started."
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Ray actors."
)
@click.option("--cpus", type=float, default=1.0, show_default=True, help="Of each Ray actor.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="Of each Ray actor.")
@click.option("--keep-going", is_flag=True, help="Skip lines that cannot be run, and report them.")
def command(
    session: Session,
    jobs: Path,
    out: str,
    base: str,
    devices: tuple[str, ...],
    batch_size: int | None,
    form: str | None,
    engine_name: str,
    address: str | None,
    workers: int,
    cpus: float,
    gpus: float,
    keep_going: bool,
) -> None:
    """Draw every line of JOBS into --out; started again, only what is missing.

    JOBS is JSON Lines (- reads stdin), one job a line: prompt, concepts, seed, steps, guidance,
    size, scheduler, negative_prompt, count. Lines are checked before anything runs. Each picture
    carries its recipe (`cones show PICTURE`); index.parquet and report.json say what was made.
    Ends with exit code 1 when pictures are missing.

    \b
    {"prompt": "a photo of sks dog", "concepts": ["alice/dog:prod"], "seed": 1, "count": 8}
    """
    from cones_registry.batch import Compositions, LocalEngine, run_batch

    registry = session.open(read_only=True) if session.registry_url else None
    compositions = Compositions(registry)
    engine: Engine = LocalEngine(compositions, devices or None)
    if engine_name == "ray":
        from cones_registry.batch.ray_engine import RayEngine

        engine = RayEngine(address=address, workers=workers, cpus=cpus, gpus=gpus)
    with session.output.progress("drawing") as bar:

        def on_progress(progress: Progress) -> None:
            note = f"{progress.rate:.2f} pictures a second"
            bar.update(progress.done, progress.total, note)

        report = run_batch(
            _text(jobs),
            out,
            engine=engine,
            base=base,
            compositions=compositions,
            registry=registry.url if registry else None,
            batch_size=batch_size,
            format=form,
            keep_going=keep_going,
            on_progress=on_progress,
        )
    show(session, report, out)
    if not report.succeeded:
        raise click.exceptions.Exit(1)


def show(session: Session, report: BatchReport, out: str) -> None:
    """What was made, and what is missing with its reason."""
    output = session.output
    if output.as_json:
        output.document(report.to_json())
    for failure in report.failures:
        picture = "" if failure.number is None else f", picture {failure.number}"
        output.message(f"line {failure.line}{picture}: {failure.reason}")
    kept = f", {report.kept:,} were there" if report.kept else ""
    output.message(
        f"{report.made:,} of {report.total:,} pictures made{kept} in {report.seconds:.0f} s"
        f" ({report.rate:.2f} a second): {out}"
    )


def _text(jobs: Path) -> str:
    if str(jobs) == "-":
        return sys.stdin.read()
    try:
        return jobs.read_text("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"no job file {jobs}") from error
