"""Rows of an evaluation: who is drawn, and by what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.fields import field, mapping_of, only

BASELINES: Final = ("textual-inversion", "dreambooth", "custom-diffusion", "lora")
MAX_SUBJECTS: Final = 4

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
    at ``learning_rate`` (None: its own, which did best on the demo base). pictures: "references",
    the subjects' own real pictures (upper bound).

    sets: for a rival, subjects that are trained jointly beside those that stand together in a
    prompt; a prompt is drawn by the smallest set that holds its subjects.
    tuned: for ours, names of subjects -> refs of the masks that were tuned jointly for them; these
    draw the prompts that name just these subjects.
    """

    name: str
    concepts: Mapping[str, str] | None = None
    words: Words | None = None
    baseline: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    pictures: str | None = None
    sets: tuple[tuple[str, ...], ...] | None = None
    tuned: Mapping[frozenset[str], tuple[str, ...]] | None = None

    def refs(self, subjects: Iterable[EvaluatedSubject]) -> list[str] | None:
        """The masks that draw a prompt with these subjects; None if the row is not of concepts."""
        if self.concepts is None:
            return None
        names = [subject.name for subject in subjects]
        together = (self.tuned or {}).get(frozenset(names))
        return [self.concepts[name] for name in names] if together is None else list(together)

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


def parse_subject(name: str, value: Any, folder: Path) -> EvaluatedSubject:
    """The subject that a JSON object describes; UsageError with the field that is wrong."""
    what = f"subject {quote(name)}"
    if not isinstance(value, dict) or not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise UsageError(f"{what}: expected a name of letters, digits and -, and an object")
    only(value, what, "token", "noun", "images", "description")
    texts = {key: field(value, key, str, "") for key in ("token", "noun", "images", "description")}
    if not texts["noun"].strip() or not texts["images"].strip():
        raise UsageError(f"{what} needs a noun and a folder of images")
    images = folder / Path(texts["images"]).expanduser()
    return EvaluatedSubject(name, texts["token"], texts["noun"], images, texts["description"])


def parse_group(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> tuple[str, ...]:
    """Names of one to four known subjects; UsageError for anything else."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUBJECTS:
        raise UsageError(f"group {quote(value)}; expected a list of 1 to {MAX_SUBJECTS} subjects")
    for name in value:
        if name not in subjects:
            raise UsageError(f"group {quote(value)} names {quote(name)}, which is no subject")
    return tuple(value)


def _tuned(
    value: Any, what: str, subjects: Mapping[str, EvaluatedSubject]
) -> tuple[frozenset[str], tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UsageError(f"{what}: tuned {quote(value)}; expected subjects and their concepts")
    only(value, what, "subjects", "concepts")
    refs = field(value, "concepts", list, [])
    if not refs or not all(isinstance(ref, str) for ref in refs):
        raise UsageError(f"{what}: tuned {quote(value)} names no concepts")
    return frozenset(parse_group(value.get("subjects"), subjects)), tuple(refs)


def parse_row(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> Row:
    """The row that a JSON object describes; UsageError with the field that is wrong."""
    if not isinstance(value, dict) or not field(value, "name", str, "").strip():
        raise UsageError(f"row {quote(value)} has no name")
    what = f"row {quote(value['name'])}"
    only(
        *(value, what, "name", "concepts", "words", "baseline"),
        *("steps", "learning_rate", "pictures", "sets", "tuned"),
    )
    kinds = [key for key in ("concepts", "words", "baseline", "pictures") if key in value]
    if len(kinds) != 1:
        raise UsageError(f"{what} needs exactly one of concepts, words, baseline and pictures")
    row = Row(
        value["name"],
        mapping_of(value, "concepts", lambda _, ref: str(ref)) if "concepts" in value else None,
        value.get("words"),
        value.get("baseline"),
        field(value, "steps", int, 0) or None,
        field(value, "learning_rate", float, 0.0) or None,
        value.get("pictures"),
        tuple(parse_group(each, subjects) for each in field(value, "sets", list, [])) or None,
        dict(_tuned(each, what, subjects) for each in field(value, "tuned", list, [])) or None,
    )
    if row.learning_rate is not None and (row.baseline is None or not 0 < row.learning_rate < 1):
        raise UsageError(f"{what}: learning_rate goes with a baseline, above 0 and below 1")
    if row.tuned and row.concepts is None:
        raise UsageError(f"{what}: tuned goes with concepts")
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
