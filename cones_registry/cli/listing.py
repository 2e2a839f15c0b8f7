"""Lists: one way in which every verb that lists writes them, for people, programs and pipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from .output import Output

TABLE: Final = "table"
FORMATS: Final = (TABLE, "json", "csv", "quiet")


@dataclass(frozen=True)
class Listing:
    """The lines of a list.

    Attributes:
        columns: their names.
        rows: cells as a person reads them.
        exact: the same for programs: numbers in full.
        document: the lines as JSON values.
        names: what another command takes of each line: a ref, an owner, a digest.
    """

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    exact: Iterable[Sequence[object]]
    document: Any
    names: Iterable[object]


def format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format to a verb, which gets them as ``form``."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(FORMATS),
        default=TABLE,
        show_default=True,
        help="How the list is written; quiet: one name a line, for piping.",
    )(command)


def show_listing(output: Output, form: str, listing: Listing) -> bool:
    """Write a list; whether it was a table for a person, who may be told more."""
    if output.as_json or form == "json":
        output.document(listing.document)
    elif form == "csv":
        output.csv(listing.columns, listing.exact)
    elif form == "quiet":
        for name in listing.names:
            output.line(str(name))
    else:
        output.table(listing.columns, listing.rows)
        return True
    return False
