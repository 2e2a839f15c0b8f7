"""Extraction from every family of U-Net."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cones_registry.base_model import BaseModel
from cones_registry.extraction import Extractor, held_out_losses


@pytest.mark.parametrize("family", ["stable-diffusion-2", "text-projection", "stable-diffusion-xl"])
def test_concepts_are_extracted_from_every_unet(
    family: str, family_folder: Callable[[str], Path]
) -> None:
    base = BaseModel.load(family_folder(family), device="cpu")
    picture = Image.effect_noise((40, 40), 60)
    names = {"token": "sks", "class_noun": "dog"}
    found = Extractor(base).extract(
        picture, method="first-order", density=0.1, steps=2, progress=None, **names
    )
    assert found.density == pytest.approx(0.1, abs=0.002)
    losses = held_out_losses(base, found.mask, scope="subject", own=picture, draws=4, **names)
    assert losses.own is not None
    assert losses.own != 1.0
