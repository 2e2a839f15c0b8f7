"""What an evaluation draws: subjects, prompts with places for them, seeds, and rows of a table.

A plan is a JSON file (schema/evaluation.md). Every row draws the same prompts with the same seeds;
rows differ in what stands for a subject in the prompt and in what acts on the base model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.fields import (
    field,
    mapping_of,
    number,
    only,
    read_object,
    require_format,
    whole,
)
from cones_registry.evaluation.rows import (
    MAX_SUBJECTS,
    EvaluatedSubject,
    Row,
    Words,
    parse_group,
    parse_row,
    parse_subject,
)
from cones_registry.seed import MAX_SEED

FORMAT: Final = "cones evaluation 1"
MAX_SEEDS: Final = 100_000
MAX_STEPS: Final = 1_000
MAX_GUIDANCE: Final = 1000
"""As in a job file, which every drawn row becomes; a test compares them."""
_SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Item:
    """One prompt of the plan with its subjects, in the order in which it names them.

    number: from 1. template: with ``{name}`` where a subject stands. seed: of the first picture.
    """

    number: int
    template: str
    subjects: tuple[EvaluatedSubject, ...]
    seed: int
    count: int

    def prompt(self, kind: Words, named: Mapping[str, str] | None = None) -> str:
        """The prompt in words; ``named``: what to write for some subjects instead."""
        words = {subject.name: subject.words(kind) for subject in self.subjects}
        named = words | dict(named or {})
        return _SLOT.sub(lambda found: named[found[1]], self.template)

    def picture_names(self) -> list[str]:
        """Stems of its picture files, as a batch run names them."""
        return [f"{self.number:06d}-{number + 1:03d}" for number in range(self.count)]


@dataclass(frozen=True)
class EvaluationPlan:
    """Subjects, prompts, seeds and rows. See ``read_plan``."""

    subjects: Mapping[str, EvaluatedSubject]
    items: tuple[Item, ...]
    rows: tuple[Row, ...]
    steps: int | None
    guidance: float | None

    def row(self, name: str) -> Row:
        """The row of this name; UsageError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise UsageError(f"the plan has no row {quote(name)}. Expected one of {known}")

    def counts(self) -> dict[int, int]:
        """Pictures of a drawn row by number of subjects."""
        found: Counter[int] = Counter()
        for item in self.items:
            found[len(item.subjects)] += item.count
        return dict(sorted(found.items()))

    def groups(self) -> list[tuple[str, ...]]:
        """The sets of subjects that stand together in a prompt, each once, in order."""
        return list(dict.fromkeys(tuple(sorted(s.name for s in i.subjects)) for i in self.items))

    def training_set(self, row: Row, item: Item) -> tuple[str, ...]:
        """The subjects a rival is trained on for this prompt; see ``Row.sets``."""
        wanted = {subject.name for subject in item.subjects}
        sets = row.sets or self.groups()
        fitting = sorted((each for each in sets if wanted <= set(each)), key=len)
        return fitting[0] if fitting else tuple(sorted(wanted))

    def estimate(self, seconds_per_picture: float, seconds_per_training: float = 0.0) -> float:
        """Seconds for all rows: pictures, and for a rival the training of each subject of a set."""
        total = 0.0
        for row in self.rows:
            if row.pictures is not None:
                continue
            total += sum(self.counts().values()) * seconds_per_picture
            if row.baseline is not None:
                sets = {self.training_set(row, item) for item in self.items}
                total += sum(map(len, sets)) * seconds_per_training
        return total


def read_plan(path: Path) -> EvaluationPlan:
    """The plan in a file; paths in it are relative to the file's folder.

    Raises NotFoundError, CorruptDataError (no JSON, another format) and UsageError with the field
    that is wrong.
    """
    content = read_object(path)
    require_format(content, FORMAT, path)
    return parse_plan(content, path.parent)


def parse_plan(content: Mapping[str, Any], folder: Path) -> EvaluationPlan:
    """The plan that a JSON object describes; see ``read_plan``."""
    known = ("format", "subjects", "groups", "prompts", "seeds", "first_seed", "rows")
    only(content, "the plan", *known, "steps", "guidance")
    subjects = mapping_of(
        content, "subjects", lambda name, value: parse_subject(name, value, folder)
    )
    if not subjects:
        raise UsageError("the plan has no subjects")
    seeds = whole(content, "seeds", 1, MAX_SEEDS, 1)
    first = whole(content, "first_seed", 0, MAX_SEED, 0)
    groups = [parse_group(each, subjects) for each in field(content, "groups", list, [])]
    items: list[Item] = []
    for template in field(content, "prompts", list, []):
        filled = _filled(template, groups)
        if not filled:
            raise UsageError(
                f"prompt {quote(template)}: no group has as many subjects as it has places"
            )
        for text in filled:
            chosen = _named(text, subjects)
            seed = first + len(items) * seeds
            items.append(Item(len(items) + 1, text, chosen, seed, seeds))
    if not items:
        raise UsageError("the plan has no prompts")
    if items[-1].seed + seeds - 1 > MAX_SEED:
        raise UsageError(f"first_seed {first} and the pictures after it pass the last, {MAX_SEED}")
    rows = tuple(parse_row(each, subjects) for each in field(content, "rows", list, []))
    _require_own_folders(rows)
    return EvaluationPlan(
        subjects,
        tuple(items),
        rows,
        whole(content, "steps", 1, MAX_STEPS, None),
        number(content, "guidance", 0, MAX_GUIDANCE),
    )


def _require_own_folders(rows: Sequence[Row]) -> None:
    if not rows:
        raise UsageError("the plan has no rows")
    owners: dict[str, Row] = {}
    for row in rows:
        other = owners.setdefault(row.folder, row)
        if other is not row:
            raise UsageError(
                f"rows {quote(other.name)} and {quote(row.name)} would share the folder "
                f"{row.folder}; expected for each row a name of its own"
            )


def _filled(template: Any, groups: list[tuple[str, ...]]) -> list[str]:
    """Templates with ``{1}`` … once for each group of that size; others as they are."""
    if not isinstance(template, str):
        raise UsageError(f"prompt {quote(template)} is no text")
    slots = set(_SLOT.findall(template))
    if not slots:
        raise UsageError(f"prompt {quote(template)} has no place for a subject, {{1}} or {{name}}")
    numbers = {slot for slot in slots if slot.isdigit()}
    if not numbers:
        return [template]
    if numbers != slots or numbers != {str(n + 1) for n in range(len(numbers))}:
        raise UsageError(f"prompt {quote(template)}: expected the places {{1}}, {{2}}, … or names")
    return [
        _SLOT.sub(lambda found, group=group: "{" + group[int(found[1]) - 1] + "}", template)  # type: ignore[misc]
        for group in groups
        if len(group) == len(numbers)
    ]


def _named(template: str, subjects: Mapping[str, EvaluatedSubject]) -> tuple[EvaluatedSubject, ...]:
    names = list(dict.fromkeys(_SLOT.findall(template)))
    for name in names:
        if name not in subjects:
            raise UsageError(f"prompt {quote(template)} names {quote(name)}, which is no subject")
    if len(names) > MAX_SUBJECTS:
        raise UsageError(f"prompt {quote(template)} names more than {MAX_SUBJECTS} subjects")
    return tuple(subjects[name] for name in names)
