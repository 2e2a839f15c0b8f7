"""Scores of one gallery: a number for every picture, kept in a file that tables are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cones_registry.errors import CorruptDataError
from cones_registry.evaluation.fields import read_object, require_format, write_object

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
        pictures = tuple(
            PictureScore(
                each["file"],
                tuple(each["subjects"]),
                each["text"],
                tuple(each["image"]),
                tuple(each["presence"]),
                each["details"],
            )
            for each in content.pop("pictures")
        )
        del content["format"]
        scores = Scores(pictures=pictures, **content)
        hash((scores.method, scores.preset["name"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{file} holds no scores: {error}") from error
    return scores
