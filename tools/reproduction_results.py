"""Reading tools/results again: what the page of claims is written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Found = tuple[str, str]
"""What was measured, and the verdict."""


class MissingError(LookupError):
    """A result that the claim needs is not there."""


class Table:
    """tools/results/table.json."""

    def __init__(self, results: Path) -> None:
        content = read(results, "table")
        self.rows = {row["method"]: row for row in content["rows"]}
        self.counts = content["columns"]

    def cell(self, row: str, measure: str, count: int) -> dict[str, float]:
        """mean, low, high, count."""
        try:
            found: dict[str, float] = self.rows[row]["cells"][measure][str(count)]
        except KeyError as error:
            raise MissingError(f"row {row!r} of the table") from error
        return found

    def means(self, row: str, measure: str, counts: tuple[int, ...]) -> list[float]:
        """One number for each number of subjects."""
        return [self.cell(row, measure, count)["mean"] for count in counts]

    def size(self, row: str) -> float:
        """Bytes a concept."""
        found = self.rows.get(row, {}).get("bytes_per_concept")
        if found is None:
            raise MissingError(f"row {row!r} of the table")
        return float(found)


def read(results: Path, name: str) -> dict[str, Any]:
    """One result file."""
    file = results / f"{name}.json"
    if not file.exists():
        raise MissingError(file.name)
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def listed(values: list[float]) -> str:
    """``.59 / .54 / .18``."""
    return " / ".join(f"{value:.2f}" for value in values)


def said_of(verdicts: list[tuple[str, bool]]) -> str:
    """One verdict, or one for each of several."""
    if len({holds for _, holds in verdicts}) == 1:
        return "holds" if verdicts[0][1] else "**does not hold**"
    return ", ".join(f"`{row}` {'holds' if holds else '**does not**'}" for row, holds in verdicts)
