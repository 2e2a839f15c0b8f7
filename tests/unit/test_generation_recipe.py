"""Recipes inside picture files, and previews on the way."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.base_model.versions import library_versions
from cones_registry.errors import CorruptDataError, NotFoundError, UsageError
from cones_registry.generation import (
    Generator,
    Request,
    encode_picture,
    read_recipe,
)

RECIPE = {"prompt": "größer «Hund» 犬", "seed": 7, "concepts": [{"ref": "local/dog:1"}]}


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_recipe_and_pixels_come_back_and_bytes_are_the_same_each_time(
    picture: Image.Image, format: str, tmp_path: Path
) -> None:
    data = encode_picture(picture, RECIPE, format=format)
    assert data == encode_picture(picture, dict(reversed(RECIPE.items())), format=format)
    assert read_recipe(data) == RECIPE
    file = tmp_path / f"picture.{format}"
    file.write_bytes(data)
    assert read_recipe(file) == RECIPE
    with Image.open(io.BytesIO(data)) as back:
        assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(picture))


def test_picture_without_recipe_is_not_found(picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with pytest.raises(NotFoundError, match="carries no recipe"):
        read_recipe(buffer.getvalue())


def test_what_is_no_picture_is_corrupt(picture: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError):
        read_recipe(b"not a picture")
    with pytest.raises(CorruptDataError):
        read_recipe(encode_picture(picture, RECIPE)[:-40])
    with pytest.raises(NotFoundError):
        read_recipe(tmp_path / "absent.png")


def test_unknown_format_is_refused(picture: Image.Image) -> None:
    with pytest.raises(UsageError, match="png or webp"):
        encode_picture(picture, RECIPE, format="jpeg")


def test_versions_name_what_decides_the_bits() -> None:
    assert {"torch", "diffusers", "cones-registry"} <= set(library_versions())


def test_previews_come_every_few_steps_and_change_nothing(tiny_base: BaseModel) -> None:
    generator = Generator(tiny_base)
    requests = [Request("a red circle", seed=1), Request("a star", seed=2)]
    seen: list[tuple[int, int]] = []
    with_previews = generator.generate(
        requests,
        steps=5,
        guidance_scale=2,
        on_preview=lambda step, pictures: seen.append((step, len(pictures))),
        preview_every=2,
    )
    assert seen == [(1, 2), (3, 2)]
    without = generator.generate(requests, steps=5, guidance_scale=2)
    for first, second in zip(with_previews, without, strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
