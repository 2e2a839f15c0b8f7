"""`cones query`: SQL over the catalogue."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import click

from .listing import Listing, format_option, show_listing
from .session import Session
from .verb import verb


@verb(reads=True)
@click.argument("sql")
@click.argument("parameters", nargs=-1, metavar="[PARAMETER]...")
@format_option
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
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    table = session.open(read_only=True).query(sql, parameters, as_text=True, **options)
    # By position, for a join of both tables has columns of one name.
    columns = [[_readable(value) for value in column.to_pylist()] for column in table.columns]
    rows = list(zip(*columns, strict=True))
    names = _numbered(table.column_names)
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    first = (row[0] for row in rows)
    listing = Listing(table.column_names, rows, rows, objects, first)
    show_listing(session.output, form, listing)


def _readable(value: Any) -> Any:
    """A value as text and JSON can hold it.

    Bytes (the column `sketch`) are base64. DuckDB's sums of integers (HUGEINT) come as decimals
    without a fraction; they are integers again.
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
        return int(value)
    if isinstance(value, list | tuple):
        return [_readable(each) for each in value]
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    return value


def _numbered(names: Sequence[str]) -> list[str]:
    """Names of which none is twice: the second `owner` is `owner_1`, unless a column has that."""
    given = set(names)
    unique: dict[str, None] = {}
    for name in names:
        chosen, count = name, 0
        while chosen in unique or (count and chosen in given):
            count += 1
            chosen = f"{name}_{count}"
        unique[chosen] = None
    return list(unique)
