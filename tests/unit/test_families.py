"""Which models are supported: layer tables at their published shapes, and the page that says so."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from cones_registry import families
from cones_registry.layers import MAX_NEURONS, LayerTable

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "tests/data/transformers.json").read_text(encoding="utf-8"))


def empty(denoiser: str, config: dict[str, Any]) -> Any:
    """A denoiser without memory for its weights."""
    config = {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }
    with torch.device("meta"):
        return getattr(diffusers, denoiser)(**config)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_these_layers(model: str) -> None:
    said = PUBLISHED[model]
    table = LayerTable.from_unet(empty(said["denoiser"], said["config"]))
    assert (len(table), table.neuron_count) == (said["layers"], said["neurons"])
    assert table.neuron_count <= MAX_NEURONS
    assert max(layer.neuron_count for layer in table) < 2**31
    assert [layer.kind for layer in table].count("k") == len(table) // 2


def test_every_family_has_a_published_model_whose_layers_are_counted() -> None:
    counted = {said["denoiser"] for said in PUBLISHED.values()}
    counted |= {"UNet2DConditionModel", "PixArtTransformer2DModel"}  # test_base_model_shapes.py
    assert {family.denoiser for family in families.FAMILIES} <= counted


def test_the_page_of_models_is_made_of_the_table() -> None:
    page = (ROOT / "schema/models.md").read_text(encoding="utf-8")
    assert page.endswith(families.page()), (
        "put what families.page() gives at the end of schema/models.md"
    )


def test_the_table_names_classes_that_exist() -> None:
    for family in families.FAMILIES:
        for name in (family.denoiser, *family.pipelines):
            assert hasattr(diffusers, name), name
    for refusal in families.REFUSED:
        assert hasattr(diffusers, refusal.denoiser), refusal.denoiser
