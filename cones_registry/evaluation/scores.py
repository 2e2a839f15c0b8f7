"""Scores of one gallery: a number for every picture, kept in a file that tables are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cones_registry.errors import CorruptDataError, UsageError
from cones_registry.evaluation.fields import (
    needed,
    objects,
    optional,
    read_object,
    require_format,
    texts,
    write_object,
)
from cones_registry.evaluation.presets import check_preset

FORMAT: Final = "cones scores 1"
KEY: Final = "scores.json"


@dataclass(frozen=True)
class PictureScore:
    """One picture.

    subjects: names of those asked for. text: text alignment on the preset's scale, None without an
    embedder of texts. image, presence: one number for each subject.
    details: further named numbers, as "dino" or the world's own shares.
    """

    file: str
    subjects: tuple[str, ...]
    text: float | None
    image: tuple[float, ...] = ()
    presence: tuple[float, ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """All pictures of one method under one preset.

    preset: see ``Preset.to_json``; facts: of the embedders; presence: what its numbers mean.
    The rest is as in ``Gallery``.
    """

    method: str
    preset: Mapping[str, Any]
    facts: Mapping[str, Any]
    presence: str
    pictures: tuple[PictureScore, ...]
    base: str | None = None
    base_source: str | None = None
    base_neurons: int | None = None
    bytes_per_concept: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Keep them as JSON."""
        write_object(path, {"format": FORMAT, **asdict(self)})


def read_scores(path: Path) -> Scores:
    """The scores in a file, or in the ``scores.json`` of a folder.

    Raises NotFoundError, CorruptDataError.
    """
    file = path / KEY if path.is_dir() else path
    content = read_object(file)
    require_format(content, FORMAT, file)
    try:
        return _scores(content)
    except UsageError as error:
        raise CorruptDataError(f"{file} holds no scores: {error}") from error


def _scores(content: Mapping[str, Any]) -> Scores:
    return Scores(
        needed(content, "method", str),
        check_preset(needed(content, "preset", dict)),
        needed(content, "facts", dict),
        needed(content, "presence", str),
        tuple(_picture(each) for each in objects(content, "pictures")),
        optional(content, "base", str),
        optional(content, "base_source", str),
        optional(content, "base_neurons", int),
        optional(content, "bytes_per_concept", float),
        optional(content, "settings", dict) or {},
    )


def _picture(content: Mapping[str, Any]) -> PictureScore:
    subjects = texts(content, "subjects")
    details = needed(content, "details", dict)
    return PictureScore(
        needed(content, "file", str),
        subjects,
        optional(content, "text", float),
        _numbers(content, "image", len(subjects)),
        _numbers(content, "presence", len(subjects)),
        {name: needed(details, name, float) for name in details},
    )


def _numbers(content: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    """One number for each subject, or none at all."""
    found = tuple(
        needed({f"one of {name}": each}, f"one of {name}", float)
        for each in needed(content, name, list)
    )
    if len(found) not in (0, count):
        raise UsageError(f"{name} has {len(found)} numbers for {count} subjects")
    return found
