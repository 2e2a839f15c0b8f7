"""What a registry takes, and what the same concepts would take otherwise, to the byte."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.registry.statistics import DENSITY_BOUNDS, KNOWN_UNETS

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (64, 96), "a.attn2.to_v.weight": (32, 96)})
DATA = Path(__file__).parents[1] / "data"


def mask_of(count: int) -> ConceptMask:
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(count, dtype=np.int32)})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def test_an_empty_registry_has_nothing(registry: Registry) -> None:
    found = registry.stats()
    assert (found.versions, found.blob_bytes, found.saved_by_dedup) == (0, 0, 0)
    assert (found.dense_bytes, found.unet_bytes) == (0, 0)
    assert found.largest_owners == ()


def test_sizes_and_savings_are_exact(registry: Registry) -> None:
    one, twin, other = registry.push_many(
        [
            ("alice/dog", mask_of(9), {"scope": "prompt"}),
            ("bob/dog", mask_of(9), {"scope": "prompt"}),
            ("bob/cat", mask_of(1000), {"scope": "prompt"}),
        ]
    )
    registry.remove(registry.push("carol/gone", mask_of(500), scope="prompt"))
    found = registry.stats()
    assert (found.owners, found.concepts, found.versions, found.removed) == (2, 3, 3, 1)
    assert found.used_bytes == one.blob_bytes + other.blob_bytes
    assert found.undivided_bytes == one.blob_bytes + twin.blob_bytes + other.blob_bytes
    assert found.saved_by_dedup == twin.blob_bytes
    assert found.blobs == 3
    assert found.blob_bytes > found.used_bytes
    assert found.raw_bytes == 4 * (9 + 9 + 1000)
    assert found.dense_bytes == 3 * 4 * (64 * 96 + 32 * 96)
    assert found.lora_bytes == 3 * 4 * 4 * (64 + 96 + 32 + 96)
    assert found.unet_bytes is None
    assert sum(found.densities) == 3
    assert found.densities[0] == 2
    assert len(found.densities) == len(DENSITY_BOUNDS) + 1
    owners = [(each.owner, each.concepts, each.versions) for each in found.largest_owners]
    assert owners == [("bob", 2, 2), ("alice", 1, 1)]
    assert found.largest_owners[0].blob_bytes == twin.blob_bytes + other.blob_bytes
    assert json.loads(json.dumps(found.to_json()))["saved_by_dedup"] == twin.blob_bytes


def test_a_base_model_says_how_large_it_is(registry: Registry, tmp_path: Path) -> None:
    base = SimpleNamespace(
        fingerprint="sha256:" + "1" * 64,
        layer_table=TABLE,
        published_source="demo",
        denoiser=torch.nn.Linear(10, 10),
    )
    registry.push("alice/dog", mask_of(9), base=base, scope="prompt")
    registry.push("alice/dog", mask_of(10), base=base, scope="prompt")
    assert registry.stats().unet_bytes == 2 * 4 * 110
    assert Registry.open(tmp_path / "registry").base(base.fingerprint).parameters == 110
    registry.push("alice/other", mask_of(9), scope="prompt")
    assert registry.stats().unet_bytes is None
    assert registry.stats().by_base[0].source == "demo"


def test_the_store_is_listed_when_asked(registry: Registry, tmp_path: Path) -> None:
    registry.push("alice/dog", mask_of(9), scope="prompt")
    assert registry.stats().stored == {}
    stored = registry.stats(list_store=True).stored
    assert stored["masks"] == (1, registry.get("alice/dog").blob_bytes)
    files = [path for path in (tmp_path / "registry").rglob("*") if path.is_file()]
    assert sum(size for _, size in stored.values()) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("name", ["unet-sd-1", "unet-sd-2.1", "unet-sdxl"])
def test_known_denoisers_have_the_parameters_of_their_configs(name: str) -> None:
    config = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    config.pop("_class_name")
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    _, parameters = KNOWN_UNETS[LayerTable.from_unet(model).digest]
    assert parameters == sum(each.numel() for each in model.parameters())
