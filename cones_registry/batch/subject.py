"""Subject lines: one concept to be learnt a line. See schema/batch.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cones_registry.batch.fields import (
    BadLine,
    Check,
    flag,
    full_text,
    need,
    number,
    one_of,
    parse_lines,
    text,
    texts,
    whole,
)
from cones_registry.errors import UsageError
from cones_registry.extraction import METHODS
from cones_registry.extraction.settings import PROJECTIONS, Projections
from cones_registry.picture_size import MAX_SIDE, check_side
from cones_registry.record import SCOPES
from cones_registry.refs import parse_ref
from cones_registry.seed import MAX_SEED


@dataclass(frozen=True)
class Subject:
    """One line: what ``Extractor.extract`` is told, and the name the concept is pushed under.

    line: number in the file, from 1. name: ``[owner/]name``. images: a folder, or files. What is
    None is the method's own; a token is chosen. companions: folder of pictures of other things.
    keep_scores: keep how the neurons rank, so that the mask can be cut later. size: pixels on a
    side to learn at. projections: "kv", or "k" or "v" alone, which may have members.
    """

    line: int
    name: str
    images: tuple[str, ...]
    class_noun: str
    token: str | None = None
    method: str = "gates"
    scope: str = "subject"
    density: float | None = None
    tau: float | None = None
    steps: int | None = None
    seed: int = 0
    prompts: tuple[str, ...] = ()
    companions: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    keep_scores: bool = False
    size: int | None = None
    projections: Projections = "kv"


def parse_subjects(lines: str) -> tuple[list[Subject], list[BadLine]]:
    """The subjects of a JSON-lines text, and the lines that are none."""
    return parse_lines(lines, _subject, _FIELDS)


def _subject(line: int, values: dict[str, Any]) -> Subject:
    need(values, "name", "images", "class_noun")
    subject = Subject(line, **values)
    if subject.density is not None and subject.tau is not None:
        raise UsageError("density and tau are both given; they are two ways to say one thing")
    return subject


def _name(name: str, value: Any) -> str:
    ref = parse_ref(full_text(name, value))
    if ref.version is not None or ref.alias is not None or ref.digest is not None:
        raise UsageError(f"{name} {value!r} has a version; the registry numbers versions itself")
    return str(value)


def _images(name: str, value: Any) -> tuple[str, ...]:
    images = (full_text(name, value),) if isinstance(value, str) else texts(name, value)
    if not images:
        raise UsageError(f"{name} is empty; expected a folder or a list of files")
    return images


_FIELDS: Final[Mapping[str, Check]] = {
    "name": _name,
    "images": _images,
    "token": full_text,
    "class_noun": full_text,
    "method": one_of(*METHODS),
    "scope": one_of(*SCOPES),
    "density": number(1e-9, 1),
    "tau": number(0, float("inf")),
    "steps": whole(1, 1_000_000),
    "seed": whole(0, MAX_SEED),
    "prompts": texts,
    "companions": full_text,
    "tags": texts,
    "note": text,
    "keep_scores": flag,
    "size": lambda name, value: check_side(name, whole(1, MAX_SIDE)(name, value)),
    "projections": one_of(*PROJECTIONS),
}
