"""Pictures kept beside a concept, so that people see what it draws before they use it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from cones_registry.errors import LimitExceededError
from cones_registry.generation.failed import FailedPicturesError
from cones_registry.generation.generator import Generator
from cones_registry.generation.recipe import EXIF_TAG, recipe_of
from cones_registry.generation.request import Request
from cones_registry.pictures import read_picture

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel
    from cones_registry.layers import LayerTable
    from cones_registry.mask import ConceptMask
    from cones_registry.record import Provenance, Scope

MAX_SIDE: Final = 512
"""Pixels; a larger picture is made smaller."""
MAX_BYTES: Final = 2**20
_QUALITIES: Final = (90, 75, 50, 25)


@dataclass(frozen=True)
class Learnt:
    """What drawing needs of a concept that was learnt and is in no registry yet.

    ref: what it will be pushed as. The others are those of an ``Extraction``.
    """

    ref: str
    mask: ConceptMask
    scope: Scope
    token: str
    class_noun: str
    provenance: Provenance


@dataclass(frozen=True)
class _Part:
    mask: ConceptMask
    scope: Scope
    token: str | None
    class_noun: str | None
    refs: tuple[str, ...]


@dataclass(frozen=True)
class _Alone:
    """One concept, as a composition."""

    base: str
    table: LayerTable
    parts: Sequence[_Part]


def draw_previews(
    base: BaseModel, learnt: Learnt, count: int, *, steps: int | None = None
) -> tuple[bytes, ...]:
    """``count`` pictures of a concept, by the first caption it was learnt with, seeds from 0 on.

    Args:
        base: the base model it was learnt on.
        learnt: the concept.
        count: how many, 1 to 4.
        steps: denoising steps; by default the base model's own.

    Returns:
        WebP files of at most ``MAX_SIDE`` pixels a side and ``MAX_BYTES``, each with its recipe
        inside. A picture that failed (its numbers overflowed, or the safety checker took it) is
        left out.
    """
    exact = f"{learnt.ref}@{learnt.mask.digest}"
    part = _Part(learnt.mask, learnt.scope, learnt.token, learnt.class_noun, (exact,))
    composition = _Alone(base.fingerprint, learnt.mask.table, (part,))
    prompt = learnt.provenance.prompt or f"a {learnt.token} {learnt.class_noun}"
    requests = [Request(prompt, composition=composition, seed=seed) for seed in range(count)]
    try:
        pictures: Sequence[Image.Image | None] = Generator(base).generate(requests, steps=steps)
    except FailedPicturesError as error:
        pictures = error.pictures
    said = {
        "ref": exact,
        "mask_digest": learnt.mask.digest,
        "scope": learnt.scope,
        "token": learnt.token,
        "class_noun": learnt.class_noun,
    }
    return tuple(
        encode_preview(picture, recipe_of(request, base, steps=steps) | {"concepts": [said]})
        for request, picture in zip(requests, pictures, strict=True)
        if picture is not None
    )


def preview_of_file(data: bytes, name: str) -> bytes:
    """A picture file of any format that is read, as a preview; its own recipe stays in it.

    name: how errors call it.
    Raises CorruptDataError, LimitExceededError as ``read_picture``.
    """
    from cones_registry.errors import CorruptDataError, NotFoundError
    from cones_registry.generation.recipe import read_recipe

    picture = read_picture(data, name)
    try:
        recipe: dict[str, Any] | None = read_recipe(data)
    except (NotFoundError, CorruptDataError):
        recipe = None
    return encode_preview(picture, recipe)


def encode_preview(picture: Image.Image, recipe: dict[str, Any] | None = None) -> bytes:
    """A WebP file within ``MAX_SIDE`` and ``MAX_BYTES``; the same for the same picture and recipe.

    recipe: put inside, where there is one.
    Raises LimitExceededError for a recipe that leaves no room for a picture.
    """
    picture = picture.copy()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    options: dict[str, Any] = {}
    if recipe is not None:
        exif = Image.Exif()
        exif[EXIF_TAG] = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
        options["exif"] = exif
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, **options)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise LimitExceededError(
        f"a preview takes {buffer.tell()} bytes, at most {MAX_BYTES} are kept: the recipe in the "
        "picture is too long. Save the picture without its metadata"
    )
