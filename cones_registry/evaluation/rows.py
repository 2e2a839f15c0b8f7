"""Rows of an evaluation: who is drawn, and by what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cones_registry.digest import quote
from cones_registry.errors import UsageError
from cones_registry.evaluation.fields import (
    choice,
    field,
    mapping_of,
    needed,
    only,
    texts,
    whole,
)

BASELINES: Final = ("textual-inversion", "dreambooth", "custom-diffusion", "lora")
MAX_SUBJECTS: Final = 4
MAX_TRAINING_STEPS: Final = 1_000_000
MAX_FOLDER_BYTES: Final = 200
"""Of a row's folder name; file systems take 255."""

Words = Literal["token", "noun", "description"]
"""What stands for a subject: placeholder and class noun, the class noun alone, or all it is."""
_GOES_WITH: Final = {
    **dict.fromkeys(("steps", "learning_rate", "sets"), "baseline"),
    "tuned": "concepts",
}
_TOLD: Final[tuple[Words, ...]] = ("noun", "description")


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

    def names(self, subjects: Iterable[EvaluatedSubject]) -> dict[str, str]:
        """Subject -> ``<ref>`` in the prompt, for subjects that the plan knows no token of."""
        chosen = list(subjects)
        if self.concepts is None or frozenset(each.name for each in chosen) in (self.tuned or {}):
            return {}
        return {
            each.name: f"<{self.concepts[each.name]}>" for each in chosen if not each.token.strip()
        }

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
    said = {key: field(value, key, str, "") for key in ("token", "noun", "images", "description")}
    if not said["noun"].strip() or not said["images"].strip():
        raise UsageError(f"{what} needs a noun and a folder of images")
    try:
        images = folder / Path(said["images"]).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{what}: images {quote(said['images'])}: {error}") from error
    if "\0" in said["images"]:
        raise UsageError(f"{what}: images {quote(said['images'])} is no name of a folder")
    return EvaluatedSubject(name, said["token"], said["noun"], images, said["description"])


def parse_group(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> tuple[str, ...]:
    """Names of one to four known subjects, none twice; UsageError for anything else."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SUBJECTS:
        raise UsageError(f"group {quote(value)}; expected a list of 1 to {MAX_SUBJECTS} subjects")
    names = texts({"group": value}, "group")
    for name in names:
        if name not in subjects:
            raise UsageError(f"group {quote(value)} names {quote(name)}, which is no subject")
    return names


def _tuned(
    values: list[Any], subjects: Mapping[str, EvaluatedSubject]
) -> dict[frozenset[str], tuple[str, ...]]:
    found: dict[frozenset[str], tuple[str, ...]] = {}
    for value in values:
        if not isinstance(value, dict):
            raise UsageError(f"tuned {quote(value)}; expected subjects and their concepts")
        only(value, "tuned", "subjects", "concepts")
        if not value.get("concepts"):
            raise UsageError(f"tuned {quote(value)} names no concepts")
        names = frozenset(parse_group(value.get("subjects"), subjects))
        if names in found:
            raise UsageError(f"tuned has {', '.join(sorted(names))} twice")
        found[names] = texts(value, "concepts")
    return found


def parse_row(value: Any, subjects: Mapping[str, EvaluatedSubject]) -> Row:
    """The row that a JSON object describes; UsageError with the field that is wrong."""
    if not isinstance(value, dict) or not field(value, "name", str, "").strip():
        raise UsageError(f"row {quote(value)} has no name")
    try:
        row = _row(value, subjects)
        _check(row, value, subjects)
    except UsageError as error:
        raise UsageError(f"row {quote(value['name'])}: {error}") from error
    return row


def _row(value: Mapping[str, Any], subjects: Mapping[str, EvaluatedSubject]) -> Row:
    kinds = ("concepts", "words", "baseline", "pictures")
    only(value, "it", "name", *kinds, "steps", "learning_rate", "sets", "tuned")
    if sum(kind in value for kind in kinds) != 1:
        raise UsageError(f"expected exactly one of {', '.join(kinds)}")
    concepts = mapping_of(value, "concepts", lambda name, ref: needed({name: ref}, name, str))
    return Row(
        value["name"],
        concepts if "concepts" in value else None,
        choice(value, "words", _TOLD),
        choice(value, "baseline", BASELINES),
        whole(value, "steps", 1, MAX_TRAINING_STEPS, None),
        field(value, "learning_rate", float, 0.0) if "learning_rate" in value else None,
        choice(value, "pictures", ("references",)),
        tuple(parse_group(each, subjects) for each in field(value, "sets", list, [])) or None,
        _tuned(field(value, "tuned", list, []), subjects) or None,
    )


def _check(row: Row, value: Mapping[str, Any], subjects: Mapping[str, EvaluatedSubject]) -> None:
    """What no field says alone."""
    if row.folder in (".", "..") or len(row.folder.encode()) > MAX_FOLDER_BYTES:
        raise UsageError("no folder can have this name. Give the row another one, up to 200 bytes")
    for key, owner in _GOES_WITH.items():
        if key in value and owner not in value:
            raise UsageError(f"{key} goes with {owner}")
    if row.learning_rate is not None and not 0 < row.learning_rate < 1:
        raise UsageError(f"learning_rate is {row.learning_rate}, expected above 0 and below 1")
    if row.concepts is not None and set(row.concepts) != set(subjects):
        missing = sorted(set(subjects) ^ set(row.concepts))
        raise UsageError(f"expected one ref for each subject; see {', '.join(missing)}")
    if row.words == "description" and not all(s.description for s in subjects.values()):
        raise UsageError("not every subject has a description")
    if row.baseline is not None and not all(s.token.strip() for s in subjects.values()):
        raise UsageError("a baseline needs a token for every subject")
