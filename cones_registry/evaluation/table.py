"""The table: rows are methods, columns one to four subjects, cells means with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cones_registry.errors import ConflictError, UsageError
from cones_registry.evaluation.bootstrap import Interval, interval
from cones_registry.evaluation.scores import PictureScore, Scores

MEASURES: Final[Mapping[str, str]] = {
    "text": "text alignment",
    "image": "image alignment",
    "presence": "per-subject presence",
}
DINO: Final = "dino"
"""A second image alignment, in tables whose rows all have it."""
PAPER_BASES: Final = ("CompVis/stable-diffusion-v1-4",)
PAPER_NEURONS: Final = 19_169_280
"""K/V weights of Stable Diffusion 1.x."""
PAPER_PICTURES: Final = 1000
"""Pictures of a cell: 20 prompts with 50 pictures each, the protocol of Custom Diffusion
(arXiv 2212.04488) which the paper's comparison is in the line of."""
_CLAIM = re.compile(r"paper(['’]?s)?\s+(own\s+)?table|table\s+of\s+the\s+paper", re.IGNORECASE)


@dataclass(frozen=True)
class TableRow:
    """A method: cells by measure and number of subjects."""

    method: str
    cells: Mapping[str, Mapping[int, Interval]]
    bytes_per_concept: float | None
    base: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows with everything that decides their numbers.

    columns: numbers of subjects. preset, facts, presence: as in ``Scores``.
    differences: why this is not the paper's own setting; empty if it is.
    measures: key of a cell -> its name, in the order in which they are shown.
    """

    title: str
    rows: tuple[TableRow, ...]
    columns: tuple[int, ...]
    preset: Mapping[str, Any]
    facts: Mapping[str, Any]
    presence: str
    differences: tuple[str, ...]
    measures: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; numbers of subjects are text keys there."""
        content = asdict(self)
        for row in content["rows"]:
            row["cells"] = {
                measure: {str(count): cell for count, cell in cells.items()}
                for measure, cells in row["cells"].items()
            }
        return content


def make_table(scores: Sequence[Scores], *, title: str | None = None) -> Table:
    """The table of several methods' scores.

    title: default says what the setting is. Raises ConflictError for scores of different presets
    or embedders, which are not comparable, and UsageError for a title that claims to be the
    paper's table where base, number of pictures or preset differ.
    """
    if not scores:
        raise UsageError("no scores to make a table of. Run `cones evaluate score` first")
    first = scores[0]
    for each in scores[1:]:
        for what in ("preset", "facts", "presence"):
            if getattr(each, what) != getattr(first, what):
                raise ConflictError(
                    f"{first.method!r} was scored with {what} {_short(getattr(first, what))}, "
                    f"{each.method!r} with {_short(getattr(each, what))}: never one column for "
                    "both. Score all with one preset and the same embedders"
                )
    names = [each.method for each in scores]
    if len(set(names)) < len(names):
        raise ConflictError(f"two rows have one name among {', '.join(names)}. Use --method")
    columns = sorted({len(p.subjects) for each in scores for p in each.pictures if p.subjects})
    measures = dict(MEASURES)
    if all(DINO in picture.details for each in scores for picture in each.pictures):
        measures[DINO] = "image alignment by DINO"
    rows = tuple(_row(each, measures) for each in scores)
    differences = tuple(_differences(scores, rows))
    if title is not None and _CLAIM.search(title) and differences:
        raise UsageError(
            f"a table with the title {title!r} would claim to be the paper's, but "
            + "; ".join(differences)
        )
    if title is None:
        title = "Evaluation" if differences else "Cones, in the setting of the paper's table"
    return Table(
        title,
        rows,
        tuple(columns),
        first.preset,
        first.facts,
        first.presence,
        differences,
        measures,
    )


def _row(scores: Scores, measures: Iterable[str]) -> TableRow:
    by_count: dict[int, list[PictureScore]] = {}
    for picture in scores.pictures:
        by_count.setdefault(len(picture.subjects), []).append(picture)
    cells: dict[str, dict[int, Interval]] = {measure: {} for measure in measures}
    for count, pictures in sorted(by_count.items()):
        for measure in cells:
            known = [p for p in pictures if _value(p, measure) is not None]
            if known:
                cells[measure][count] = interval(
                    [_value(picture, measure) or 0.0 for picture in known],
                    [tuple(sorted(picture.subjects)) for picture in known],
                )
    return TableRow(
        scores.method, cells, scores.bytes_per_concept, scores.base_source, scores.settings
    )


def _value(picture: PictureScore, measure: str) -> float | None:
    if measure == "text":
        return picture.text
    if measure == DINO:
        return picture.details.get(DINO)
    values = picture.image if measure == "image" else picture.presence
    return sum(values) / len(values) if values else None


def _differences(scores: Sequence[Scores], rows: Sequence[TableRow]) -> list[str]:
    """What keeps these numbers from being compared with those the paper prints."""
    found = []
    if scores[0].preset.get("name") != "paper":
        found.append(f"the preset is {scores[0].preset.get('name')!r}, not 'paper'")
    for each in scores:
        known = str(each.base_source).split("@")[0] in PAPER_BASES
        if not known or each.base_neurons != PAPER_NEURONS:
            found.append(
                f"the base model of {each.method!r} is {each.base_source or 'unknown'}, "
                f"not {PAPER_BASES[0]}"
            )
            break
    counts = {cell.count for row in rows for cells in row.cells.values() for cell in cells.values()}
    if counts != {PAPER_PICTURES}:
        found.append(f"n is {min(counts, default=0)} … {max(counts, default=0)}, not 1000 a cell")
    return found


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return repr(value.get("name", value))
    return repr(value)
