"""Check finds what is lost, damaged or in doubt, and rebuild guesses nothing it need not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "registry", cache=tmp_path / "cache")


def test_commits_that_vanished_from_the_log_are_told_by_whoever_had_read_them(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1))
    registry.find()
    assert registry.check().ok
    shutil.rmtree(tmp_path / "registry" / "log")
    report = registry.check()
    assert [(each.kind, each.where) for each in report.problems] == [("lost", "alice/dog:1")]
    assert registry.check(rebuild=True).ok
    assert registry.check().ok
    assert [concept.ref for concept in registry.find()] == ["alice/dog:1"]


def test_an_older_copy_in_the_place_of_a_registry_is_told(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("alice/dog", mask_of(1))
    shutil.copytree(tmp_path / "registry", tmp_path / "backup")
    registry.push("alice/cat", mask_of(2))
    registry.find()
    shutil.rmtree(tmp_path / "registry")
    (tmp_path / "backup").rename(tmp_path / "registry")
    lost = [each.where for each in registry.check().problems if each.kind == "lost"]
    assert lost == ["alice/cat:1"]
    registry.check(rebuild=True)
    assert [concept.ref for concept in registry.find()] == ["alice/dog:1"]
    assert registry.check().ok


def test_what_was_folded_or_purged_is_not_lost(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(1))
    registry.push("bob/dog", mask_of(2))
    registry.find()
    registry.compact(grace=0)
    assert registry.check().ok
    registry.push("bob/dog", mask_of(3))
    registry.compact(grace=0)
    registry.plan_purge(owner="alice").execute()
    assert registry.check(read_data=True).ok


@pytest.mark.parametrize(
    "place", ["quotas/alice/*.json", "names/alice/dog/alias/prod/1", "bases/*"]
)
def test_every_small_document_is_read_too(registry: Registry, tmp_path: Path, place: str) -> None:
    registry.push("alice/dog", mask_of(1))
    registry.alias("alice/dog", "prod")
    registry.set_quota("alice", concepts=5)
    assert registry.check(read_data=True).ok
    (path,) = (tmp_path / "registry").glob(place)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(bytes(data))
    problems = registry.check(read_data=True).problems
    assert {each.kind for each in problems} == {"corrupt"}
    assert str(path.relative_to(tmp_path / "registry")) in [each.where for each in problems]


def test_without_reservations_the_footer_of_a_number_that_was_lost_to_another_is_not_believed(
    registry: Registry, tmp_path: Path
) -> None:
    registry.push("zoe/z", mask_of(99))
    registry.sync()
    late = Registry.open(registry.url, cache=tmp_path / "late")
    late.sync()
    masks = {}
    for number in range(6):
        for handle, seed in ((registry, 100 + number), (late, 200 + number)):
            pushed = handle.push(f"bob/x{number}", mask_of(seed))
            masks[pushed.ref] = pushed.mask_digest
    assert "bob/x0:2" in masks
    for folder in ("log", "names"):
        shutil.rmtree(tmp_path / "registry" / folder)
    fresh = Registry.open(registry.url, cache=tmp_path / "fresh")
    assert fresh.check(rebuild=True).ok
    assert {each.ref: each.mask_digest for each in fresh.find(owner="bob")} == masks


def test_two_blobs_that_claim_one_number_are_told(registry: Registry, tmp_path: Path) -> None:
    first = registry.push("bob/x", mask_of(1))
    twin = Registry.create(tmp_path / "twin", cache=tmp_path / "cache2")
    twin.push("bob/x", mask_of(2))
    shutil.copytree(
        tmp_path / "twin" / "blobs", tmp_path / "registry" / "blobs", dirs_exist_ok=True
    )
    shutil.rmtree(tmp_path / "registry" / "log")
    assert registry.check(rebuild=True).ok  # the reservation tells
    assert registry.get("bob/x:1").mask_digest == first.mask_digest
    for folder in ("log", "names"):
        shutil.rmtree(tmp_path / "registry" / folder)
    report = registry.check(rebuild=True)
    assert [(each.kind, each.where) for each in report.problems] == [("ambiguous", "bob/x:1")]
    assert registry.get("bob/x:1").mask_digest == first.mask_digest
