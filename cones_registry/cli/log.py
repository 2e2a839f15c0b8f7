"""`cones log`: who did what when."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cones_registry.errors import ConflictError, StoreUnavailableError
from cones_registry.filters import parse_age
from cones_registry.quantities import counted

from .listing import FORMATS, TABLE, Listing, show_listing
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.catalog.history import Happening


@verb(reads=True)
@click.argument("ref", required=False)
@click.option("--owner", metavar="OWNER", help="Changes to what this owner keeps.")
@click.option("--actor", metavar="WHO", help="Changes by this actor.")
@click.option("--since", metavar="AGE|DATE", help="Not older than 7d, or since 2026-11-01.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*FORMATS, "parquet", "jsonl"]),
    default=TABLE,
    show_default=True,
    help="How they are written; parquet and jsonl to a file, with --out.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The file.")
def command(
    session: Session,
    ref: str | None,
    owner: str | None,
    actor: str | None,
    since: str | None,
    limit: int | None,
    form: str,
    out: Path | None,
) -> None:
    """Say who did what when: of REF, of an owner, or of everything, the newest first.

    An actor is what CONES_ACTOR says, else the user and the host. A purge leaves one line that
    names nobody.
    """
    if (form in FORMATS) != (out is None):
        raise click.UsageError("--format parquet or jsonl and --out go together")
    registry = session.open(read_only=True)
    lines = registry.history(
        ref, owner=owner, actor=actor, since=None if since is None else _moment(since), limit=limit
    )
    output = session.output
    if out is not None:
        if out.exists():
            raise ConflictError(f"{out} is there already. Write elsewhere")
        _write(out, form, lines)
        output.message(f"{counted(len(lines), 'change')}: {out}")
        return
    rows = [
        (
            datetime.fromtimestamp(line.time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            line.actor,
            line.kind,
            line.ref,
            " ".join(f"{name}={value}" for name, value in line.detail.items() if name != "mask"),
        )
        for line in lines
    ]
    listing = Listing(
        ("when (UTC)", "who", "what", "of", "detail"),
        rows,
        rows,
        [line.to_json() for line in lines],
        [line.ref for line in lines],
    )
    if show_listing(output, form, listing):
        output.message(counted(len(rows), "change"))


def _moment(text: str) -> datetime:
    """An age before now, or a date."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(time.time(), UTC) - timedelta(seconds=parse_age(text))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _write(path: Path, form: str, lines: list[Happening]) -> None:
    from cones_registry.catalog.history import history_table

    try:
        if form == "parquet":
            import pyarrow.parquet as pq

            pq.write_table(history_table(lines), path, compression="zstd")
            return
        text = "".join(json.dumps(line.to_json(), ensure_ascii=False) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreUnavailableError(f"cannot write {path}: {error}") from error
