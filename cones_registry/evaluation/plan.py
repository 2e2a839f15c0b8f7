"""What an evaluation draws: subjects, prompts with places for them, seeds, and rows of a table.

A plan is a JSON file (schema/evaluation.md). Every row draws the same prompts with the same seeds;
rows differ in what stands for a subject in the prompt and in what acts on the base model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.fields import field, mapping_of, only, read_object, require_format

FORMAT: Final = "cones evaluation 1"
BASELINES: Final = ("textual-inversion", "dreambooth", "custom-diffusion", "lora")
MAX_SUBJECTS: Final = 4
_SLOT = re.compile(r"\{([^{}]*)\}")

Words = Literal["token", "noun", "description"]
"""What stands for a subject: placeholder and class noun, the class noun alone, or all it is."""


@dataclass(frozen=True)
class EvaluatedSubject:
    """A subject: its words and its reference pictures.

    images: folder of pictures. description: what it looks like in words, empty where unknown.
    """

    name: str
    token: str
    noun: str
    images: Path
    description: str = ""

    def words(self, kind: Words) -> str:
        """How a prompt names it."""
        if kind == "noun":
            return self.noun
        if kind == "description":
            return self.description
        return f"{self.token} {self.noun}".strip()


@dataclass(frozen=True)
class Row:
    """A row of the table: one method.

    Exactly one of these says what draws:
    concepts: subject -> ref of its mask. words: the base model alone, told "noun" (lower bound) or
    "description". baseline: name of a rival, trained on the subjects' pictures for ``steps`` each
    (None: its own). pictures: "references", the subjects' own real pictures (upper bound).

    sets: for a rival, subjects that are trained jointly beside those that stand together in a
    prompt; a prompt is drawn by the smallest set that holds its subjects.
    """

    name: str
    concepts: Mapping[str, str] | None = None
    words: Words | None = None
    baseline: str | None = None
    steps: int | None = None
    pictures: str | None = None
    sets: tuple[tuple[str, ...], ...] | None = None

    @property
    def folder(self) -> str:
        """A file name for the row: ``gates/subject`` -> ``gates-subject``."""
        return re.sub(r"[^\w.-]+", "-", self.name)

    @property
    def kind(self) -> str:
        """What draws it, in words."""
        if self.concepts is not None:
            return "concepts"
        if self.words is not None:
            return f"the base model, told the {self.words}"
        return f"{self.baseline}, trained" if self.baseline else "real pictures"

    @property
    def said(self) -> Words:
        """What stands for a subject in its prompts."""
        return self.words or "token"


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

    def prompt(self, kind: Words) -> str:
        """The prompt in words."""
        named = {subject.name: subject.words(kind) for subject in self.subjects}
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
    subjects = mapping_of(content, "subjects", lambda name, value: _subject(name, value, folder))
    if not subjects:
        raise UsageError("the plan has no subjects")
    seeds, first = field(content, "seeds", int, 1), field(content, "first_seed", int, 0)
    if seeds < 1 or first < 0:
        raise UsageError(f"seeds {seeds} from {first}; expected at least 1, from 0 on")
    groups = [_group(each, subjects) for each in field(content, "groups", list, [])]
    items: list[Item] = []
    for template in field(content, "prompts", list, []):
        for text in _filled(template, groups):
            chosen = _named(text, subjects)
            seed = first + len(items) * seeds
            items.append(Item(len(items) + 1, text, chosen, seed, seeds))
    if not items:
        raise UsageError("the plan has no prompts, or none for its groups")
    rows = tuple(_row(each, subjects) for each in field(content, "rows", list, []))
    if not rows or len({row.folder for row in rows}) != len(rows):
        raise UsageError("the plan needs rows, each with a name of its own")
    steps = field(content, "steps", int, 0) or None
    guidance = content.get("guidance")
    return EvaluationPlan(
        subjects, tuple(items), rows, steps, None if guidance is None else float(guidance)
    )


def _subject(name: str, value: Any, folder: Path) -> EvaluatedSubject:
    what = f"subject {quote(name)}"
    if not isinstance(value, dict) or not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UsageError(f"{what}: expected a name of letters, digits and -, and an object")
    only(value, what, "token", "noun", "images", "description")
    texts = {key: field(value, key, str, "") for key in ("token", "noun", "images", "description")}
    if not texts["noun"].strip() or not texts["images"].strip():
        raise UsageError(f"{what} needs a noun and a folder of images")
    images = folder / Path(texts["images"]).expanduser()
    return EvaluatedSubject(name, texts["token"], texts["noun"], images, texts["description"])


def _group(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUBJECTS:
        raise UsageError(f"group {quote(value)}; expected a list of 1 to {MAX_SUBJECTS} subjects")
    for name in value:
        if name not in subjects:
            raise UsageError(f"group {quote(value)} names {quote(name)}, which is no subject")
    return tuple(value)


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


def _row(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> Row:
    if not isinstance(value, dict) or not field(value, "name", str, "").strip():
        raise UsageError(f"row {quote(value)} has no name")
    what = f"row {quote(value['name'])}"
    only(value, what, "name", "concepts", "words", "baseline", "steps", "pictures", "sets")
    kinds = [key for key in ("concepts", "words", "baseline", "pictures") if key in value]
    if len(kinds) != 1:
        raise UsageError(f"{what} needs exactly one of concepts, words, baseline and pictures")
    row = Row(
        value["name"],
        mapping_of(value, "concepts", lambda _, ref: str(ref)) if "concepts" in value else None,
        value.get("words"),
        value.get("baseline"),
        field(value, "steps", int, 0) or None,
        value.get("pictures"),
        tuple(_group(each, subjects) for each in field(value, "sets", list, [])) or None,
    )
    if row.concepts is not None and set(row.concepts) != set(subjects):
        missing = sorted(set(subjects) ^ set(row.concepts))
        raise UsageError(f"{what}: expected one ref for each subject; see {', '.join(missing)}")
    if row.words not in (None, "noun", "description"):
        raise UsageError(f"{what}: words {quote(row.words)}; expected noun or description")
    if row.words == "description" and not all(s.description for s in subjects.values()):
        raise UsageError(f"{what}: not every subject has a description")
    if row.baseline is not None and row.baseline not in BASELINES:
        raise UsageError(f"{what}: expected one of {', '.join(BASELINES)}")
    if row.pictures not in (None, "references"):
        raise UsageError(f"{what}: pictures {quote(row.pictures)}; expected references")
    return row
