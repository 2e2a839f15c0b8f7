"""A folder of pictures with what they were asked to show: what is scored.

Three layouts are read: ``gallery.json`` (what `cones evaluate generate` writes), CustomConcept101's
``samples/`` with ``prompts.json``, and any folder whose pictures carry their recipe or stand in a
``prompts.json``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from cones_registry.digest import quote
from cones_registry.errors import ConesError, CorruptDataError, NotFoundError, UsageError
from cones_registry.evaluation.fields import (
    mapping_of,
    needed,
    objects,
    optional,
    read_object,
    require_format,
    texts,
    write_object,
)
from cones_registry.generation import read_recipe

FORMAT: Final = "cones gallery 1"
KEY: Final = "gallery.json"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tiff", ".bmp")


@dataclass(frozen=True)
class ShownSubject:
    """A subject whose pictures are compared with: folder of references, words."""

    name: str
    references: Path
    noun: str = ""
    description: str = ""


@dataclass(frozen=True)
class Sample:
    """One picture. text: what text alignment compares it with. subjects: names of those asked for.

    described: the prompt with every subject described in full, empty where unknown.
    """

    file: Path
    text: str
    subjects: tuple[str, ...] = ()
    described: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures of one method.

    method: name of the row. base: fingerprint of the base model, base_source what it was loaded
    from; base_neurons: of its layer table. bytes_per_concept: storage, None where unknown.
    settings: how the pictures were drawn, printed with the table.
    """

    method: str
    samples: tuple[Sample, ...]
    subjects: Mapping[str, ShownSubject]
    base: str | None = None
    base_source: str | None = None
    base_neurons: int | None = None
    bytes_per_concept: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep it as ``gallery.json``, with paths relative to the folder."""
        content = {
            "format": FORMAT,
            "method": self.method,
            "base": self.base,
            "base_source": self.base_source,
            "base_neurons": self.base_neurons,
            "bytes_per_concept": self.bytes_per_concept,
            "settings": dict(self.settings),
            "subjects": {
                name: {
                    "references": _relative(subject.references, folder),
                    "noun": subject.noun,
                    "description": subject.description,
                }
                for name, subject in self.subjects.items()
            },
            "pictures": [
                asdict(sample) | {"file": _relative(sample.file, folder)} for sample in self.samples
            ],
        }
        write_object(folder / KEY, content)


def read_gallery(
    folder: Path, *, references: Mapping[str, Path] | None = None, method: str | None = None
) -> Gallery:
    """The pictures of a folder.

    references: name -> folder of real pictures, for layouts that do not name them; then every
    picture is taken to show all of them. method: name of the row; the folder's otherwise.
    Raises NotFoundError for a folder without pictures or prompts, CorruptDataError for JSON that
    says something else.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}")
    if (folder / KEY).exists():
        gallery = _read_own(folder)
    else:
        gallery = _read_pictures(folder, references or {})
    if not gallery.samples:
        raise NotFoundError(
            f"{folder} has no pictures to score. Expected {KEY}, samples/ with prompts.json, or "
            "pictures made by cones"
        )
    return replace(gallery, method=method or gallery.method or folder.name)


def _read_own(folder: Path) -> Gallery:
    content = read_object(folder / KEY)
    require_format(content, FORMAT, folder / KEY)
    try:
        needed(content, "subjects", dict)
        subjects = mapping_of(content, "subjects", partial(_subject, folder))
        samples = tuple(_sample(folder, each) for each in objects(content, "pictures"))
        unknown = {name for sample in samples for name in sample.subjects} - set(subjects)
        if unknown:
            raise UsageError(f"pictures of unknown subjects {', '.join(sorted(unknown))}")
        return Gallery(
            needed(content, "method", str),
            samples,
            subjects,
            optional(content, "base", str),
            optional(content, "base_source", str),
            optional(content, "base_neurons", int),
            optional(content, "bytes_per_concept", float),
            optional(content, "settings", dict) or {},
        )
    except UsageError as error:
        raise CorruptDataError(f"{folder / KEY} is no gallery: {error}") from error


def _subject(folder: Path, name: str, content: Any) -> ShownSubject:
    said = needed({name: content}, name, dict)
    references = folder / needed(said, "references", str)
    return ShownSubject(
        name, references, needed(said, "noun", str), needed(said, "description", str)
    )


def _sample(folder: Path, content: Mapping[str, Any]) -> Sample:
    return Sample(
        folder / needed(content, "file", str),
        needed(content, "text", str),
        texts(content, "subjects"),
        needed(content, "described", str),
    )


def _read_pictures(folder: Path, references: Mapping[str, Path]) -> Gallery:
    """``samples/`` and ``prompts.json`` (picture's stem -> prompt), or recipes in the pictures."""
    found = next((each for each in ("samples", "pictures") if (folder / each).is_dir()), "")
    files = sorted(path for path in (folder / found).iterdir() if path.suffix.lower() in _SUFFIXES)
    subjects = {name: ShownSubject(name, path) for name, path in references.items()}
    names = tuple(subjects)
    if (folder / "prompts.json").exists():
        prompts = read_object(folder / "prompts.json")
        missing = [path.name for path in files if not isinstance(prompts.get(path.stem), str)]
        if missing:
            raise CorruptDataError(
                f"{folder / 'prompts.json'} has no prompt for {missing[0]} and "
                f"{len(missing) - 1} others; expected picture's name without suffix -> prompt"
            )
        samples = [Sample(path, prompts[path.stem], names) for path in files]
        return Gallery("", tuple(samples), subjects)
    recipes = [_recipe(path) for path in files]
    samples = [
        Sample(path, _without_tokens(recipe), names)
        for path, recipe in zip(files, recipes, strict=True)
    ]
    bases = {str(recipe.get("base")) for recipe in recipes}
    return Gallery("", tuple(samples), subjects, bases.pop() if len(bases) == 1 else None)


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        return read_recipe(path)
    except ConesError as error:
        raise UsageError(
            f"what was {quote(path.name)} asked to show? {error} Put its prompt into prompts.json: "
            f'{{"{path.stem}": "…"}}'
        ) from error


def _without_tokens(recipe: Mapping[str, Any]) -> str:
    """The prompt of a recipe without placeholders: they mean nothing to an embedder."""
    tokens = {str(each.get("token") or "").casefold() for each in recipe.get("concepts", ())}
    read = recipe.get("read")
    prompt = read.get("prompt", "") if isinstance(read, dict) else recipe.get("prompt", "")
    words: Sequence[str] = str(prompt).split()
    return " ".join(word for word in words if word.casefold() not in tokens)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
