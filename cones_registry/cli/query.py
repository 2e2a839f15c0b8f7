"""`cones query`: SQL over the catalogue."""

from __future__ import annotations

import base64
from typing import Any

import click

from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("sql")
@click.argument("parameters", nargs=-1, metavar="[PARAMETER]...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How the rows are written.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop it after so long; after a minute otherwise.",
)
def command(
    session: Session, sql: str, parameters: tuple[str, ...], form: str, timeout: float | None
) -> None:
    """Answer one SELECT over the tables `concepts` and `aliases`.

    Each ? in SQL stands for one PARAMETER, in order. Nothing can be changed this way.

    \b
    cones query "select owner, count(*) from concepts group by owner"
    cones query "select ref from concepts where density < ?" 0.01
    """
    options = {} if timeout is None else {"timeout": timeout}
    table = session.open(read_only=True).query(sql, parameters, **options)
    rows = [{name: _readable(value) for name, value in row.items()} for row in table.to_pylist()]
    if session.output.as_json or form == "json":
        session.output.document(rows)
    elif form == "csv":
        session.output.csv(table.column_names, [tuple(row.values()) for row in rows])
    else:
        session.output.table(table.column_names, [tuple(row.values()) for row in rows])


def _readable(value: Any) -> Any:
    """A value as text can hold it: bytes (the column `sketch`) as base64."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value
