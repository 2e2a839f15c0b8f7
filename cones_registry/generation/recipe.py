"""The recipe of a picture, kept inside its file: everything needed to draw it again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones_registry.base_model.versions import library_versions
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from cones_registry.attention.composed import ComposedMember
    from cones_registry.base_model import BaseModel
    from cones_registry.generation.request import Request

RECIPE_FORMAT = "cones recipe 1"
FORMATS = ("png", "webp")
_KEY = "cones"
EXIF_TAG = 0x010E  # "image description": WebP has no text chunks


def recipe_of(
    request: Request,
    base: BaseModel,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    scheduler: str | None = None,
    mask_unconditional: bool = True,
    concepts: Iterable[ComposedMember] = (),
) -> dict[str, Any]:
    """What one picture was drawn from; the keys are those of ``schema/batch.md``.

    steps, guidance_scale, scheduler: as the generator was told, None is the base model's own.
    size: width and height in pixels, None for the model's own. concepts: what the request's
    composition was made of.
    """
    return {
        "format": RECIPE_FORMAT,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "read": _read(request),
        "seed": request.seed,
        "steps": base.defaults.steps if steps is None else steps,
        "guidance": base.defaults.guidance_scale if guidance_scale is None else guidance_scale,
        "size": list(size) if size else None,
        "scheduler": scheduler or type(base.pipeline.scheduler).__name__,
        "mask_unconditional": mask_unconditional,
        "base": base.fingerprint,
        "dtype": str(base.dtype).removeprefix("torch."),
        "composition": getattr(request.composition, "digest", None),
        "concepts": [
            {
                "ref": member.ref,
                "mask_digest": member.concept.mask_digest,
                "blob_digest": member.concept.blob_digest,
                "scope": member.concept.scope,
                "token": member.concept.token,
                "class_noun": member.concept.class_noun,
            }
            for member in concepts
        ],
        "versions": library_versions(),
    }


def _read(request: Request) -> dict[str, str] | None:
    """What was read of prompts that name concepts; None where they were read as written."""
    reading = request.reading
    written = (request.prompt, request.negative_prompt)
    if reading is None or (reading.prompt.text, reading.negative_prompt.text) == written:
        return None
    return {
        "prompt": reading.prompt.text,
        "negative_prompt": reading.negative_prompt.text,
        "exact_prompt": reading.prompt.pinned,
        "exact_negative_prompt": reading.negative_prompt.pinned,
    }


def encode_picture(image: Image, recipe: Mapping[str, Any], *, format: str = "png") -> bytes:
    """A picture file with its recipe inside: PNG (text chunk ``cones``) or lossless WebP (Exif).

    The same picture and recipe give the same bytes: no times, keys sorted.
    Raises UsageError for another format.
    """
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    buffer = io.BytesIO()
    if format == "png":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        chunks.add_itxt(_KEY, text)
        image.save(buffer, "PNG", pnginfo=chunks)
    elif format == "webp":
        from PIL import Image as pillow

        exif = pillow.Exif()
        exif[EXIF_TAG] = text
        image.save(buffer, "WEBP", lossless=True, exif=exif)
    else:
        raise UsageError(f"unknown picture format {format!r}. Expected {' or '.join(FORMATS)}")
    return buffer.getvalue()


def read_recipe(source: bytes | str | Path) -> dict[str, Any]:
    """The recipe inside a picture file, given as its bytes or its path.

    The picture is looked over for damage; one in PNG is not unpacked for that.

    Raises NotFoundError for a missing file or a picture without recipe, CorruptDataError for a file
    that is no picture or a recipe that cannot be read.
    """
    from cones_registry.pictures import opened

    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"no picture at {name}") from error
    except OSError as error:
        raise CorruptDataError(f"{name} is no readable picture: {error}") from error
    with opened(data, name, unpack=False) as image:
        try:
            text = image.info.get(_KEY) or image.getexif().get(EXIF_TAG)
        except Exception as error:  # Exif data as odd as other programs write it
            raise CorruptDataError(f"the recipe in {name} cannot be read: {error}") from error
    if not text:
        raise NotFoundError(
            f"{name} carries no recipe. Pictures made by `cones generate` and `cones batch` do, "
            "unless another program has saved them since"
        )
    try:
        recipe = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"the recipe in {name} is not JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise CorruptDataError(f"the recipe in {name} is not a JSON object")
    return recipe
