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
    recipe_of,
)

RECIPE = {"prompt": "größer «Hund» 犬", "seed": 7, "concepts": [{"ref": "local/dog:1"}]}


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_a_recipe_has_the_keys_of_the_format_and_what_was_left_out_is_the_models_own(
    tiny_base: BaseModel,
) -> None:
    recipe = recipe_of(Request("a dog", seed=3), tiny_base)
    page = Path(__file__).parents[2] / "schema" / "batch.md"
    assert all(f"`{key}`" in page.read_text(encoding="utf-8") for key in recipe)
    assert (recipe["prompt"], recipe["seed"], recipe["negative_prompt"]) == ("a dog", 3, "")
    assert (recipe["steps"], recipe["guidance"], recipe["size"]) == (50, 7.5, None)
    assert (recipe["scheduler"], recipe["dtype"]) == ("DDIMScheduler", "float32")
    assert (recipe["composition"], recipe["concepts"]) == (None, [])
    told = recipe_of(Request("a dog"), tiny_base, steps=2, size=(16, 8), scheduler="dpm")
    assert (told["steps"], told["size"], told["scheduler"]) == (2, [16, 8], "dpm")


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
